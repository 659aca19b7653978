"""The options of train.py and test.py. Nothing here needs torch, which takes seconds to import."""
