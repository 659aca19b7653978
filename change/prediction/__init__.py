"""From two images to probabilities and masks, with a trained network."""
