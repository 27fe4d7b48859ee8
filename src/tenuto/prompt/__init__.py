"""Fewer prompt tokens before and while a prompt is read: merged spans, or dropped tokens."""
