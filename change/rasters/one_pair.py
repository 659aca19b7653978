"""One pair of files from Python: what `python -m change predict BEFORE AFTER -o OUT` does, and a summary of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from change.common.bands import Bands
from change.common.command_line import refuse_idle
from change.common.errors import UserError
from change.common.files import write_folder
from change.common.locks import hold_folder
from change.prediction.detector import ChangeDetector
from change.rasters.bands import ALPHA_CHOICES, check_numbers
from change.rasters.findings import describe_findings
from change.rasters.jobs import check_layer, find_jobs
from change.rasters.polygons import OUTLINES, VECTORS
from change.rasters.predict import RASTER_OPTIONS
from change.rasters.predict_pairs import predict_job
from change.rasters.result_folder import METADATA, folders_to_keep, has_result
from change.rasters.scene import Settings


@dataclass(frozen=True)
class Summary:
    """The changes found in a pair, and the paths of the files. `str(summary)` is the line that `predict` reports.

    Attributes:
        folder: the folder of the result, absolute.
        files: the files in it, by name.
        polygons: number of polygons; None if none are written, as for images without a place on earth.
        area_m2: area of the polygons in square metres; None if `polygons` is.
        compared: number of pixels that hold data at both dates.
        changed: number of those that changed.
        warnings: what is unusual about the input.
        text: what was found, in one line.
    """

    folder: Path
    files: dict[str, Path]
    polygons: int | None
    area_m2: float | None
    compared: int
    changed: int
    warnings: tuple[str, ...]
    text: str

    @property
    def share(self) -> float:
        """Changed share of the compared pixels, 0 to 1; 0 if nothing was compared."""
        return self.changed / self.compared if self.compared else 0.0

    def __str__(self) -> str:
        return self.text


def predict_pair(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    detector: ChangeDetector,
    threshold: float | None,
    overwrite: bool,
    progress: bool,
    options: Mapping[str, Any],
) -> Summary:
    """Predict two files and write the folder of the result; see `change.detector.ChangeDetector.predict_rasters`."""
    for path in (before, after):
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder: give a file; python -m change predict pairs the files of two folders")
    folder = Path(out).resolve()
    (job,) = find_jobs(Path(before), Path(after), folder)
    if threshold is not None and not 0 <= threshold < 1:
        raise UserError(f"threshold {threshold}: choose a number from 0 to below 1")
    aoi = Path(options["aoi"]) if options.get("aoi") else None
    if aoi:
        check_layer(aoi, "aoi")
    settings = Settings(
        threshold=detector.threshold if threshold is None else threshold,
        tile=detector.tile,
        overlap=detector.overlap,
        batch=detector.batch,
        **{**options, "aoi": aoi},
    )
    check_options(options, detector.checkpoint.bands)
    if job.has_pictures:
        refuse_idle(options, RASTER_OPTIONS, "PNG, JPEG and BMP images")
    weights = detector.checkpoint.path
    read = [path for path in (job.before, job.after, weights, aoi) if path]
    kept = folders_to_keep([Path.cwd(), *read])
    with hold_folder(folder, "out", beside=True):
        if has_result(folder, kept, overwrite, "out") and not overwrite:
            raise UserError(f"{out} already holds a result: choose another out, or add overwrite=True")
        write_folder(folder, partial(predict_job, job, detector=detector, settings=settings, progress=progress))
    return summarise(folder)


def check_options(options: Mapping[str, Any], reads: Bands | None) -> None:
    """Raise UserError for a value that the command line refuses and that is not checked when it is used.

    `reads`: the bands that the network reads; None for 8-bit RGB.
    """
    for name, choices in (("vectors", VECTORS), ("alpha", ALPHA_CHOICES), ("outlines", OUTLINES)):
        if name in options and options[name] not in choices:
            raise UserError(f"{name} {options[name]!r}: choose one of {', '.join(choices)}")
    for name in ("min_area", "simplify"):
        value = options.get(name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name} {value}: choose 0 or more, and a finite number")
    if options.get("outlines") == "square" and options.get("simplify"):
        raise UserError("simplify does nothing with outlines='square': leave it out")
    if options.get("bands") is not None:
        check_numbers(options["bands"], reads, "bands")


def summarise(folder: Path) -> Summary:
    """Summarise the result in a folder."""
    metadata = json.loads((folder / METADATA).read_bytes())
    polygons = metadata.get("polygons", {})
    return Summary(
        folder=folder,
        files={path.name: path for path in sorted(folder.iterdir())},
        polygons=polygons.get("count"),
        area_m2=polygons.get("area_m2"),
        compared=metadata["pixels"]["data"],
        changed=metadata["pixels"]["changed"],
        warnings=tuple(metadata["warnings"]),
        text=describe_findings(metadata),
    )
