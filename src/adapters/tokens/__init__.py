"""Tokens: judging those that come, making our own, and the keys for both."""
