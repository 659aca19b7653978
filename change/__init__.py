"""Training, evaluation and data of PRX-Change, around the network in `models`."""
