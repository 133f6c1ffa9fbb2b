"""The ports, each implemented for one technology and opened by URL."""
