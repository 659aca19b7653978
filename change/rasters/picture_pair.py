"""One pair of pictures without georeferencing: from two image files to the files of a folder.

probability.png  grey, 255 stands for probability 1; 0 where either picture is transparent
mask.png         255 where changed, 0 elsewhere; with classes, their values, and a palette
preview.png      before and after with the outlines of the change
metadata.json    checkpoint, threshold, size, number of pixels, also by class
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from change.common.errors import UserError
from change.common.files import write_whole
from change.common.images import blank_missing, fill_missing, read_opaque
from change.common.pictures import mask_picture, outlined_panel, save_classes, save_png
from change.prediction.detector import ChangeDetector
from change.prediction.threshold import any_change, mask_values
from change.rasters.class_layer import measure_classes
from change.rasters.look import log_look, look_at_pictures
from change.rasters.result_folder import METADATA


def predict_pictures(
    before: Path, after: Path, folder: Path, *, detector: ChangeDetector, threshold: float, about: dict[str, Any]
) -> None:
    """Predict a pair of pictures and write its files. No change is reported where either picture is transparent.

    Args:
        before: image file of 8 bits per channel.
        after: image file of the same size, of the later date.
        folder: exists and is empty.
        detector: predicts the probabilities.
        threshold: 0 to below 1; a pixel is changed if its probability exceeds it.
        about: further entries of metadata.json.

    Raises:
        UserError: if a file cannot be read, the sizes differ, a probability is NaN, or files cannot be written.
    """
    first, first_opaque = read_opaque(before)
    second, second_opaque = read_opaque(after)
    if first.shape != second.shape:
        sizes = [
            f"{path} has {image.shape[1]} x {image.shape[0]} pixels"
            for path, image in ((before, first), (after, second))
        ]
        raise UserError(f"{', '.join(sizes)}: bring both to one grid")
    data = first_opaque & second_opaque
    inputs = fill_missing((first, second), data)
    first, second = blank_missing((first, second), data)
    look = look_at_pictures(before, after, (first, second), data)
    log_look(look)
    found, _ = detector.predict_all(inputs[0], inputs[1], str(before))
    probability = any_change(found)[0, 0].cpu().numpy() * data
    values = np.asarray(mask_values(found, threshold, [str(before)])[0, 0].cpu().numpy() * data, np.uint8)
    changed = values > 0
    save_png((probability * 255 + 0.5).astype(np.uint8), folder / "probability.png")
    classes = detector.checkpoint.classes
    if classes:
        save_classes(values, folder / "mask.png")
        there, pixels = np.unique(values, return_counts=True)
        about = {**about, "classes": measure_classes(classes, there.astype(np.int64), pixels, None)}
    else:
        save_png(mask_picture(changed), folder / "mask.png")
    save_png(outlined_panel(first, second, changed), folder / "preview.png")
    metadata = {
        "before": str(before),
        "after": str(after),
        "height": first.shape[0],
        "width": first.shape[1],
        "threshold": threshold,
        **about,
        **look.metadata(),
        "pixels": {"data": int(data.sum()), "changed": int(changed.sum())},
    }
    write_whole(folder / METADATA, (json.dumps(metadata, indent=1) + "\n").encode())
