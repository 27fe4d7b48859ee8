"""Published methods of the KV family: one paper, one file."""
