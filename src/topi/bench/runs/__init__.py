"""One cell of a sweep: build its parts, identify it, compute and time it, verify it."""
