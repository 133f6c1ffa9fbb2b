"""The HTTP API: Litestar plugins over the use cases."""
