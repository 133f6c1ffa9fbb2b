"""What runs until it is told to stop: ``serve``, ``api``, ``consumer``, ``reconciler``."""
