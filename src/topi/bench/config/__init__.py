"""Configuration: schema, composition, and what errors of Hydra mean."""
