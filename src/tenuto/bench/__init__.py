"""Measure: one record per method, model and setting; a folder per family."""
