"""The result of one run in one CSV, from which `python -m change leaderboard` makes its page.

The first line holds the facts about the run as JSON, behind a #. The other lines are a table with the counts of every
image, from images.csv of test.py:

    # {"data": "clcd", "network": "bit", "seed": 0, ...}
    image,group,meets_train,tp,fp,fn,tn
    0001,7,False,1520,311,402,259911

`group` and `meets_train` are empty if `check` found nothing or was not run. The file has no pixels, and no path.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.files import write_whole
from change.evaluation.compare import COUNTS, Run, parse_rows, read_run
from change.experiments.arms import BEST, Arm, DataSet, Experiment

COLUMNS = ("image", "group", "meets_train", *COUNTS)
# For each annotation in `Facts`: the types of its value in JSON.
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, NoneType),
    "dict[str, Any]": (dict,),
    "list[str]": (list,),
}


@dataclass(frozen=True)
class Facts:
    """What the result of a run depends on, and the scores that do not follow from the counts of its images.

    Attributes:
        data: name of the data set.
        network: name of the arm.
        seed: seed of the training.
        split: name of the scored split.
        crops: crops that the weights were trained on, with those of the arms that the run started from.
        cropsize: side of a crop in pixels.
        recipe: --recipe of the training.
        pretrained: --pretrained of the training, or of that of the first arm that the run started from.
        config: fields of the `NetworkConfig`.
        device: device of the training.
        precision: number format of the training.
        seconds: duration of the training without validation, with that of the arms that the run started from. After an
            interruption within an epoch, only its second part counts.
        code: version of the code of the training.
        torch: version of torch.
        average_precision: 0 to 1; None if it is undefined.
        boundary_f1: 0 to 1; None if it is undefined.
        protocol: how images were predicted, as in metrics.json.
        fingerprint: hash of the scored images and masks.
        trained_on: scored images that were trained on.
    """

    data: str
    network: str
    seed: int
    split: str
    crops: int
    cropsize: int
    recipe: str
    pretrained: str
    config: dict[str, Any]
    device: str
    precision: str
    seconds: float
    code: str
    torch: str
    average_precision: float | None
    boundary_f1: float | None
    protocol: dict[str, Any]
    fingerprint: str
    trained_on: list[str]

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if not isinstance(value, KINDS[str(spec.type)]):
                raise TypeError(f"{spec.name} is {value!r}")


@dataclass(frozen=True)
class RunResult:
    """The content of a CSV: facts, the counts of every image, and which images are apart from train.

    Attributes:
        facts: the facts about the run.
        run: names, groups and counts of the images, for `change.evaluation.compare`.
        apart: bool (N,), whether an image neither is nor continues a train image; None if that is not known.
    """

    facts: Facts
    run: Run
    apart: NDArray[np.bool_] | None


def result_path(folder: Path, data: str, network: str, seed: int) -> Path:
    """Return the path of a run's CSV in the folder of an experiment's results."""
    return folder / data / f"{network}_{seed}.csv"


# --- write ---------------------------------------------------------------------------------------------------------


def write_result(experiment: Experiment, data: DataSet, arm: Arm, seed: int, folder: Path) -> Path:
    """Write the CSV of a run that was trained and scored, and return its path.

    Args:
        experiment: the experiment.
        data: the data set of the run.
        arm: the arm of the run.
        seed: the seed of the run.
        folder: the folder of the experiment's results.

    Raises:
        UserError: if a file of the run or of an arm that it started from is missing or damaged, or the CSV cannot be
            written.
    """
    facts = collect_facts(experiment, data, arm, seed)
    text = io.StringIO()
    text.write(f"# {json.dumps(asdict(facts), allow_nan=False)}\n")
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    with (experiment.folder(data, arm.name, seed) / "test" / "images.csv").open(newline="", encoding="utf-8") as file:
        writer.writerows(csv.DictReader(file))
    path = result_path(folder, facts.data, arm.name, seed)
    write_whole(path, text.getvalue().encode())
    return path


def collect_facts(experiment: Experiment, data: DataSet, arm: Arm, seed: int) -> Facts:
    """Collect the facts about a run from its folder. Raises UserError as `write_result` does."""
    from change.checkpoint import load_checkpoint  # here, because it imports torch, which the page does not need

    folder = experiment.folder(data, arm.name, seed)
    tested = read_run(folder / "test")
    checkpoint = load_checkpoint(folder / f"{BEST}.pth")
    record = checkpoint.lineage[-1]
    chain = [arm]
    while chain[-1].start:
        chain.append(experiment.arm(chain[-1].start))
    epochs = [read_epochs(experiment.folder(data, each.name, seed) / f"{BEST}.epochs.jsonl") for each in chain]
    pairs = count_train_pairs(
        data.root, str(record.options.get("list") or ""), str(record.options.get("classes") or "")
    )
    found = tested.metrics
    try:
        return Facts(
            data=data.name or Path(data.root).resolve().name,
            network=arm.name,
            seed=seed,
            split=found["data"]["split"],
            crops=pairs * sum(rows[-1]["epoch"] for rows in epochs),
            cropsize=record.options["cropsize"],
            recipe=record.options["recipe"],
            pretrained=checkpoint.lineage[0].options["pretrained"],
            config=asdict(checkpoint.config),
            device=record.versions["device"],
            precision=record.versions["precision"],
            seconds=round(sum(row["seconds"] for rows in epochs for row in rows), 1),
            code=record.versions["code"],
            torch=record.versions["torch"],
            average_precision=found["average_precision"],
            boundary_f1=found["boundary"]["f1"],
            protocol=found["protocol"],
            fingerprint=found["data"]["fingerprint"],
            trained_on=found["trained_on"],
        )
    except (IndexError, KeyError, TypeError) as error:
        raise UserError(f"{folder} lacks a fact for --results ({error!r}): train and score this run again") from error


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Read the lines about the epochs of a training. Raises UserError if there are none."""
    try:
        rows = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): train this run again") from error
    if not rows:
        raise UserError(f"{path} is empty: train this run again")
    return rows


@functools.cache
def count_train_pairs(root: str, lists: str, classes: str) -> int:
    """Count the train pairs of a data set, each of which gives one crop per epoch.

    `lists` and `classes`: --list and --classes of train.py.
    """
    from change.change_dataloader import find_split  # here, because the page does not need it
    from change.common.classes import choose_classes

    holds = choose_classes(Path(root), classes)
    return len(find_split(Path(root), "train", Path(lists) / "train.txt" if lists else None, holds=holds).pairs)


# --- read ----------------------------------------------------------------------------------------------------------


def read_result(path: Path) -> RunResult:
    """Read a CSV. Raises UserError if it was not written by `write_result`, or not into a folder of this layout."""
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not first.startswith("# "):
            raise ValueError("the first line is not a comment")
        facts = Facts(**json.loads(first[1:]))
        rows = sorted(csv.DictReader(io.StringIO("".join(rest), newline="")), key=lambda row: row["image"])
        images, groups, counts = parse_rows(rows)
        apart = read_apart(rows)
    except (csv.Error, KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by experiment --results ({error!r}): delete it") from error
    if path.parts[-2:] != result_path(Path(), facts.data, facts.network, facts.seed).parts:
        raise UserError(f"{path} holds the result of {facts.data}/{facts.network}_{facts.seed}: give it back that name")
    metrics = {
        "protocol": facts.protocol,
        "data": {"fingerprint": facts.fingerprint},
        "trained_on": facts.trained_on,
    }
    short = Path(facts.data) / path.name  # in messages
    return RunResult(facts, Run(short, metrics, images=images, groups=groups, counts=counts), apart)


def read_apart(rows: Sequence[Mapping[str, str]]) -> NDArray[np.bool_] | None:
    """Return which rows are of images apart from train; None if a row does not say. Raises KeyError for other words."""
    words = {"False": True, "True": False, "": None}
    found = [words[row["meets_train"]] for row in rows]
    return None if None in found else np.array(found, np.bool_)
