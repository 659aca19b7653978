"""The settings of the GPU session: its options, its groups of variants, and the list of its training runs.

A list of runs is a TOML file. The options are those of train.py; a run's own take precedence over the defaults:

    [defaults]
    recipe = "scratch"
    cropsize = 256

    [[run]]
    name = "lite0_seed1"
    options = { seed = 1, epoch = 200 }
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from change.common.errors import UserError
from change.common.files import write_whole
from change.experiments.settings import Options, build, check_options, parse_options, read_toml, refuse_own
from change.training.recipes import options_for_new_run

PARTS = ("checks", "table", "train")
GROUP = re.compile(r"(infer|step|files)(\d+)(?:x(\d+))?")
# The most informative first: the time may be up before the end of the list.
GPU_GROUPS = (
    *("step256x32", "files256x32", "infer1024", "infer256", "infer2048", "step512x8", "infer512", "step256x8"),
    *("step256x64", "step512x32", "files512x8", "step256x16", "files256x64", "step512x16", "step512x64"),
)
CPU_GROUPS = ("infer256", "step256x4", "files256x4")
OWN = {
    "save_path": "the session chooses the folder",
    "best_name": "give the run a name",
    "continue_run": "the session starts new runs",
    "device": "give --device to the session",
}
DEFAULT_RUNS: dict[str, Any] = {
    "defaults": {
        "backbone": "efficientnet_lite0",
        "recipe": "scratch",
        "pretrained": "imagenet",
        "trainsize": 0,
        "cropsize": 256,
        "train_batchsize": 16,
        "epoch": 100,
        "cache": "device",
        "compile": "off",
    },
    "run": [{"name": f"lite0_seed{seed}", "options": {"seed": seed}} for seed in range(8)],
}


@dataclass(frozen=True)
class TrainingRun:
    """A training run: its name, which names its files, and its options of train.py."""

    name: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """The options of a session, which its parts read from `out`/session.json.

    Attributes:
        out: folder that everything is written to.
        scratch: folder for the run folders and other files that are not kept.
        device: auto, cpu, cuda or the number of a GPU.
        data: data folder with train and val.
        runs: the training runs in their order.
        parallel: number of processes that train at the same time.
        groups: names of the groups of variants in their order, see `read_group`.
        rounds: turns of each variant of the table.
        compiled: whether the table has compiled variants.
        checks: only checks whose names contain one of these are run; all if there are none.
    """

    out: Path
    scratch: Path
    device: str
    data: Path
    runs: list[TrainingRun]
    parallel: int
    groups: list[str]
    rounds: int
    compiled: bool
    checks: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write the options for the parts."""
        write_whole(self.out / "session.json", json.dumps(asdict(self), indent=1, default=str).encode())


def load_session(out: Path) -> Session:
    """Read the options of a session from its folder."""
    values = json.loads((out / "session.json").read_text())
    for name in ("out", "scratch", "data"):
        values[name] = Path(values[name])
    values["runs"] = [TrainingRun(**run) for run in values["runs"]]
    return Session(**values)


def device_name(device: torch.device) -> str:
    """Return the name of a device that our programs accept."""
    return str(device.index) if device.index else device.type


def read_group(name: str) -> tuple[str, int, int]:
    """Read the name of a group of variants: "step256x32" is training steps of 32 crops of 256 pixels.

    Returns:
        infer, step or files (steps that include the loader), the side in pixels, and the batch size.

    Raises:
        UserError: the name has another form, or the side is no multiple of 32.
    """
    found = GROUP.fullmatch(name)
    if not found or int(found[2]) % 32 or not int(found[2]) or found[3] == "0":
        raise UserError(f"--groups {name}: give infer, step or files with a side and a batch size, as in step256x32")
    return found[1], int(found[2]), int(found[3] or 1)


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options of train.py as its command line."""
    return [f"--{name}={value}" for name, value in options.items()]


def read_runs(path: Path | None, data: Path) -> list[TrainingRun]:
    """Read the list of training runs, or take `DEFAULT_RUNS` if `path` is None.

    Raises:
        UserError: the file is missing or no valid list, two runs share a name, or train.py would refuse an option.
    """
    table, place = (DEFAULT_RUNS, "the default runs") if path is None else (read_toml(path), str(path))
    if unknown := sorted(table.keys() - {"defaults", "run"}):
        raise UserError(f"{place}: unknown key {unknown[0]}; the keys are defaults and run")
    defaults, rows = table.get("defaults", {}), table.get("run", [])
    if not isinstance(defaults, dict) or not isinstance(rows, list) or not rows:
        raise UserError(f"{place}: give a table [defaults] and at least one table [[run]] with a name and options")
    check_options(defaults, f"{place}: defaults")
    runs = [read_run(row, defaults, f"{place}: run {number}", data) for number, row in enumerate(rows, 1)]
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{place}: two runs are named {twice[0]}: choose other names")
    return runs


def read_run(row: Any, defaults: Mapping[str, Any], place: str, data: Path) -> TrainingRun:
    """Read one run. Raises UserError as `read_runs` does."""
    if not isinstance(row, dict):
        raise UserError(f"{place} is {row!r}: give a table with a name and options")
    run = build(TrainingRun, row, place)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run.name):
        raise UserError(f"{place}: name is {run.name!r}: use letters, digits, _ and - only")
    options = {**defaults, **run.options}
    try:
        refuse_own(options, OWN)
        given = parse_options(to_arguments(options))  # ends the program with a line if a value is not accepted
        options_for_new_run({"root": str(data), **given, "save_path": "x"})
    except UserError as error:
        raise UserError(f"{place}, {run.name}: {error}") from error
    return TrainingRun(run.name, options)
