"""Rivals of the paper and of others, after their released code."""
