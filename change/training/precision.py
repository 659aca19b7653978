"""The number format of training: one path for float32, bf16, fp16 and NVIDIA Apex.

fp16 needs loss scaling and keeps one `GradScaler` for the whole run. For bf16 the scaler is disabled, and for float32
autocast is disabled too.
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
SMALLEST_SCALE = 2.0**-10  # the smallest useful scale of the loss in fp16; a healthy run stays above 1


class Precision:
    """The number format of a run: autocast for the forward pass, loss scaling for the backward pass and the step."""

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
        """Add the gradients of `loss` to those of the parameters; in fp16 they are scaled."""
        if self.apex:
            with self.apex.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
        else:
            torch.autograd.backward(self.scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights with the gradients from `backward`, then clear the gradients.

        In fp16 a step whose gradients are not finite is skipped. Several processes sum their gradients first, so all
        skip the same steps.
        """
        if self.apex:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def lost(self) -> bool:
        """Return whether fp16 has failed: steps were skipped however small the scale of the loss became."""
        return self.name == "fp16" and self.scaler.get_scale() < SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a run needs to resume: that of the scaler; empty without one."""
        return dict(self.apex.state_dict() if self.apex else self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.apex:
            self.apex.load_state_dict(state)
        else:
            self.scaler.load_state_dict(state)


@contextlib.contextmanager
def algorithms(deterministic: bool, precision: Precision) -> Iterator[None]:
    """Set the algorithms of a training run, and restore the previous settings at the end.

    On CUDA, cuDNN measures which algorithms are fastest, which pays because all crops have the same size. With
    `deterministic`, only algorithms that give the same bits every time are allowed. Without mixed precision, cuDNN
    does not use TF32.
    """
    cudnn = torch.backends.cudnn
    benchmark, allow_tf32 = cudnn.benchmark, cudnn.allow_tf32
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # torch requires it for cuBLAS, which reads it when it starts
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = precision.device.type == "cuda" and not deterministic
    if precision.name == "off":
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, allow_tf32
        torch.use_deterministic_algorithms(was_deterministic, warn_only=only_warned)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def nvidia_apex(device: torch.device) -> ModuleType:
    """Import `apex.amp` of NVIDIA Apex. Raises UserError if it is missing or belongs to another project."""
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
