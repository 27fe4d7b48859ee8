"""Sharded caches against the model's own."""
