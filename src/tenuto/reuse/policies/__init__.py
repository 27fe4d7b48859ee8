"""Ways to join the caches of chunks: one published method per file."""
