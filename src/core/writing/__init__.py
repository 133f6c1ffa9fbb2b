"""How a change becomes durable: requests join a batch, which is locked, decided, saved and committed at once."""
