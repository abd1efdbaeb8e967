"""Editors: pipelines, how they are loaded, and how a sample is edited."""
