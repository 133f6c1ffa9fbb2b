"""What the service knows: stock, its rules, and the use cases. Imports the standard library and msgspec only."""
