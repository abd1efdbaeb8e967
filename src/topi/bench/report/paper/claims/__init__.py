"""The claims of the paper, the comparisons that decide them, and the verdicts."""
