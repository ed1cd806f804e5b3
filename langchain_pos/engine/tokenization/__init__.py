"""Token ids to text and back, where a text is part of a longer one."""
