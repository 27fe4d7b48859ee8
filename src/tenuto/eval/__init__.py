"""Measure: one Run per policy, model and setting."""
