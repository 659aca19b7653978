"""Convert probabilities to what the rasters of a scene store: 8-bit probabilities and masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from change.prediction.threshold import any_change, mask_values

HIGHEST, NO_DATA = 254, 255
COLOURS = {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), NO_DATA: (0, 0, 0, 0)}  # mask: red, green, blue, alpha


def to_levels(
    found: Tensor, data: NDArray[np.bool_], *, threshold: float, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Turn probabilities into what the rasters store.

    Args:
        found: probabilities, float32 (O, h, W), 0 to 1.
        data: (h, W), where both dates hold data.
        threshold: 0 to below 1.
        name: name of the scene, for the error.

    Returns:
        Levels and mask, uint8 (h, W) each, `NO_DATA` where there is no data.

    Raises:
        UserError: if a probability is NaN.
    """
    mask: NDArray[np.uint8] = mask_values(found[None], threshold, [name])[0, 0].numpy()
    levels = (any_change(found[None])[0, 0].numpy() * HIGHEST + 0.5).astype(np.uint8)
    mask[~data] = NO_DATA
    levels[~data] = NO_DATA
    return levels, mask
