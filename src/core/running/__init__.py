"""How work goes on by itself: loops that go on whatever they meet, leases that are kept meanwhile."""
