"""The method of the paper (arXiv 2602.01609)."""
