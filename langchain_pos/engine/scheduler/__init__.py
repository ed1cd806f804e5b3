"""Requests, their order, and the contents of the next forward pass."""
