"""Requests, whose turn it is, and what goes into the next forward pass."""
