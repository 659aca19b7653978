"""How a run begins: from the options on the command line, or from the state of an interrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from change.checkpoint import load_checkpoint
from change.common.command_line import from_flat, refuse_without_effect, to_flat
from change.common.errors import UserError
from change.options.train import TrainOptions
from change.training.recipes import options_for_new_run
from change.training.run_folder import find_run, refuse_existing
from change.training.run_state import RunState, read_state

# Options that may change when a run is continued: where it computes, where the same data is, which snapshots it writes.
MAY_CHANGE = (
    "root",
    "list",
    "device",
    "workers",
    "cache",
    "cache_path",
    "val_batchsize",
    "save_freq",
    "save_minutes",
)


def options_for_continued_run(saved: Mapping[str, Any], given: Mapping[str, Any]) -> TrainOptions:
    """Build the options of a continued run: the saved ones, replaced by the given ones if these may change.

    Args:
        saved: the options that the run was started with, flat.
        given: the options on this command line, flat, with --continue_run among them.

    Raises:
        UserError: a given option would make it another run, or the saved ones are those of another version.
    """
    saved = dict(saved)
    if pseudo := saved.pop("pseudo", 0.0):  # an option of earlier versions
        raise UserError(
            f"the run was made with --pseudo {pseudo}, which no longer exists: continue it with the version that made "
            "it"
        )
    try:
        before = from_flat(TrainOptions, saved)
    except UserError as error:
        raise UserError(f"the run was made by another version ({error}): continue it with that one") from error
    folder = given.get("save_path", "")
    if folder and Path(folder).resolve() != Path(given["continue_run"]).resolve():
        raise UserError(
            f"--continue_run {given['continue_run']} writes to its own folder: leave out --save_path {folder}"
        )
    old, fixed = to_flat(before), {*MAY_CHANGE, "continue_run", "save_path", "best_name"}
    new = to_flat(from_flat(TrainOptions, {**old, **given}))
    differing = [
        f"--{name} {new[name]!r}, was {old[name]!r}" for name in given if name not in fixed and new[name] != old[name]
    ]
    if differing:
        raise UserError(
            f"--continue_run continues a run with its own options: leave out {'; '.join(differing)}, or start another "
            "run with another --save_path"
        )
    changed = {name: value for name, value in given.items() if name in MAY_CHANGE}
    options = from_flat(TrainOptions, {**old, **changed})
    refuse_without_effect(TrainOptions, changed, to_flat(options))
    return options


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        options: the options of the run.
        folder: the folder that it writes to.
        name: its name.
        state: the state to continue from; None for a new run.
    """

    options: TrainOptions
    folder: Path
    name: str
    state: RunState | None = None

    @property
    def weights_path(self) -> Path:
        """The file of the run's weights."""
        return self.folder / f"{self.name}.pth"

    @property
    def done(self) -> bool:
        """Whether the run has reached its last epoch."""
        return self.state is not None and self.state.progress.epoch == self.options.run.epoch


def with_encoder_of_checkpoint(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the encoder, the width and the patches of the checkpoint that a new run starts from, unless they are given.

    Raises UserError if the checkpoint cannot be read.
    """
    config = load_checkpoint(Path(given["checkpoint_path"])).config
    own: dict[str, Any] = {"backbone": config.backbone, "width": config.width}
    if config.cross and given.get("cross"):
        own["patch"] = config.patch
    return {**own, **given}


def plan_run(given: Mapping[str, Any]) -> Plan:
    """Plan a run from the options on the command line.

    Raises UserError for bad options, for a new run that would overwrite another, and for a state that does not fit.
    """
    if given.get("continue_run"):
        folder = Path(given["continue_run"])
        name = find_run(folder, given.get("best_name", ""))
        state = read_state(folder / f"{name}.state.pth")
        return Plan(options_for_continued_run(state.options, given), folder, name, state)
    options = options_for_new_run(given)
    if options.start.resume:
        options = options_for_new_run(with_encoder_of_checkpoint(given))
    folder, name = Path(options.run.save_path), options.run_name()
    refuse_existing(folder, name)
    return Plan(options, folder, name)
