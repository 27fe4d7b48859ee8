"""Attentions that are trained: one published method per file."""
