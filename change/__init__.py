"""Training, evaluation, prediction and data of PRX-Change, around the network in `models`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from change.detector import ChangeDetector

__all__ = ["ChangeDetector"]


def __getattr__(name: str) -> Any:
    """Import `ChangeDetector` when it is first used: importing the package stays fast and does not load torch."""
    if name in __all__:
        return getattr(importlib.import_module("change.detector"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
