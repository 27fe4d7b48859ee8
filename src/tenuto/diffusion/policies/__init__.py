"""One file per published method; each defines exactly one policy."""
