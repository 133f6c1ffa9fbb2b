"""The processes: read settings, wire adapters to use cases, parse, call, answer."""
