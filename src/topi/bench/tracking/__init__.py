"""The mirror of a store on W&B."""
