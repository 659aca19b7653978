"""Counts that an evaluation collects image by image, and the merging of those of several processes."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.errors import list_names
from change.common.files import write_whole
from change.evaluation.metrics import BINS, Counts, Matches, Objects

log = logging.getLogger(__name__)

# Instead of "no": no image of the pair has the pixels of a training image, but its tiles, or copies in a lossy format,
# may have been trained on.
UNKNOWN = "unknown"


@dataclass
class Tally:
    """Counts accumulated over images.

    Attributes:
        rows: the rows of images.csv.
        counts: pixel counts of each image at the chosen threshold, in the order of `rows`.
        at_half: the same at threshold 0.5.
        histogram: pixels of all images by truth and probability, int64 (2, BINS).
        objects: matches of objects in all images.
        boundary: matches of boundary pixels in all images.
        contents: one line per image with its name and the hashes of its images and its mask.
        masks: the packed predicted masks by name, kept only for a report.
        confusion: pixels of all images by true and predicted class, int64 (K + 1, K + 1); empty without classes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    at_half: list[Counts] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, BINS), np.int64))
    objects: Objects = field(default_factory=Objects)
    boundary: Matches = field(default_factory=Matches)
    contents: list[str] = field(default_factory=list)
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def drop_unknown_groups(self) -> None:
        """Remove the groups from all rows, with a warning, if `check` did not see one of the images."""
        unknown = [row["image"] for row in self.rows if row.get("group") == ""]
        if not unknown:
            return
        log.warning(
            "check.json knows nothing of %s: intervals are over single images; run check again", list_names(unknown)
        )
        for row in self.rows:
            row.pop("group", None)
            row.pop("meets_train", None)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the names and decoded pixels of all images and masks."""
        return hashlib.sha256("\n".join(sorted(self.contents)).encode()).hexdigest()

    def write_rows(self, path: Path) -> None:
        """Write images.csv, sorted by name; undefined scores are empty. Raises UserError if it cannot be written."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
        writer.writeheader()
        for row in sorted(self.rows, key=lambda row: str(row["image"])):
            writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()})
        write_whole(path, text.getvalue().encode())


def merge(tallies: Sequence[Tally], names: Sequence[str]) -> Tally:
    """Merge the tallies of several processes, with the images in the order of `names`, which lists them all."""
    places = {name: index for index, name in enumerate(names)}
    images = [image for t in tallies for image in zip(t.rows, t.counts, t.at_half, strict=True)]
    images.sort(key=lambda image: places[image[0]["image"]])
    return Tally(
        rows=[row for row, _, _ in images],
        counts=[counts for _, counts, _ in images],
        at_half=[at_half for _, _, at_half in images],
        histogram=np.sum([t.histogram for t in tallies], axis=0),
        objects=sum((t.objects for t in tallies), Objects()),
        boundary=sum((t.boundary for t in tallies), Matches()),
        contents=[content for t in tallies for content in t.contents],
        masks={name: mask for t in tallies for name, mask in t.masks.items()},
        confusion=np.sum([t.confusion for t in tallies], axis=0),
    )
