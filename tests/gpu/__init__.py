"""A session on a GPU: checks, table and training, `python -m tests.benchmark --gpu-session MINUTES`."""
