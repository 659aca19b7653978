"""The Python interface, `from change.detector import ChangeDetector`; its code is in `change.prediction.detector`."""

from change.prediction.detector import ChangeDetector

__all__ = ["ChangeDetector"]
