"""Step caches, which skip steps and stack with the other methods."""
