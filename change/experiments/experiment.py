"""Train and score several arms under the same conditions: `python -m change experiment FILE.toml`.

An arm is a way to train. Every arm is either trained once per seed and scored on val, or trained once per fold of a
cross-validation inside train and scored on the val of that fold. The folder OUT/ARM_NUMBER holds the run of an arm with
seed or fold NUMBER; OUT/ARM_NUMBER/test holds its scores, where `python -m change compare` finds them. With several
data sets, every arm is trained on each of them, in OUT/DATA/ARM_NUMBER. After an interruption, run the same command
again: runs with scores are skipped, and a training that has begun is continued. Use another OUT for other settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
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


def check_name(name: str) -> None:
    """Raise UserError if a name cannot name a folder."""
    if not name or Path(name).name != name:
        raise UserError(f"name {name!r}: choose one that can name a folder")


@dataclass(frozen=True)
class DataSet:
    """A data set on which every arm is trained and scored. The only one of an experiment can do without a name."""

    name: str
    root: str  # folder with train and val
    epoch: int = 0  # epochs on this data set; 0: those of [train]
    check: str = ""  # check.json of python -m change check; "": where test.py looks for it


@dataclass(frozen=True)
class Arm:
    """A way to train, compared with others."""

    name: str
    start: str = ""  # the arm whose weights, with the same seed or fold, it starts from
    extends: str = ""  # the arm whose options it inherits
    epoch_share: float = 1.0  # share of the experiment's epochs, rounded up
    seeds: tuple[int, ...] = ()  # seeds of this arm, if they are not those of the experiment
    train: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 0 < self.epoch_share <= 1:
            raise UserError(f"epoch_share {self.epoch_share}: choose a share above 0, up to 1")
        refuse_own(self.train, {**OWN, "epoch": "use epoch_share", "pretrained": "set it in [train]"})


@dataclass(frozen=True)
class Experiment:
    """Arms and their common settings: one or more data sets, and either seeds, or folds with their lists."""

    root: str  # data set with train and val; "" if `data` names several
    out: str  # folder of all runs
    train: Options  # options of train.py
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    lists: str = ""  # folder with FOLD/train.txt and FOLD/val.txt: see python -m change folds
    data: tuple[DataSet, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.seeds) == bool(self.folds):
            raise UserError("choose either seeds or folds, and give at least one")
        if bool(self.folds) != bool(self.lists):
            raise UserError("lists names the folder of the folds' lists: give it with folds, and only then")
        self.check_data()
        self.check_arms()
        if not isinstance(self.train.get("epoch"), int) and not all(data.epoch for data in self.sets()):
            raise UserError("[train] needs epoch, a whole number")
        own = {**OWN, "root": "give root for the whole experiment"}
        if self.seeds:
            own["seed"] = "give seeds"
        else:
            own["list"] = "give lists"
        refuse_own(self.train, own)
        for arm in self.arms:
            refuse_own(arm.train, own)

    def check_data(self) -> None:
        """Raise UserError if there is no data set, or if one does not fit the others."""
        if bool(self.root) == bool(self.data):
            raise UserError("choose either root, for one data set, or one [[data]] for each of several")
        if self.data and self.folds:
            raise UserError("folds work with one data set only: give root instead of [[data]]")
        known: list[str] = []
        for data in self.data:
            check_name(data.name)
            if data.name in known:
                raise UserError(f"two data sets have the name {data.name}: choose another one")
            if data.epoch < 0:
                raise UserError(f"data {data.name}: epoch {data.epoch}: choose 1 or more")
            known.append(data.name)

    def check_arms(self) -> None:
        """Raise UserError if there is no arm, or if one does not fit the earlier ones."""
        known: dict[str, Arm] = {}
        for arm in self.arms:
            for other in (arm.start, arm.extends):
                if other and other not in known:
                    earlier = ", ".join(known) or "none"
                    raise UserError(f"arm {arm.name}: {other} is not an earlier arm; the earlier arms are: {earlier}")
            if arm.name in known:
                raise UserError(f"two arms have the name {arm.name}: choose another one")
            if arm.seeds and self.folds:
                raise UserError(f"arm {arm.name}: seeds cannot be chosen with folds")
            if arm.start and not set(self.seeds_of(arm)) <= set(self.seeds_of(known[arm.start])):
                raise UserError(f"arm {arm.name} has seeds that its start {arm.start} lacks: give both the same")
            known[arm.name] = arm
        if not known:
            raise UserError("no arms: give at least one [[arm]]")

    def sets(self) -> tuple[DataSet, ...]:
        """Return the data sets; the one that `root` names has no name."""
        return self.data or (DataSet("", self.root),)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Return the seeds of an arm."""
        return arm.seeds or self.seeds

    def runs(self) -> Iterator[tuple[DataSet, Arm, int]]:
        """Yield each data set with each arm and seed or fold: seed by seed, or, with folds, arm by arm."""
        if self.folds:
            yield from ((data, arm, fold) for data in self.sets() for arm in self.arms for fold in self.folds)
            return
        for seed in dict.fromkeys([*self.seeds, *(seed for arm in self.arms for seed in arm.seeds)]):
            for data in self.sets():
                yield from ((data, arm, seed) for arm in self.arms if seed in self.seeds_of(arm))

    def folder(self, data: DataSet, arm: str, number: int) -> Path:
        """Return the folder of a run."""
        return Path(self.out) / data.name / f"{arm}_{number}"

    def arm(self, name: str) -> Arm:
        """Return the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def own_options(self, arm: Arm) -> Options:
        """Return the options that an arm sets, and those of the arms that it extends."""
        if not arm.extends:
            return dict(arm.train)
        return {**self.own_options(self.arm(arm.extends)), **arm.train}

    def data_options(self, data: DataSet, number: int) -> Options:
        """Return the options that choose the pairs for training, and the seed."""
        if self.seeds:
            return {"root": data.root, "seed": number}
        return {"root": f"{data.root}/train", "list": f"{self.lists}/{number}"}

    def train_options(self, data: DataSet, arm: Arm, number: int) -> Options:
        """Return the options of train.py for a run.

        A continued run is given its options again, because train.py compares them with those in the saved state. Only
        the options that set the initial weights are left out.
        """
        folder = self.folder(data, arm.name, number)
        options: Options = {
            **self.data_options(data, number),
            **self.train,
            **self.own_options(arm),
            "best_name": BEST,
        }
        options["epoch"] = math.ceil((data.epoch or int(options["epoch"])) * arm.epoch_share)
        has_begun = (folder / f"{BEST}.state.pth").is_file()
        if has_begun or arm.start:
            options.pop("pretrained", None)  # applies only to the encoder of a new network
        if has_begun:
            return {**options, "continue_run": str(folder)}
        if arm.start:
            start = self.folder(data, arm.start, number) / f"{BEST}.pth"
            options |= {"resume": True, "checkpoint_path": str(start)}
        return {**options, "save_path": str(folder)}

    def test_options(self, data: DataSet, arm: Arm, number: int, amp: str, device: str) -> Options:
        """Return the options of test.py for a run."""
        folder = self.folder(data, arm.name, number)
        chosen: Options = {"test_root": f"{data.root}/val"}
        if self.folds:
            chosen = {"test_root": f"{data.root}/train", "list": f"{self.lists}/{number}/val.txt"}
        if data.check:
            chosen["check"] = data.check
        options: Options = {
            **chosen,
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
    arms, data = (read_tables(table, kind, path) for kind in ("arm", "data"))
    for part in (table, *data):
        for name in ("root", "out", "lists", "check"):
            if isinstance(part.get(name), str):
                part[name] = str(home_folder() / part[name])
    if data:
        table.setdefault("root", "")
    built: dict[str, Any] = {
        "arms": tuple(build(Arm, arm, f"{path}, arm {arm.get('name', index)}") for index, arm in enumerate(arms, 1)),
        "data": tuple(build(DataSet, one, f"{path}, data {one.get('name', i)}") for i, one in enumerate(data, 1)),
    }
    return build(Experiment, table, str(path), **built)


def read_tables(table: dict[str, Any], kind: str, path: Path) -> list[dict[str, Any]]:
    """Remove the tables [[arm]] or [[data]] from an experiment's table and return them."""
    found = table.pop(kind, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise UserError(f"{path}: {kind} is {found!r}: write each {kind} as [[{kind}]]")
    return found


def change_experiment(experiment: Experiment, given: argparse.Namespace, options: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the values of the command line. Raises UserError for options that an arm sets."""
    for arm in experiment.arms:
        for name in arm.train:
            if name in options:
                raise UserError(f"--{name} is set by the arm {arm.name}: leave it out, or change it in the TOML file")
    for data in experiment.data:
        if data.epoch and "epoch" in options:
            raise UserError(f"--epoch is set by the data set {data.name}: leave it out, or change it in the TOML file")
    names = ("root", "out", "seeds", "folds", "lists")
    changed = {name: getattr(given, name) for name in names if getattr(given, name)}
    if given.seeds:
        changed["arms"] = tuple(replace(arm, seeds=()) for arm in experiment.arms)
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
    parser.add_argument("--only", metavar="PATTERNS", default="*", help="only these, as in 'CLCD/bit_* CLCD/prx_0'")
    parser.add_argument(
        "--results", metavar="FOLDER", type=Path, help="also write one CSV per run, for python -m change leaderboard"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands instead of running them")
    return parser


def choose_runs(experiment: Experiment, patterns: str) -> list[tuple[DataSet, Arm, int]]:
    """Return the runs whose folder in OUT matches one of the patterns. Raises UserError if there is none."""
    chosen = []
    for data, arm, number in experiment.runs():
        name = experiment.folder(data, arm.name, number).relative_to(experiment.out).as_posix()
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            chosen.append((data, arm, number))
    if not chosen:
        raise UserError(f"--only {patterns!r} matches no run: --dry_run prints all of them")
    return chosen


def refuse_missing_checks(runs: Sequence[tuple[DataSet, Arm, int]]) -> None:
    """Raise UserError before the first training if a file that scoring needs is missing."""
    for data, _, _ in runs:
        if data.check and not Path(data.check).is_file():
            folder = Path(data.check).parent
            raise UserError(f"no {data.check}: python -m change check {data.root} --save_path {folder} writes it")


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change experiment`; return the exit code."""
    given, rest = build_parser().parse_known_args(list(arguments))
    experiment = read_experiment(given.file)
    options = parse_options(rest)
    experiment = change_experiment(experiment, given, options)
    if given.results and experiment.folds:
        raise UserError("--results needs seeds: a leaderboard cannot show folds")
    device = str(options.get("device", ""))
    runs = choose_runs(experiment, given.only)
    if not given.dry_run:
        refuse_missing_checks(runs)
    for data, arm, number in runs:
        if not (experiment.folder(data, arm.name, number) / "test" / "metrics.json").is_file():
            training = program_command("train.py", experiment.train_options(data, arm, number), given.nproc)
            scoring = program_command("test.py", experiment.test_options(data, arm, number, given.test_amp, device))
            for command in (training, scoring):
                if code := run(command, given.dry_run):
                    return code
        if given.results and not given.dry_run:
            from change.experiments.run_result import write_result  # here, because it imports this module

            write_result(experiment, data, arm, number, given.results)
    return 0
