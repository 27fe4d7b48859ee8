"""Stores of prefixes: loading against computing."""
