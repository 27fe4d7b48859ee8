"""Placements of tokens on shards, and selectors of pages: one published method per file."""
