"""Several replicas of the server behind one door, on Ray Serve."""
