"""Sequences during decoding: tokens in, drafts, a completion out."""
