"""The files of an evaluation: their paths, locks on their folders, and the pictures of single pairs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from change.checkpoint import Checkpoint
from change.common import distributed
from change.common.errors import UserError
from change.common.files import home_folder, make_folder
from change.common.locks import hold_folder
from change.common.pictures import error_map, mask_picture, panel, save_classes, save_png
from change.data.samples import Batch
from change.evaluation.report import read_template


@dataclass(frozen=True)
class Outputs:
    """Paths of the results; None for those that are not wanted.

    Attributes:
        folder: folder of metrics.json and images.csv.
        masks: folder of the predicted masks.
        error_maps: folder of the error maps.
        panels: folder of the panels.
        report: the report, an HTML file.
    """

    folder: Path
    masks: Path | None = None
    error_maps: Path | None = None
    panels: Path | None = None
    report: Path | None = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from writing to these folders for the duration of a `with` block.

        Raises UserError if one of them is in use.
        """
        options = {
            self.folder: "--save_path",
            self.masks: "--save_result_path",
            self.error_maps: "--save_iou_map_path",
            self.panels: "--save_panels_path",
        }
        with contextlib.ExitStack() as stack:
            if distributed.rank() == 0:
                held = set()
                for folder, option in options.items():
                    if folder and folder.resolve() not in held:  # a second lock on one folder would end the first
                        stack.enter_context(hold_folder(folder, option))
                        held.add(folder.resolve())
            distributed.wait()  # the others write pictures
            yield

    def prepare(self) -> None:
        """Make the folders. Raises UserError if that fails, or if the template of the report is missing."""
        for folder in (self.folder, self.masks, self.error_maps, self.panels):
            if folder:
                make_folder(folder)
        if self.report:
            read_template()

    def draw(
        self,
        batch: Batch,
        index: int,
        changed: NDArray[np.bool_],
        mask: NDArray[np.bool_] | None,
        checkpoint: Checkpoint,
        values: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write the pictures of one pair of a batch.

        Args:
            batch: the images.
            index: index of the pair in the batch.
            changed: predicted change, bool (H, W).
            mask: true change, bool (H, W), if it is known.
            checkpoint: shows the images as pictures.
            values: predicted class values (H, W), if the checkpoint tells classes apart.
        """
        name = f"{batch.names[index]}.png"
        if self.masks and values is not None:
            save_classes(values, self.masks / name)
        elif self.masks:
            save_png(mask_picture(changed), self.masks / name)
        if self.error_maps and mask is not None:
            save_png(error_map(changed, mask), self.error_maps / name)
        if self.panels:
            before, after = image_arrays(batch, index, checkpoint)
            save_png(panel(before, after, changed, mask), self.panels / name)


def image_arrays(batch: Batch, index: int, checkpoint: Checkpoint) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return before and after of one pair of a batch, RGB (H, W, 3)."""
    before, after = (images[index].permute(1, 2, 0).numpy() for images in (batch.before, batch.after))
    return checkpoint.picture(before), checkpoint.picture(after)


def default_folder(root: Path) -> Path:
    """Return the folder of the results for `root`: data/LEVIR-CD/test gives results/LEVIR-CD-test.

    Raises UserError if it holds the scores of another data folder whose path ends in the same two names.
    """
    root = root.resolve()
    folder = home_folder() / "results" / "-".join(part for part in (root.parent.name, root.name) if part)
    try:
        other = json.loads((folder / "metrics.json").read_bytes())["data"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    if Path(other).resolve() != root:
        raise UserError(f"{folder} holds the scores of other pairs, in {other}: choose a folder with --save_path")
    return folder
