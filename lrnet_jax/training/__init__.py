"""Optimiser, training and evaluation steps, checkpoints, reporting."""
