"""Many requests from a file or a pipe, answered together, and an output that can be gone on with."""
