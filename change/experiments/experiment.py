"""Train and score several arms under the same conditions: `python -m change experiment FILE.toml`.

An arm is a way to train. Every arm is either trained once per seed and scored on val, or trained once per fold of a
cross-validation inside train and scored on the val of that fold. The folder OUT/ARM_NUMBER holds the run of an arm with
seed or fold NUMBER; OUT/ARM_NUMBER/test holds its scores, where `python -m change compare` finds them. After an
interruption, run the same command again: runs with scores are skipped, and a training that has begun is continued.
Use another OUT for other settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from change.common.errors import OneLineParser, UserError
from change.common.files import home_folder
from change.experiments.programs import program_command, run
from change.experiments.settings import Options, build, parse_options, read_toml, refuse_own

BEST = "w"  # --best_name of every run

# Options of train.py that an experiment sets itself, and what to use instead.
OWN = {
    "save_path": "every arm has a folder of its own in the one that out names",
    "best_name": "it is the same for all arms",
    "continue_run": "runs that have begun in the folder that out names are continued",
    "resume": "the key start of an arm names the arm that it starts from",
    "checkpoint_path": "the key start of an arm names the arm that it starts from",
}


@dataclass(frozen=True)
class Arm:
    """A way to train, compared with others."""

    name: str
    start: str = ""  # the arm whose weights, with the same seed or fold, it starts from
    extends: str = ""  # the arm whose options it inherits
    epoch_share: float = 1.0  # share of the experiment's epochs, rounded up
    train: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise UserError(f"name {self.name!r}: choose one that can name a folder")
        if not 0 < self.epoch_share <= 1:
            raise UserError(f"epoch_share {self.epoch_share}: choose a share above 0, up to 1")
        refuse_own(self.train, {**OWN, "epoch": "use epoch_share", "pretrained": "set it in [train]"})


@dataclass(frozen=True)
class Experiment:
    """Arms and their common settings: either seeds, or folds with their lists."""

    root: str  # data set with train and val
    out: str  # folder of all runs
    train: Options  # options of train.py
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    lists: str = ""  # folder with FOLD/train.txt and FOLD/val.txt: see python -m change folds

    def __post_init__(self) -> None:
        if bool(self.seeds) == bool(self.folds):
            raise UserError("choose either seeds or folds, and give at least one")
        if bool(self.folds) != bool(self.lists):
            raise UserError("lists names the folder of the folds' lists: give it with folds, and only then")
        known: list[str] = []
        for arm in self.arms:
            for other in (arm.start, arm.extends):
                if other and other not in known:
                    earlier = ", ".join(known) or "none"
                    raise UserError(f"arm {arm.name}: {other} is not an earlier arm; the earlier arms are: {earlier}")
            if arm.name in known:
                raise UserError(f"two arms have the name {arm.name}: choose another one")
            known.append(arm.name)
        if not known:
            raise UserError("no arms: give at least one [[arm]]")
        if not isinstance(self.train.get("epoch"), int):
            raise UserError("[train] needs epoch, a whole number")
        own = {**OWN, "root": "give root for the whole experiment"}
        if self.seeds:
            own["seed"] = "give seeds"
        else:
            own["list"] = "give lists"
        refuse_own(self.train, own)
        for arm in self.arms:
            refuse_own(arm.train, own)

    def runs(self) -> Iterator[tuple[Arm, int]]:
        """Yield each arm with each seed or fold: seed by seed, or, with folds, arm by arm."""
        if self.seeds:
            yield from ((arm, seed) for seed in self.seeds for arm in self.arms)
        else:
            yield from ((arm, fold) for arm in self.arms for fold in self.folds)

    def folder(self, arm: str, number: int) -> Path:
        """Return the folder of a run."""
        return Path(self.out) / f"{arm}_{number}"

    def own_options(self, arm: Arm) -> Options:
        """Return the options that an arm sets, and those of the arms that it extends."""
        if not arm.extends:
            return dict(arm.train)
        extended = next(other for other in self.arms if other.name == arm.extends)
        return {**self.own_options(extended), **arm.train}

    def data_options(self, number: int) -> Options:
        """Return the options that choose the pairs for training, and the seed."""
        if self.seeds:
            return {"root": self.root, "seed": number}
        return {"root": f"{self.root}/train", "list": f"{self.lists}/{number}"}

    def train_options(self, arm: Arm, number: int) -> Options:
        """Return the options of train.py for a run.

        A continued run is given its options again, because train.py compares them with those in the saved state. Only
        the options that set the initial weights are left out.
        """
        folder = self.folder(arm.name, number)
        options: Options = {**self.data_options(number), **self.train, **self.own_options(arm), "best_name": BEST}
        options["epoch"] = math.ceil(int(options["epoch"]) * arm.epoch_share)
        has_begun = (folder / f"{BEST}.state.pth").is_file()
        if has_begun or arm.start:
            options.pop("pretrained", None)  # applies only to the encoder of a new network
        if has_begun:
            return {**options, "continue_run": str(folder)}
        if arm.start:
            options |= {"resume": True, "checkpoint_path": str(self.folder(arm.start, number) / f"{BEST}.pth")}
        return {**options, "save_path": str(folder)}

    def test_options(self, arm: Arm, number: int, amp: str, device: str) -> Options:
        """Return the options of test.py for a run."""
        folder = self.folder(arm.name, number)
        data: Options = {"test_root": f"{self.root}/val"}
        if self.folds:
            data = {"test_root": f"{self.root}/train", "list": f"{self.lists}/{number}/val.txt"}
        options: Options = {
            **data,
            "checkpoint_path": str(folder / f"{BEST}.pth"),
            "save_path": str(folder / "test"),
            "amp": amp,
        }
        if device:
            options["device"] = device
        return options


def read_experiment(path: Path) -> Experiment:
    """Read an experiment from a TOML file. Folders in the file are relative to the repository.

    Raises a UserError that names the file and the key if something in the file is wrong.
    """
    table = read_toml(path)
    arms = table.pop("arm", [])
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise UserError(f"{path}: arm is {arms!r}: write each arm as [[arm]]")
    built = tuple(build(Arm, arm, f"{path}, arm {arm.get('name', index)}") for index, arm in enumerate(arms, 1))
    for name in ("root", "out", "lists"):
        if isinstance(table.get(name), str):
            table[name] = str(home_folder() / table[name])
    return build(Experiment, table, str(path), arms=built)


def change_experiment(experiment: Experiment, given: argparse.Namespace, options: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the values of the command line. Raises UserError for options that an arm sets."""
    for arm in experiment.arms:
        for name in arm.train:
            if name in options:
                raise UserError(f"--{name} is set by the arm {arm.name}: leave it out, or change it in the TOML file")
    names = ("root", "out", "seeds", "folds", "lists")
    changed = {name: getattr(given, name) for name in names if getattr(given, name)}
    return replace(experiment, **changed, train={**experiment.train, **options})


def read_numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers separated by spaces."""
    try:
        return tuple(int(word) for word in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: give whole numbers, as in "0 1 2"') from None


def build_parser() -> OneLineParser:
    """Return the parser of the options that are not options of train.py."""
    parser = OneLineParser(
        prog="python -m change experiment",
        description="Train and score the arms of an experiment. Options of train.py that no arm sets can be added.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="TOML file, such as change/experiments/ablation.toml")
    parser.add_argument("--root", metavar="FOLDER", help="data set with train and val")
    parser.add_argument("--out", metavar="FOLDER", help="folder for all runs")
    parser.add_argument("--seeds", metavar="NUMBERS", type=read_numbers, help='seeds, as in "0 1 2"')
    parser.add_argument("--folds", metavar="NUMBERS", type=read_numbers, help='folds, as in "0 1 2"')
    parser.add_argument("--lists", metavar="FOLDER", help="folder of the folds' lists")
    parser.add_argument("--test_amp", default="auto", help="precision of test.py (default: auto)")
    parser.add_argument("--nproc", default="1", help="training processes, or gpu: one for each GPU (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands instead of running them")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change experiment`; return the exit code."""
    given, rest = build_parser().parse_known_args(list(arguments))
    experiment = read_experiment(given.file)
    options = parse_options(rest)
    experiment = change_experiment(experiment, given, options)
    device = str(options.get("device", ""))
    for arm, number in experiment.runs():
        if (experiment.folder(arm.name, number) / "test" / "metrics.json").is_file():
            continue
        training = program_command("train.py", experiment.train_options(arm, number), given.nproc)
        scoring = program_command("test.py", experiment.test_options(arm, number, given.test_amp, device))
        for command in (training, scoring):
            if code := run(command, given.dry_run):
                return code
    return 0
