"""Training: one loop, noise assignment, pruning, distillation, autoencoders."""
