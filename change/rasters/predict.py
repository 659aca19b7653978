"""Change between two dates: `python -m change predict BEFORE AFTER -o OUT`.

BEFORE and AFTER are two rasters (see `change.rasters.scene`), two image files, or two folders whose files
belong together by stem; or BEFORE alone is a text file of pairs, `before TAB after [TAB name]` a line. Of image files
come `probability.png` (255 for 1), `mask.png` (255 where changed), `preview.png` and `metadata.json`; where either one
is transparent no change is reported. One pair is written to OUT, several to OUT/NAME each; what is there already is
skipped, and processes started by torchrun share the pairs. A folder appears whole or not at all, and takes the place of
nothing but what this program wrote.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from change.common import distributed
from change.common.devices import AMP_CHOICES
from change.common.errors import OneLineParser, UserError, listed
from change.common.files import shipped_file, write_folder, write_whole
from change.common.images import UNREADABLE, read_opaque
from change.common.logs import start_logging
from change.common.pictures import mask_picture, panel, save_png
from change.options import check_threshold
from change.prediction.compiling import CHOICES as COMPILING
from change.prediction.detector import OVERLAP, TILE, ChangeDetector
from change.prediction.threshold import changed_pixels
from change.rasters.raster import SUFFIXES, open_raster
from change.rasters.scene import METADATA, VECTORS, Settings, predict_rasters

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoints/buildings_r18.pth"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
WRITTEN = {f"{name}.{kind}" for name in ("probability", "mask") for kind in ("tif", "png")}
WRITTEN |= {f"changes.{kind}" for kind in (*VECTORS, "qml")} | {METADATA, "preview.png", "report.html"}
LEFT = (".aux.xml", "-wal", "-shm", "-journal")  # what QGIS puts beside files that it opens


@dataclass(frozen=True)
class Job:
    """One pair, and the folder its files go to."""

    before: Path
    after: Path
    folder: Path


def find_jobs(before: Path, after: Path | None, out: Path) -> list[Job]:
    """The pairs that BEFORE and AFTER name. Raises UserError where they name none, or a file lacks its partner."""
    if after is None:
        if before.suffix.lower() not in (".txt", ".tsv", ".csv"):
            raise UserError(f"{before} alone is a text file of pairs, before TAB after a line; else give AFTER too")
        return listed_jobs(before, out)
    if before.is_dir() != after.is_dir():
        raise UserError(f"{before} and {after}: give two files or two folders")
    if not before.is_dir():
        for path in (before, after):
            if not path.is_file():
                raise UserError(f"no file at {path}: check the path")
        return [Job(before, after, out)]
    files = [by_stem(folder) for folder in (before, after)]
    if alone := sorted(files[0].keys() ^ files[1].keys()):
        raise UserError(f"without a partner in {before} and {after}: {listed(alone)}")
    if not files[0]:
        raise UserError(f"no rasters or images in {before}")
    return [Job(files[0][stem], files[1][stem], out / stem) for stem in files[0]]


def by_stem(folder: Path) -> dict[str, Path]:
    """The rasters and images of a folder. Raises UserError where two share a stem."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES + PICTURES and not path.name.startswith("."):
            if path.stem in files:
                raise UserError(f"{files[path.stem]} and {path.name}: keep one file of a stem")
            files[path.stem] = path
    return files


def listed_jobs(path: Path, out: Path) -> list[Job]:
    """The pairs of a text file; relative paths are relative to it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        between = next((sign for sign in ("\t", ",") if sign in line), None)
        parts = line.split(between)
        parts = [part.strip() for part in parts]
        if len(parts) not in (2, 3):
            raise UserError(f"{path}, line {number}: write before TAB after, and a name if you like")
        first, second = (path.parent / part for part in parts[:2])
        name = (parts[2] if len(parts) == 3 else "") or first.stem
        if not name or Path(name).name != name or name.startswith(".") or "\0" in line:
            raise UserError(f"{path}, line {number}: {name!r} is no name of a folder")
        jobs.append(Job(first, second, out / name))
    names = [job.folder for job in jobs]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise UserError(f"{path} names {listed(twice)} twice: give each pair a name of its own, as a third column")
    if not jobs:
        raise UserError(f"{path} names no pairs")
    return jobs


def predict_pictures(job: Job, folder: Path, detector: ChangeDetector, threshold: float, about: dict[str, Any]) -> None:
    """Write an image pair's files into `folder`, which is there and empty."""
    (before, opaque), (after, also) = (read_opaque(path) for path in (job.before, job.after))
    if before.shape != after.shape:
        sizes = [
            f"{path} has {i.shape[1]} x {i.shape[0]} pixels" for path, i in ((job.before, before), (job.after, after))
        ]
        raise UserError(f"{', '.join(sizes)}: bring both to one grid")
    data = opaque & also
    probability = detector.predict(before, after) * data
    names = [str(job.before)]
    changed = changed_pixels(torch.from_numpy(probability)[None], threshold, names)[0].numpy() & data
    save_png((probability * 255 + 0.5).astype(np.uint8), folder / "probability.png")
    save_png(mask_picture(changed), folder / "mask.png")
    save_png(panel(before, after, changed, None), folder / "preview.png")
    size = {"before": str(job.before), "after": str(job.after), "height": len(before), "width": before.shape[1]}
    metadata = {**size, **about, "pixels": {"data": int(data.sum()), "changed": int(changed.sum())}}
    write_whole(folder / METADATA, (json.dumps(metadata, indent=1) + "\n").encode())


def area(path: Path) -> int:
    """Pixels of a raster or an image; 0 where it cannot be read, which is said when its turn comes."""
    try:
        if path.suffix.lower() in PICTURES:
            with PIL.Image.open(path) as image:
                return int(image.width * image.height)
        with open_raster(path) as raster:
            return int(raster.width * raster.height)
    except (UserError, *UNREADABLE):
        return 0


def is_result(folder: Path) -> bool:
    """Whether a folder holds what this program wrote, whatever else is in it."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and {"threshold", "checkpoint"} <= metadata.keys()


def state_of(folder: Path, kept: Sequence[Path], overwrite: bool) -> str:
    """What is at a folder to be made: nothing, an empty folder counting as none, or "ours".

    Puts an earlier result back that was lost between two renames. Raises UserError for anything else, for a folder that
    holds one of the files in `kept`, and, with `overwrite`, for one that holds a file of another kind than this program
    writes: none of them may be replaced.
    """
    if not folder.name:
        raise UserError(f"-o {folder}: choose a folder of its own")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)
    if inside := [path for path in kept if path.resolve().is_relative_to(folder)]:
        raise UserError(f"-o {folder} holds {inside[0]}: choose a folder of its own")
    if not folder.exists():
        return ""
    if os.path.ismount(folder):
        raise UserError(f"{folder} is a mount point: choose a folder in it")
    if folder.is_dir() and not any(folder.iterdir()):
        return ""
    if not is_result(folder):
        raise UserError(f"{folder} is there already, and no result of this program: choose another -o")
    names = (path.name for path in folder.iterdir()) if overwrite else ()
    if others := sorted(
        name for name in names if re.sub(f"({'|'.join(map(re.escape, LEFT))})$", "", name) not in WRITTEN
    ):
        raise UserError(f"{folder} holds more than a result of this program: {listed(others)}; move that first")
    return "ours"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises UserError for values that are none."""
    parser = OneLineParser(
        prog="python -m change predict", description="Change between two rasters, images, or folders or lists of them."
    )
    parser.add_argument("before", metavar="BEFORE", type=Path, help="raster, image, folder; or a text file of pairs")
    parser.add_argument("after", metavar="AFTER", type=Path, nargs="?", help="the same of the later date")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--checkpoint_path", type=Path, help=f"default: {CHECKPOINT}")
    parser.add_argument("--threshold", default="", help="a number, or val; default: the checkpoint's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or a GPU's number (default: auto)")
    parser.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="precision; off: float32 (default: auto)")
    parser.add_argument("--tile", type=int, default=TILE, help=f"side of the tiles in pixels (default: {TILE})")
    parser.add_argument("--overlap", type=int, default=OVERLAP, help=f"of the tiles, in pixels (default: {OVERLAP})")
    parser.add_argument("--batch", type=int, default=1, help="tiles predicted at once (default: 1)")
    parser.add_argument("--compile", default="auto", choices=COMPILING, help="torch.compile (default: auto)")
    parser.add_argument("--tta", action="store_true", help="mean over the eight flips and quarter turns")
    rasters = parser.add_argument_group("rasters")
    rasters.add_argument("--bands", type=band_numbers, default=(1, 2, 3), help="red,green,blue (default: 1,2,3)")
    rasters.add_argument(
        "--stretch",
        default="auto",
        help="to 8 bits: none, percentiles such as 2,98, or auto: none for 8 bits, else 2,98 (default: auto)",
    )
    rasters.add_argument("--assume_aligned", action="store_true", help="pixel lies on pixel, whatever the files say")
    rasters.add_argument("--vectors", default="gpkg", choices=VECTORS, help="polygons as (default: gpkg)")
    rasters.add_argument("--min_area", type=float, default=0.0, help="of polygons, in square metres (default: 0)")
    rasters.add_argument(
        "--simplify", type=float, default=0.0, help="by how many pixels outlines may move (default: 0)"
    )
    given = parser.parse_args(arguments)
    given.checkpoint_path = given.checkpoint_path or shipped_file(CHECKPOINT)
    for name, least in (("tile", 32), ("overlap", 0), ("batch", 1), ("min_area", 0), ("simplify", 0)):
        if not least <= getattr(given, name) < 2**31:
            raise UserError(f"--{name} {getattr(given, name)}: choose {least} or more")
    check_threshold(given.threshold)
    return given


def band_numbers(text: str) -> tuple[int, ...]:
    """Three whole numbers, from 1."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers from 1, such as 3,2,1")
    return numbers


@distributed.joined()
def main(arguments: Sequence[str]) -> int:
    """Parse, predict every pair, write; return the exit code."""
    given = parsed(arguments)
    process, processes = distributed.rank(), distributed.processes()
    start_logging(process)
    out = given.out.resolve()
    jobs = [Job(j.before, j.after, j.folder.resolve()) for j in find_jobs(given.before, given.after, out)]
    alone = len(jobs) == 1 and jobs[0].folder == out
    kept = [
        Path.cwd(),
        given.before,
        given.checkpoint_path,
        *(path for job in jobs for path in (job.before, job.after)),
    ]
    if alone and state_of(out, kept, given.overwrite) and not given.overwrite:
        raise UserError(f"{given.out} is there already: choose another -o, or add --overwrite")
    pixels = sum(area(job.before) for job in jobs[process::processes])
    detector = ChangeDetector(
        given.checkpoint_path,
        device=given.device,
        amp=given.amp,
        tile=given.tile,
        overlap=given.overlap,
        tta=given.tta,
        batch=given.batch,
        compiling=given.compile,
        pixels=pixels,
    )
    threshold = detector.checkpoint.chosen_threshold(given.threshold)
    settings = Settings(
        threshold,
        given.tile,
        given.overlap,
        given.batch,
        given.bands,
        given.stretch,
        given.assume_aligned,
        given.min_area,
        given.simplify,
        given.vectors,
    )
    about = detector.describe()
    failed = []
    for job in jobs[process::processes]:

        def write(folder: Path, job: Job = job) -> None:
            if all(path.suffix.lower() in PICTURES for path in (job.before, job.after)):
                predict_pictures(job, folder, detector, threshold, {"threshold": threshold, **about})
            else:
                predict_rasters(job.before, job.after, folder, detector.predict_tile, settings, about, process == 0)

        try:
            if not alone and state_of(job.folder, kept, given.overwrite) and not given.overwrite:
                log.info("%s is there already: skipped", job.folder)
                continue
            write_folder(job.folder, write)
        except UserError as error:
            if alone:
                raise
            log.error("%s: %s", job.folder.name, error)
            failed.append(job.folder.name)
        else:
            log.info("written to %s", job.folder)
    if failed := sorted(name for names in distributed.gathered(failed) for name in names):
        raise UserError(f"{len(failed)} of {len(jobs)} pairs failed: {listed(failed)}; the others are done")
    return 0
