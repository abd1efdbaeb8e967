"""One cell of a sweep: run, time, score, record."""
