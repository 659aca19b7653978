"""The network of PRX-Change: torch in, torch out. Knows no files, options, data sets or devices."""
