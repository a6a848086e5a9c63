"""Trajectories and the tree they form, denoised row by row in shared batches."""
