"""Token ids to text and back, for parts of longer texts."""
