"""Latent compression: the published grids, measured bytes and what they do to the image."""
