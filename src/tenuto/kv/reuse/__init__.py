"""What one request computed and another can use: prefixes of prompts, kept page by page in the tiers."""
