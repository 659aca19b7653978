"""Assemble training data for the direction of changes: `python -m change.experiments.direction_data ROOT`.

The masks have the classes new and vanished. ROOT/train holds the train split of LEVIR-CD in tiles of 512 pixels, and
synthetic scenes. Masks of the scenes give the direction of each change; those of LEVIR-CD do not. Nearly all changes in
LEVIR-CD are new buildings, so all are marked as new. Training with `--swap` exchanges the dates of half of the crops,
so that as many buildings vanish as appear. ROOT/val holds the val split of LEVIR-CD, marked in the same way. If ROOT
exists, nothing is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from change.common.classes import DIRECTIONS, NEW, parse_classes, write_classes
from change.common.errors import OneLineParser, UserError, run_command
from change.common.files import write_folder
from change.common.pictures import save_classes
from change.data import prepare
from change.data.masks import find_rule, read_mask
from change.experiments.buildings_data import TILE, add_pairs, is_wanted
from change.synthetic import render

SCENES_SEED = 4  # other scenes than those of train_demo.sh and buildings_data


def assemble(root: Path, levir: Path, count: int) -> None:
    """Write the folder `root`, completely or not at all.

    Args:
        root: Folder to write.
        levir: LEVIR-CD as prepared: train and val, each with A, B and label.
        count: Number of synthetic scenes.

    Raises:
        UserError: If a folder is missing or cannot be written.
    """
    for split in ("train", "val"):
        labels = levir / split / "label"
        if not labels.is_dir():
            raise UserError(f"no folder {labels}: set --levir to LEVIR-CD as prepared")

    def write(aside: Path) -> None:
        parts = aside / "parts"
        tiles = ["--tile", str(TILE), "--overlap", "0", "--list_path", str(parts / "list")]
        layout = ["--before", "A", "--after", "B", "--label", "label"]
        prepare.main(["levir", str(levir), str(parts / "levir"), *layout, *tiles])
        for split, source in (("train", parts / "levir"), ("val", levir)):
            add_pairs(aside / split, source / split, "levir")
            mark_as_new(aside / split / "label")
        if count:
            render.write_samples(parts / "scenes", count, TILE, SCENES_SEED, direction=True)
            add_pairs(aside / "train", parts / "scenes", "scene")
        write_classes(aside, parse_classes(DIRECTIONS))
        shutil.rmtree(parts)

    write_folder(root, write)


def mark_as_new(labels: Path) -> None:
    """Replace masks without classes by masks in which every change is new. The files need not be copies."""
    paths = sorted(path for path in labels.iterdir() if not path.name.startswith("."))
    rule = find_rule(str(labels), paths)
    for path in paths:
        changed = read_mask(path, rule.binary) > 0
        path.unlink()  # the file may be linked to the data set
        save_classes(np.where(changed, NEW, 0).astype(np.uint8), path.with_suffix(".png"))


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change.experiments.direction_data`; return the exit code."""
    parser = OneLineParser(
        prog="python -m change.experiments.direction_data",
        description="Combine LEVIR-CD and synthetic scenes, with the classes new and vanished.",
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to write; if it exists, nothing is done")
    parser.add_argument("--levir", metavar="FOLDER", type=Path, required=True, help="LEVIR-CD, as prepared")
    parser.add_argument("--count", type=int, default=120, help="synthetic scenes (default: 120)")
    given = parser.parse_args(arguments)
    if is_wanted(given.root, given.count):
        assemble(given.root, given.levir, given.count)
    return 0


if __name__ == "__main__":
    run_command(main)
