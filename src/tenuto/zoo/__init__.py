"""Models by name: bundled, pulled, or a user's folder."""
