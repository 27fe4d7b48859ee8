"""Contexts under every policy and budget: bytes, time, and what is still known."""
