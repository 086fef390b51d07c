"""Optimiser, training and evaluation steps, checkpoints, metrics, progress."""
