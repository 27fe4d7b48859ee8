"""Plain ways to shorten a prompt, which every method is measured beside."""
