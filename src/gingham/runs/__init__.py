"""Trained runs and checkpoints on disk."""
