"""From probabilities to masks: the one place where a threshold is applied, and where NaN is found.

With classes, a pixel is changed if the probability of any change, 1 - that of unchanged, exceeds the threshold. Its
class is then the most probable class of change. So masks with and without classes mark the same pixels.

`change.evaluation.metrics.histogram`, which counts pixels for the scores at every threshold, follows the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from change.common.errors import UserError, list_names


class NotFiniteError(UserError):
    """A probability is NaN or infinite. `names` are those of the images."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"the network gives no finite probability for {list_names(names)}: use --amp off, or other weights if it "
            "happens there too"
        )
        self.names = names


def changed_pixels(probability: Tensor, threshold: float, names: Sequence[str]) -> Tensor:
    """Turn probabilities into masks: a pixel is changed if its probability exceeds the threshold.

    Args:
        probability: float (B, ...), 0 to 1.
        threshold: 0 to below 1.
        names: one per image, for the error.

    Returns:
        bool of the same shape, on the same device.

    Raises:
        NotFiniteError: if a probability is NaN or infinite, with the names of these images.
    """
    changed = probability > threshold
    require_finite(probability, names)
    return changed


def any_change(probability: Tensor) -> Tensor:
    """Return the probability of any change, (B, 1, ...), from that of change (B, 1, ...) or of classes (B, O, ...)."""
    return probability if probability.shape[1] == 1 else 1 - probability[:, :1]


def mask_values(probability: Tensor, threshold: float, names: Sequence[str]) -> Tensor:
    """Return the values of masks: 0 where nothing changed, else 1 or, with classes, the most probable class of change.

    Args:
        probability: float (B, O, ...): of change if O is 1, else of unchanged and then of the classes.
        threshold: 0 to below 1, for the probability of any change.
        names: one per image, for the error.

    Returns:
        uint8 (B, 1, ...), on the same device.

    Raises:
        NotFiniteError: as `changed_pixels` does.
    """
    changed = changed_pixels(any_change(probability), threshold, names)
    if probability.shape[1] == 1:
        return changed.to(torch.uint8)
    best = 1 + probability[:, 1:].argmax(1, keepdim=True)
    return torch.where(changed, best, 0).to(torch.uint8)


def require_finite(probability: Tensor, names: Sequence[str]) -> None:
    """Raise NotFiniteError if a probability, float (B, ...), is NaN or infinite; `names` are those of the B images."""
    finite = probability.isfinite()
    if not finite.all():
        good = finite.flatten(1).all(1).tolist()
        raise NotFiniteError([name for name, is_good in zip(names, good, strict=True) if not is_good])
