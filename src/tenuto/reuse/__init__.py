"""What one request computed and another can use: prefixes of prompts, and chunks that are joined into one cache."""
