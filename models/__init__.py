"""The network of PRX-Change: tensors in, tensors out. It knows no files, options, data sets or devices."""
