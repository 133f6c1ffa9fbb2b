"""Events out: every committed event reaches the broker, in its product's order."""
