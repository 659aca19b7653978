"""The Python interface: `from change import ChangeDetector`."""

from __future__ import annotations

import os
from typing import Any

from change.prediction import detector
from change.rasters.one_pair import Summary, predict_pair

__all__ = ["ChangeDetector", "Summary"]


class ChangeDetector(detector.ChangeDetector):
    """A checkpoint that is ready to predict: `predict` for images, `predict_rasters` for files with a place on earth.

    The arguments and attributes are those of `change.prediction.detector.ChangeDetector`. Without arguments, it is the
    default checkpoint on the best device.
    """

    def predict_rasters(
        self,
        before: str | os.PathLike[str],
        after: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        threshold: float | None = None,
        overwrite: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> Summary:
        """Predict two files and write mask, probability, polygons, report and metadata into a folder.

        The files are those that `python -m change predict BEFORE AFTER -o OUT` writes; docs/rasters.md describes them.
        Warnings about the input go to the logger `change.rasters` and into the summary.

        Args:
            before: raster or image file.
            after: the same for the later date. It is warped to the grid of `before` if necessary.
            out: folder to write.
            threshold: 0 to below 1; by default that of the checkpoint.
            overwrite: whether to replace an earlier result in `out`.
            progress: whether to show a progress bar.
            options: further settings for rasters, as in `change.rasters.scene.Settings`: bands, alpha, stretch,
                assume_aligned, align, vectors, aoi, min_area, simplify, outlines.

        Returns:
            What was found, and the files.

        Raises:
            UserError: if a file cannot be read, an option has an impossible value, `out` holds something else or a
                result that must not be replaced, or a package is missing (`pip install ".[geo]"`).
            TypeError: for an option that does not exist.
        """
        return predict_pair(
            before,
            after,
            out,
            detector=self,
            threshold=threshold,
            overwrite=overwrite,
            progress=progress,
            options=options,
        )
