"""The part of the report about diffusion transformers."""
