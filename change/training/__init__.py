"""Training: the loop, the files that it writes, and how a run continues."""
