"""Precision of training: one path for float32, bf16, fp16 and NVIDIA Apex.

float32 and bf16 need no scaling of the loss; fp16 keeps one `GradScaler` for the whole run. Off is the same path
with autocast and scaler disabled.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from change.common.devices import choose_amp
from change.common.errors import UserError

SMALLEST_SCALE = 2.0**-10  # of the loss in fp16; a healthy run stays above 1


class Precision:
    """Autocast around the forward pass, and the way from a loss to a step of the optimizer."""

    def __init__(self, name: str, device: torch.device) -> None:
        """`name`: one of `TRAINING_AMP_CHOICES`. Raises UserError if it is not available."""
        self.name = choose_amp(name, device, training=True)
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        self.apex = nvidia_apex(device) if self.name == "apex" else None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Once, before the first step: lets Apex patch network and optimizer in place."""
        if self.apex:
            self.apex.initialize(network, optimizer, opt_level="O1", verbosity=0)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradients of `loss`, in fp16 scaled, to those that are there."""
        if self.apex:
            with self.apex.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
        else:
            torch.autograd.backward(self.scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer by the gradients of `backward`, which are cleared after it.

        In fp16 a step whose gradients are not finite is left out: many processes sum theirs before, and agree.
        """
        if self.apex:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def lost(self) -> bool:
        """Whether fp16 has come to nothing: steps are left out whatever the scale of the loss."""
        return self.name == "fp16" and self.scaler.get_scale() < SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on: the scaler's state, empty where there is none."""
        return dict(self.apex.state_dict() if self.apex else self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        if self.apex:
            self.apex.load_state_dict(state)
        else:
            self.scaler.load_state_dict(state)


def choose_algorithms(deterministic: bool, device: torch.device) -> None:
    """Deterministic algorithms alone, or else, on CUDA, those that are measured to be fastest.

    Measuring pays because crops are all of one size. Call it before the device is first used.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; torch asks for it
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


def nvidia_apex(device: torch.device) -> ModuleType:
    """NVIDIA's `apex.amp`. Raises UserError where there is none, or another package of that name."""
    instead = "use --amp bf16 or --amp fp16"
    spec = importlib.util.find_spec("apex")
    if spec is None:
        raise UserError(f"--amp apex: NVIDIA Apex is not installed; {instead}")
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        raise UserError(f"--amp apex: the installed package apex is another project, not NVIDIA's; {instead}")
    if not any((folder / "amp").is_dir() for folder in folders):
        raise UserError(
            f"--amp apex: the installed NVIDIA Apex no longer has apex.amp (gone since May 2025); {instead}"
        )
    if device.type != "cuda":
        raise UserError(f"--amp apex: Apex needs a CUDA device, this is {device.type}; {instead}")
    return importlib.import_module("apex.amp")
