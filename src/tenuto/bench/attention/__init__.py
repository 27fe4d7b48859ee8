"""Trained models that differ in attention and seed only."""
