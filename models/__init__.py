"""The network of PRX-Change: tensors in, tensors out. It does not deal with files, options, data sets or devices."""
