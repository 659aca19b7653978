"""Published change-detection networks as decoders of our encoders, to compare PRX-Change with."""
