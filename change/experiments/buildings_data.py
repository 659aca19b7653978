"""Assemble the training data of the buildings checkpoint: `python -m change.experiments.buildings_data ROOT`.

ROOT/train holds the train split of LEVIR-CD in tiles of 512 pixels, the train split of MS-HS-BCD, and synthetic scenes.
ROOT/val holds both val splits unchanged. If ROOT exists, nothing is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError, run_command
from change.common.files import write_folder
from change.data import prepare
from change.data.known_sets import KINDS
from change.data.sources import read_sources, write_sources
from change.synthetic import render

TILE = 512
OVERLAP = 384  # default; large, so that most crops of an image lie completely in some tile
SCENES_SEED = 3  # train_demo.sh uses 1 and 2


def assemble(root: Path, levir: Path, ms_bcd: Path, count: int, overlap: int = OVERLAP) -> None:
    """Write the folder `root`, completely or not at all.

    Args:
        root: Folder to write.
        levir: LEVIR-CD as prepared: train and val, each with A, B and label.
        ms_bcd: MS-HS-BCD as prepared.
        count: Number of synthetic scenes.
        overlap: Overlap of neighbouring tiles in pixels.

    Raises:
        UserError: If a folder is missing or cannot be written.
    """
    for source in (levir, ms_bcd):
        for split in ("train", "val"):
            labels = source / split / "label"
            if not labels.is_dir():
                raise UserError(f"no folder {labels}: set levir and ms_bcd to data sets with train and val")

    def write(aside: Path) -> None:
        parts = aside / "parts"
        layout = ["--before", "A", "--after", "B", "--label", "label"]
        tiles = ["--tile", str(TILE), "--overlap", str(overlap), "--list_path", str(parts / "list")]
        prepare.main(["levir", str(levir), str(parts / "levir"), *layout, *tiles])
        add_pairs(aside / "train", parts / "levir" / "train", "levir")
        if count:
            render.write_samples(parts / "scenes", count, TILE, SCENES_SEED)
            add_pairs(aside / "train", parts / "scenes", "scene")
        add_pairs(aside / "train", ms_bcd / "train", "ms")
        add_pairs(aside / "val", levir / "val", "levir")
        add_pairs(aside / "val", ms_bcd / "val", "ms")
        shutil.rmtree(parts)

    write_folder(root, write)


def add_pairs(folder: Path, source: Path, prefix: str) -> None:
    """Add the files of `source` to `folder` as PREFIX_NAME: hard links if possible, else copies.

    What its tiles were cut from is recorded in `folder`, too.
    """
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / kind).iterdir()):
            if file.name.startswith("."):
                continue
            target = folder / kind / f"{prefix}_{file.name}"
            try:
                target.hardlink_to(file.resolve())
            except OSError:  # on another file system, or if not permitted
                shutil.copyfile(file, target)
    write_sources(folder, {f"{prefix}_{stem}": hashes for stem, hashes in read_sources(source).items()})


def is_wanted(root: Path, count: int) -> bool:
    """Return whether there is no folder `root` yet. Raises UserError if it is a file, or if --count is negative."""
    if count < 0:
        raise UserError(f"--count {count}: choose 0 or more")
    if root.exists() and not root.is_dir():
        raise UserError(f"ROOT {root} is not a folder: choose another one")
    return not root.is_dir()


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change.experiments.buildings_data`; return the exit code."""
    parser = OneLineParser(
        prog="python -m change.experiments.buildings_data",
        description="Combine LEVIR-CD, MS-HS-BCD and synthetic scenes.",
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to write; if it exists, nothing is done")
    parser.add_argument("--levir", metavar="FOLDER", type=Path, required=True, help="LEVIR-CD, as prepared")
    parser.add_argument("--ms_bcd", metavar="FOLDER", type=Path, required=True, help="MS-HS-BCD, as prepared")
    parser.add_argument("--count", type=int, default=240, help="synthetic scenes (default: 240)")
    parser.add_argument("--overlap", type=int, default=OVERLAP, help=f"of tiles, in pixels (default: {OVERLAP})")
    given = parser.parse_args(arguments)
    if not 0 <= given.overlap < TILE:
        raise UserError(f"--overlap {given.overlap}: choose 0 to {TILE - 1}")
    if is_wanted(given.root, given.count):
        assemble(given.root, given.levir, given.ms_bcd, given.count, given.overlap)
    return 0


if __name__ == "__main__":
    run_command(main)
