"""The part of the report about shortened prompts."""
