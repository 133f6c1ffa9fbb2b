"""What a command does that looks into a store or works on it; its options are in ``entrypoints/cli``."""
