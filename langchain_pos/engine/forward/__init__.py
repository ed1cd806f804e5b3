"""One forward pass over ragged rows, as it comes or recorded as a CUDA graph."""
