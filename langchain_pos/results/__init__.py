"""What comes out: plan, branches, conclusion, result, and how they are shown."""
