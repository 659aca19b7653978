"""The number format of training: one path for float32, bf16, fp16 and NVIDIA Apex.

float32 and bf16 need no loss scaling; fp16 keeps one `GradScaler` for the whole run. Float32 takes the same path with
autocast and scaler disabled.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from change.common import distributed
from change.common.devices import choose_amp
from change.common.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SMALLEST_SCALE = 2.0**-10  # of the loss in fp16; a healthy run stays above 1


class Precision:
    """The number format of a run: autocast for the forward pass, and the way from a loss to an optimizer step."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Choose the format: `name` is one of `TRAINING_AMP_CHOICES`. Raises UserError if it is not available."""
        self.name = choose_amp(name, device, training=True)
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        self.apex = nvidia_apex(device) if self.name == "apex" else None
        if self.apex and distributed.processes() > 1:
            raise UserError("--amp apex is for one process: use --amp bf16 or --amp fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let Apex patch network and optimizer in place; call it once, before the first step."""
        if self.apex:
            self.apex.initialize(network, optimizer, opt_level="O1", verbosity=0)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradients of `loss` to those that are there; in fp16 they are scaled."""
        if self.apex:
            with self.apex.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
        else:
            torch.autograd.backward(self.scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step by the gradients of `backward`, then clear them.

        In fp16 a step whose gradients are not finite is skipped. Several processes sum their gradients before, so they
        agree on it.
        """
        if self.apex:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def lost(self) -> bool:
        """Return whether fp16 has failed: steps are skipped at any scale of the loss."""
        return self.name == "fp16" and self.scaler.get_scale() < SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to resume: the state of the scaler, empty without one."""
        return dict(self.apex.state_dict() if self.apex else self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.apex:
            self.apex.load_state_dict(state)
        else:
            self.scaler.load_state_dict(state)


@contextlib.contextmanager
def algorithms(deterministic: bool, precision: Precision) -> Iterator[None]:
    """Set the algorithms of a training run, and restore the settings that were there before.

    On CUDA, cuDNN measures which algorithms are fastest, which pays because crops have one size; with `deterministic`
    only those are allowed that give the same bits again. Without mixed precision, float32 is not computed in TF32.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get(WORKSPACE)
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # read when cuBLAS starts; torch asks for it
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = precision.device.type == "cuda" and not deterministic
    if precision.name == "off":
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before[:2]
        torch.use_deterministic_algorithms(before[2])
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def nvidia_apex(device: torch.device) -> ModuleType:
    """Import `apex.amp` of NVIDIA Apex. Raises UserError if it is missing or another package of that name."""
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
