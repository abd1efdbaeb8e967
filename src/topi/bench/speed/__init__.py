"""Speed: measured pairs, FLOPs, predictions."""
