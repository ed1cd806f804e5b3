"""A decoder over an OpenAI-compatible server."""
