"""Helpers of the data tests: write files, break them, and compare what is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.change_dataloader import Split
from change.common.errors import UserError
from change.data.samples import Batch

Array = NDArray[np.uint8]


def save(path: Path, picture: NDArray[Any] | PIL.Image.Image, **options: Any) -> Path:
    """Write a picture with Pillow, replace all others of the same stem, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{path.stem}.*"):
        other.unlink()
    image = picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(picture)
    image.save(path, **options)
    return path


def truncate(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def user_error(action: Callable[[], object]) -> str:
    """Return the one-line UserError that `action` must raise."""
    try:  # pytest.raises would keep the traceback, and with it a loader's workers, until some later test
        action()
    except UserError as error:
        message = str(error)
    else:
        pytest.fail("no UserError")
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def names(split: Split) -> list[str]:
    return [pair.name for pair in split.pairs]


def contents(batches: Iterable[Batch]) -> list[tuple[object, ...]]:
    """Turn batches into values that can be compared."""
    return [
        (*(tensor.numpy().tobytes() for tensor in batch[:3]), batch.mask.shape, batch.names, batch.hashes)
        for batch in batches
    ]


def hash_file(path: Path) -> str:
    """Compute what `image_hash` must return, only with Pillow and hashlib."""
    with PIL.Image.open(path) as image:
        shape = f"({image.height}, {image.width}, 3)"
        return hashlib.sha256(shape.encode() + image.convert("RGB").tobytes()).hexdigest()[:32]


def palette(mask: Array, *colours: int) -> PIL.Image.Image:
    image = PIL.Image.fromarray(mask)
    image.putpalette(colours)
    return image
