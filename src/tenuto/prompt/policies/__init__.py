"""Ways to read a prompt into fewer entries than tokens: one published method per file."""
