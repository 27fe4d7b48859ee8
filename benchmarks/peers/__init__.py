"""Other libraries' caches as rows of our benchmark: one file per library. Nothing under ``src/`` imports them."""
