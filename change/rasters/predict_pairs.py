"""The work of `python -m change predict`: every pair of a command line, shared by the processes."""

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
from change.common.errors import UserError, list_names
from change.common.files import write_folder
from change.common.gdal import quiet_gdal
from change.common.locks import hold_folder
from change.common.logs import start_logging
from change.prediction.detector import ChangeDetector
from change.rasters.findings import describe_files, describe_findings
from change.rasters.jobs import Job, count_pixels, find_jobs
from change.rasters.picture_pair import predict_pictures
from change.rasters.predict import RASTER_OPTIONS
from change.rasters.result_folder import METADATA, folders_to_keep, has_result
from change.rasters.scene import Settings, check_own_files, predict_rasters

log = logging.getLogger(__name__)


@distributed.join()
def predict_all(given: argparse.Namespace) -> int:
    """Predict every pair that the options name; return the exit code. `given`: what `parse_arguments` returns."""
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
    paths = [Path.cwd(), given.before, given.checkpoint_path, *filter(None, [given.rasters.get("aoi")])]
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
        if reads := detector.checkpoint.bands:
            raise UserError(f"{job.before}: this network reads {reads.described()}: give TIFF files with these bands")
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
            reads=detector.checkpoint.bands,
            classes=detector.checkpoint.classes,
        )
