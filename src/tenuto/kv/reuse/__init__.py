"""How caches of chunks, each computed by itself, become the cache of one sequence."""
