"""Experiments: several runs of the programs, as a small TOML file describes them."""
