"""What makes a forward pass fast on a CPU: packed weights, huge pages, threads."""
