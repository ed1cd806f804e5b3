"""Keys and values of the slots, and the prompts that are kept for later."""
