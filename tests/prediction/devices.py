"""Pretend GPUs, for tests of what is chosen on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from change.common import distributed


def pretend_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the second of two on a machine with two GPUs, to which networks cannot really move."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "neighbours", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)
