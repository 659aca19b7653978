"""Change between two dates: `python -m change predict BEFORE AFTER -o OUT`.

BEFORE and AFTER are two rasters (see `change.rasters.scene`), two image files (see `change.rasters.picture_pair`), or
two folders whose files belong together by stem. Without AFTER, BEFORE is a text file with one pair per line: BEFORE TAB
AFTER [TAB NAME].

The files of one pair are written to OUT, those of several pairs to OUT/NAME each. Pairs that already have a result are
skipped. Processes started by torchrun share the pairs. A folder appears complete or not at all, and it replaces nothing
but an earlier result of this program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from change.common import distributed
from change.common.command_line import refuse_idle
from change.common.devices import AMP_CHOICES
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import DEFAULT_CHECKPOINT, shipped_file, write_folder
from change.common.locks import hold_folder
from change.common.logs import start_logging
from change.prediction.compiling import CHOICES as COMPILING
from change.prediction.detector import OVERLAP, TILE, ChangeDetector
from change.prediction.threshold import check_threshold
from change.rasters.bands import ALPHA_CHOICES
from change.rasters.findings import describe_files, describe_findings
from change.rasters.gdal import quiet_gdal
from change.rasters.jobs import Job, count_pixels, find_jobs
from change.rasters.picture_pair import predict_pictures
from change.rasters.polygons import VECTORS
from change.rasters.result_folder import METADATA, folders_to_keep, has_result
from change.rasters.scene import Settings, check_own_files, predict_rasters

log = logging.getLogger(__name__)

LEAST = {"tile": 32, "overlap": 0, "batch": 1, "min_area": 0, "simplify": 0}
LIMIT = 2**31  # the values above must be less than this
POLYGON_OPTIONS = ("min_area", "simplify")
RASTER_OPTIONS = ("bands", "alpha", "stretch", "assume_aligned", "vectors", *POLYGON_OPTIONS)


@distributed.join()
def main(arguments: Sequence[str]) -> int:
    """Predict every pair that the command line names; return the exit code."""
    given = parse_arguments(arguments)
    start_logging(distributed.rank())
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            stack.enter_context(hold_folder(given.out.resolve(), "-o", beside=True))
        distributed.wait()  # the others write too
        return predict_jobs(given)


def predict_jobs(given: argparse.Namespace) -> int:
    """Predict every pair that the options name, or this process's share of them; return the exit code."""
    process, processes = distributed.rank(), distributed.processes()
    out = given.out.resolve()
    jobs = [replace(job, folder=job.folder.resolve()) for job in find_jobs(given.before, given.after, out)]
    if all(job.has_pictures for job in jobs):
        refuse_idle(given.rasters, RASTER_OPTIONS, "PNG, JPEG and BMP images")
    else:
        check_own_files(given.rasters.get("vectors", Settings.vectors))
    is_single = len(jobs) == 1 and jobs[0].folder == out
    kept = folders_to_keep(input_paths(given, jobs))
    if is_single and has_result(out, kept, given.overwrite) and not given.overwrite:
        raise UserError(f"{given.out} already holds a result: choose another -o, or add --overwrite")
    own = jobs[process::processes]
    detector = make_detector(given, pixels=sum(count_pixels(job.before) for job in own))
    settings = make_settings(given, threshold=detector.checkpoint.choose_threshold(given.threshold))
    failed = []
    for job in own:
        write = partial(predict_job, job, detector=detector, settings=settings, progress=process == 0)
        try:
            if not is_single and has_result(job.folder, kept, given.overwrite) and not given.overwrite:
                log.info("%s already holds a result: skipped", job.folder)
                continue
            write_folder(job.folder, write)
        except UserError as error:
            if is_single:
                raise
            log.error("%s: %s", job.folder.name, error)
            failed.append(job.folder.name)
        else:
            prefix = "" if is_single else f"{job.folder.name}: "
            log.info("%s%s", prefix, describe_findings(json.loads((job.folder / METADATA).read_bytes())))
            log.info("%s%s", prefix, describe_files(job.folder))
    all_failed = sorted(name for names in distributed.gather(failed) for name in names)
    if all_failed:
        raise UserError(f"{len(all_failed)} of {len(jobs)} pairs failed: {list_names(all_failed)}; the others are done")
    return 0


def input_paths(given: argparse.Namespace, jobs: Sequence[Job]) -> list[Path]:
    """Return the paths that no result may replace: the current folder, and every file that is read."""
    paths = [Path.cwd(), given.before, given.checkpoint_path]
    for job in jobs:
        paths += [job.before, job.after]
    return paths


def make_detector(given: argparse.Namespace, pixels: int) -> ChangeDetector:
    """Load the checkpoint; `pixels` is the number of pixels to predict. Raises UserError as `ChangeDetector` does."""
    return ChangeDetector(
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


def make_settings(given: argparse.Namespace, threshold: float) -> Settings:
    """Collect the settings for scenes from the command line."""
    return Settings(
        threshold=threshold,
        tile=given.tile,
        overlap=given.overlap,
        batch=given.batch,
        **given.rasters,
    )


def predict_job(job: Job, folder: Path, *, detector: ChangeDetector, settings: Settings, progress: bool) -> None:
    """Predict one pair and write its files into `folder`, which exists and is empty."""
    about: dict[str, Any] = detector.describe()
    if job.has_pictures:
        predict_pictures(job.before, job.after, folder, detector=detector, threshold=settings.threshold, about=about)
        return
    with quiet_gdal():
        predict_rasters(
            job.before,
            job.after,
            folder,
            predict=detector.predict_tile,
            settings=settings,
            about=about,
            progress=progress,
        )


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Returns:
        All options with their values, except `RASTER_OPTIONS`: `rasters` holds those of them that are given.

    Raises:
        UserError: for a value out of range, for an option that has no effect with --vectors none, or if the default
            checkpoint is missing.
    """
    given = make_parser().parse_args(arguments)
    given.checkpoint_path = given.checkpoint_path or shipped_file(DEFAULT_CHECKPOINT)
    given.rasters = {name: value for name, value in vars(given).items() if name in RASTER_OPTIONS}
    for name, least in LEAST.items():
        value = getattr(given, name, least)
        if not least <= value < LIMIT:
            raise UserError(f"--{name} {value}: choose {least} or more, and less than {LIMIT}")
    check_threshold(given.threshold)
    if given.rasters.get("vectors") == "none":
        refuse_idle(given.rasters, POLYGON_OPTIONS, "--vectors none")
    return given


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m change predict",
        description="Find change between two rasters or images, or between many pairs of them.",
    )
    parser.add_argument("before", metavar="BEFORE", type=Path, help="raster, image or folder; or a text file of pairs")
    parser.add_argument(
        "after", metavar="AFTER", type=Path, nargs="?", help="the same for the later date; none with a text file"
    )
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--checkpoint_path", type=Path, help=f"weights to use (default: {DEFAULT_CHECKPOINT})")
    parser.add_argument("--threshold", default="", help="a number, or val (default: that of the checkpoint)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or the number of a GPU (default: auto)")
    parser.add_argument(
        "--amp", default="auto", choices=AMP_CHOICES, help="number format; off means float32 (default: auto)"
    )
    parser.add_argument("--tile", type=int, default=TILE, help=f"side of the tiles in pixels (default: {TILE})")
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, help=f"overlap of the tiles in pixels (default: {OVERLAP})"
    )
    parser.add_argument("--batch", type=int, default=1, help="number of tiles predicted at once (default: 1)")
    parser.add_argument("--compile", default="auto", choices=COMPILING, help="use torch.compile (default: auto)")
    parser.add_argument("--tta", action="store_true", help="average over the eight flips and quarter turns")
    rasters = parser.add_argument_group(
        "rasters", "Not for PNG, JPEG and BMP images.", argument_default=argparse.SUPPRESS
    )
    rasters.add_argument(
        "--bands",
        type=band_numbers,
        help="bands for red,green,blue (default: those that the file declares so, else 1,2,3)",
    )
    rasters.add_argument(
        "--alpha",
        choices=ALPHA_CHOICES,
        help="whether a band declared as alpha is transparency; auto looks at its levels (default: auto)",
    )
    rasters.add_argument(
        "--stretch",
        help="how to get 8 bits: none, two percentiles such as 2,98, or auto, which is none for 8-bit rasters and 2,98 "
        "for others (default: auto)",
    )
    rasters.add_argument(
        "--assume_aligned",
        action="store_true",
        default=argparse.SUPPRESS,
        help="take pixels at the same row and column as the same place, whatever the files say",
    )
    rasters.add_argument("--vectors", choices=VECTORS, help="format of the polygons (default: gpkg)")
    rasters.add_argument("--min_area", type=float, help="smallest polygon to keep, in square metres (default: 0)")
    rasters.add_argument("--simplify", type=float, help="how far outlines may move, in pixels (default: 0)")
    return parser


def band_numbers(text: str) -> tuple[int, ...]:
    """Read three band numbers, such as "3,2,1". Raises argparse's error for anything else."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers from 1, such as 3,2,1")
    return numbers
