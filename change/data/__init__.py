"""Data sets: from a download to what training reads."""
