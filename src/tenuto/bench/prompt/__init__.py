"""Prompts read into fewer entries than tokens."""
