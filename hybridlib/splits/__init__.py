"""Generations split between a large and a small denoiser: Hybrid SD, T-Stitch, EC-Diff (arXiv 2408.06646 and peers)."""
