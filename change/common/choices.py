"""Values that several command lines offer. Nothing here needs torch, which takes seconds to import."""

AMP_CHOICES = ("auto", "off", "bf16", "fp16")
TRAINING_AMP_CHOICES = (*AMP_CHOICES, "apex")
COMPILE_CHOICES = ("auto", "on", "off")
TILE = 1024  # side of the tiles of large images in pixels
OVERLAP = 256  # pixels by which neighbouring tiles overlap
