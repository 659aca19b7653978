"""Experiments: series of runs of the programs, described by small TOML files."""
