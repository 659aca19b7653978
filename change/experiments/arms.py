"""An experiment: its arms, its data sets, and its seeds or folds, as a TOML file describes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from change.common.errors import UserError
from change.common.files import home_folder
from change.experiments.settings import Options, build, read_toml, refuse_own

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
