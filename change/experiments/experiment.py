"""Train and score several arms under the same conditions: `python -m change experiment FILE.toml`.

An arm is a way to train. Every arm is either trained once per seed and scored on val, or trained once per fold of a
cross-validation inside train and scored on the val of that fold. The folder OUT/ARM_NUMBER holds the run of an arm with
seed or fold NUMBER; OUT/ARM_NUMBER/test holds its scores, where `python -m change compare` finds them. With several
data sets, every arm is trained on each of them, in OUT/DATA/ARM_NUMBER. After an interruption, run the same command
again: runs with scores are skipped, and a training that has begun is continued. Use another OUT for other settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from change.common.errors import OneLineParser, UserError
from change.experiments.arms import Arm, DataSet, Experiment, read_experiment
from change.experiments.programs import program_command, run
from change.experiments.run_result import write_result
from change.experiments.settings import parse_options


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
            write_result(experiment, data, arm, number, given.results)
    return 0
