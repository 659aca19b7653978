"""Put the data for buildings together: `python -m change.experiments.buildings_data ROOT`.

ROOT/train holds LEVIR-CD's train in tiles of 512, the train of MS-HS-BCD and synthetic scenes; ROOT/val holds both val
as they are. If ROOT exists, nothing is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from change.common.errors import OneLineParser, UserError, run_command
from change.data import prepare
from change.synthetic import render

KINDS = ("A", "B", "label")
TILE = 512
OVERLAP = 384  # of the tiles: many more crops lie in some tile as a whole
SCENES_SEED = 3  # other scenes than those of train_demo.sh


def put_together(root: Path, levir: Path, ms_bcd: Path, count: int) -> None:
    """Write ROOT, whole or not at all.

    Args:
        root: folder to write.
        levir: LEVIR-CD, prepared: train and val, each with A, B and label.
        ms_bcd: MS-HS-BCD, prepared.
        count: number of synthetic scenes.

    Raises:
        UserError: if a folder is missing.
    """
    for source in (levir, ms_bcd):
        for split in ("train", "val"):
            labels = source / split / "label"
            if not labels.is_dir():
                raise UserError(f"no folder {labels}: set levir and ms_bcd to data sets with train and val")
    aside = root.with_name(f"{root.name}.part")
    parts = aside / "parts"
    if aside.exists():
        shutil.rmtree(aside)
    layout = ["--before", "A", "--after", "B", "--label", "label"]
    tiles = ["--tile", str(TILE), "--overlap", str(OVERLAP), "--list_path", str(parts / "list")]
    prepare.main(["levir", str(levir), str(parts / "levir"), *layout, *tiles])
    size = ["--count", str(count), "--size", str(TILE), "--seed", str(SCENES_SEED)]
    render.main([str(parts / "scenes"), *size])
    add_pairs(aside / "train", parts / "levir" / "train", "levir")
    add_pairs(aside / "train", parts / "scenes", "scene")
    add_pairs(aside / "train", ms_bcd / "train", "ms")
    add_pairs(aside / "val", levir / "val", "levir")
    add_pairs(aside / "val", ms_bcd / "val", "ms")
    shutil.rmtree(parts)
    aside.replace(root)


def add_pairs(folder: Path, source: Path, prefix: str) -> None:
    """Add the files of `source` to `folder` as PREFIX_NAME, by hard links where they work, else as copies."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / kind).iterdir()):
            if file.name.startswith("."):
                continue
            target = folder / kind / f"{prefix}_{file.name}"
            try:
                target.hardlink_to(file.resolve())
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, target)


def main(arguments: Sequence[str]) -> int:
    """Parse and write; return the exit code."""
    parser = OneLineParser(
        prog="python -m change.experiments.buildings_data",
        description="Put LEVIR-CD, MS-HS-BCD and synthetic scenes together.",
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to write; if it exists, nothing is done")
    parser.add_argument("--levir", metavar="FOLDER", type=Path, required=True, help="LEVIR-CD, as prepared")
    parser.add_argument("--ms_bcd", metavar="FOLDER", type=Path, required=True, help="MS-HS-BCD, as prepared")
    parser.add_argument("--count", type=int, default=240, help="synthetic scenes (default: 240)")
    given = parser.parse_args(arguments)
    if given.count < 1:
        raise UserError(f"--count {given.count}: choose 1 or more")
    if not given.root.is_dir():
        put_together(given.root, given.levir, given.ms_bcd, given.count)
    return 0


if __name__ == "__main__":
    run_command(main)
