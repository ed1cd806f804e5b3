"""The forest of segments: which slots are whose, and who sees what."""
