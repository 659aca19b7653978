"""The state of a run: everything it needs to continue, in one file.

No RNG state is saved: the order of an epoch and every augmentation are derived from seed, epoch and sample; dropout and
refinement points from seed, step and process. On the CPU, a continued run ends with the same bits as one that was never
interrupted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from change.checkpoint import PassRecord, read_tensors, save_tensors
from change.common.bands import Bands, restore_bands
from change.common.classes import Classes, restore_classes
from change.common.errors import UserError, list_names
from models.encoders import IMAGENET_MEAN, IMAGENET_STD

FORMAT = "prx-change-run/1"
ADDED_LATER = (
    "average",
    "mean",
    "std",
    "threshold",
    "contents",
    "resolution",
    "bands",
    "classes",
)  # fields that runs of earlier versions lack


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs done.
        step: steps done in the current epoch.
        steps: steps done in total.
        best: the best F1 on val so far; -1 before the first validation.
        best_epoch: its epoch, from 1; 0 before the first validation.
        sums: total, classification and refinement loss, each summed over the pairs of this epoch so far.
        pairs: the number of these pairs.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    best: float = -1.0
    best_epoch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    pairs: int = 0


@dataclass
class RunState:
    """The content of NAME.state.pth.

    Attributes:
        options: the options that the run was started with, flat.
        data: digest of the names and sizes of the pairs.
        weights: state dict of the network.
        optimizer: state dict of the optimizer.
        precision_name: the number format in use, even if the options say "auto".
        precision: state dict of `Precision`.
        progress: how far the run has come.
        lineage: the records of the passes before this one.
        images: hashes of the images trained on so far, sorted.
        average: state dict of the moving average; empty without --ema.
        mean, std, threshold, resolution, bands, classes: values for the checkpoint that the run writes, see
            `Checkpoint`.
        contents: `Split.fingerprints` of the pairs of train and then of val.
    """

    options: dict[str, Any]
    data: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    precision_name: str
    precision: dict[str, Any]
    progress: Progress
    lineage: list[PassRecord]
    images: list[str]
    average: dict[str, Tensor] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    threshold: float = 0.5
    contents: list[str] = field(default_factory=list)
    resolution: tuple[float, float] | None = None
    bands: Bands | None = None
    classes: Classes | None = None

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all. Raises UserError if it cannot be written."""
        content = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        content |= {
            "format": FORMAT,
            "progress": asdict(self.progress),
            "lineage": [asdict(record) for record in self.lineage],
            "mean": list(self.mean),
            "std": list(self.std),
            "resolution": None if self.resolution is None else list(self.resolution),
            "bands": None if self.bands is None else asdict(self.bands),
            "classes": None if self.classes is None else self.classes.as_dict(),
        }
        save_tensors(content, path)


def read_state(path: Path) -> RunState:
    """Read the state of a run. Raises UserError if this version cannot continue from the file."""
    content = read_tensors(path)
    names = [spec.name for spec in fields(RunState)]
    missing = [name for name in names if name not in content and name not in ADDED_LATER]
    if content.get("format") != FORMAT or missing:
        raise UserError(
            f"{path} is no state that this version can continue from (format {content.get('format')!r}, missing: "
            f"{list_names(missing) or 'nothing'}); use the version that wrote it"
        )
    values = {name: content[name] for name in names if name in content}
    try:
        values["progress"] = Progress(**content["progress"])
        values["lineage"] = [PassRecord(**record) for record in content["lineage"]]
        for name in ("mean", "std", "resolution"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        values["bands"] = restore_bands(content.get("bands"))
        values["classes"] = restore_classes(content.get("classes"))
    except (KeyError, TypeError, ValueError) as error:
        raise unfit_state_error(path, error) from error
    return RunState(**values)


def unfit_state_error(path: Path, error: Exception) -> UserError:
    """Make the error for a state whose content does not fit this version."""
    return UserError(f"{path} does not fit this version ({error}): use the one that wrote it")
