"""The options of train.py and test.py about the computation."""

from __future__ import annotations

from dataclasses import dataclass

from change.common.choices import COMPILE_CHOICES
from change.common.command_line import Name, option, require_at_least


@dataclass(frozen=True)
class ComputeOptions:
    """Computation."""

    device: Name = option("auto", "auto, cpu, cuda, mps, or the number of a GPU")
    workers: int = option(-1, "loader processes; -1: one per core, at most 8")
    compile: str = option("auto", "use torch.compile; auto: if it should save time", choices=COMPILE_CHOICES)

    def __post_init__(self) -> None:
        require_at_least(self, -1, "workers")
