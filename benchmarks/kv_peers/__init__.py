"""Other libraries' KV caches beside ours, on the same examples. Nothing under ``src/`` imports them."""
