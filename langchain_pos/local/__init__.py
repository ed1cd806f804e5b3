"""A decoder over this package's own engine."""
