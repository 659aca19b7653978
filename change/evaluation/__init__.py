"""Scores of checkpoints on image pairs, their intervals and comparisons."""
