"""Sequences while they are decoded: tokens in, drafts, a completion out."""
