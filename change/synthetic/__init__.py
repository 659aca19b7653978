"""Synthetic scenes: an invented world, drawn at two dates."""
