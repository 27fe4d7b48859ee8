"""Caching for diffusion transformers: features held between denoising steps."""
