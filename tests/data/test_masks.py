"""The mask convention: which levels are changed, and which masks are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.change_dataloader import find_split
from change.data.loaders import or_raise, whole_loader
from change.data.masks import read_mask
from change.data.samples import WholeSamples
from tests.conftest import write_pairs
from tests.data.helpers import Array, palette, save, user_error

MASKS: dict[str, tuple[str, Callable[[Array], NDArray[Any] | PIL.Image.Image], bool]] = {
    "8 bits of 0 and 1": (".png", lambda m: m, True),
    "8 bits of 0 and 255": (".png", lambda m: m * 255, False),
    "1 bit PNG": (".png", lambda m: PIL.Image.fromarray(m > 0), True),
    "1 bit TIFF": (".tif", lambda m: PIL.Image.fromarray(m > 0), True),
    "1 bit BMP": (".bmp", lambda m: PIL.Image.fromarray(m > 0), True),
    "16 bits of 0 and 65535": (".png", lambda m: m.astype(np.uint16) * 65535, False),
    "16 bits of 0 and 65535, TIFF": (".tif", lambda m: m.astype(np.uint16) * 65535, False),
    "16 bits of 0 and 1": (".png", lambda m: m.astype(np.uint16), True),
    "grey RGB": (".png", lambda m: np.dstack([m, m, m]) * 255, False),
    "grey RGB of 0 and 1": (".bmp", lambda m: np.dstack([m, m, m]), True),
    "grey RGBA": (".png", lambda m: np.dstack([m * 255] * 3 + [m * 0 + 255]), False),
    "grey with alpha": (".png", lambda m: np.dstack([m * 255, m * 0 + 255]), False),
    "black and white palette": (".png", lambda m: palette(m, 0, 0, 0, 255, 255, 255), False),
    "white first palette": (".png", lambda m: palette(np.asarray(1 - m, np.uint8), 255, 255, 255, 0, 0, 0), False),
}


@pytest.mark.parametrize(("suffix", "encode", "binary"), MASKS.values(), ids=MASKS)
def test_mask_rules(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    encode: Callable[[Array], NDArray[Any] | PIL.Image.Image],
    binary: bool,
) -> None:
    root = write_pairs(tmp_path, 3)
    expected: list[Array] = []
    for index in range(3):
        with PIL.Image.open(root / "label" / f"{index}.png") as image:
            expected.append((np.asarray(image) > 0).astype(np.uint8) * (index > 0))  # the first marks nothing
        save(root / "label" / f"{index}{suffix}", encode(expected[-1]))
    with caplog.at_level("INFO"):
        split = find_split(root, "")
    assert split.binary == binary
    (message,) = caplog.messages
    assert ("1 is read as changed" in message, "above half" in message) == (binary, not binary)
    for pair, mask in zip(split.pairs, expected, strict=True):
        assert pair.mask is not None
        np.testing.assert_array_equal(read_mask(pair.mask, split.binary), mask)


def test_one_bit_masks_go_with_any_others(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 2)
    mask = np.eye(64, dtype=np.uint8)
    path = save(root / "label" / "0.png", PIL.Image.fromarray(mask > 0))
    split = find_split(root, "")
    assert not split.binary
    np.testing.assert_array_equal(read_mask(path, split.binary), mask)


@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 127), (np.uint16, 32767)])
def test_changed_is_above_half(tmp_path: Path, dtype: type[np.unsignedinteger[Any]], half: int) -> None:
    root = write_pairs(tmp_path, 1)
    top = 2 * half + 1
    path = save(root / "label" / "0.png", np.tile(np.array([0, half, half + 1, top], dtype), (64, 16)))
    split = find_split(root, "")
    assert read_mask(path, split.binary)[5, :4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("suffix", "level"), [(".png", 0), (".tif", 0), (".jpg", 2)], ids=["PNG", "TIFF", "JPEG of 0 and 2"]
)
def test_a_split_without_change_causes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, level: int
) -> None:
    root = write_pairs(tmp_path, 2)
    for index in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[:32] = level
        save(root / "label" / f"{index}{suffix}", mask)
    assert find_split(root, "").binary == (level < 2)
    assert [(record.levelname, "no mask marks any change" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ]


def save_faint(path: Path) -> None:
    """Save a mask of 0 and 1, to stand among masks of 0 and 255."""
    save(path, np.eye(64, dtype=np.uint8))


def save_deep_colour(path: Path) -> None:
    """Save 0 and 1 as three channels of 16 bits, of which Pillow keeps only the high byte."""
    cv2.imwrite(str(path), np.dstack([np.eye(64, dtype=np.uint16)] * 3))


def save_red(path: Path) -> None:
    save(path, np.dstack([np.eye(64, dtype=np.uint8) * 255, np.zeros((64, 64, 2), np.uint8)]))


def save_red_palette(path: Path) -> None:
    save(path, palette(np.eye(64, dtype=np.uint8), 0, 0, 0, 255, 0, 0))


@pytest.mark.parametrize(
    ("write", "others", "reason"),
    [
        (save_faint, 1, "goes up to 1, "),
        (save_deep_colour, 0, "16 bit"),
        (save_deep_colour, 1, "16 bit"),
        (save_red, 0, "in colour"),
        (save_red, 1, "in colour"),
        (save_red_palette, 0, "in colour"),
        (save_red_palette, 1, "in colour"),
    ],
)
def test_masks_that_would_lose_their_change(
    tmp_path: Path, write: Callable[[Path], None], others: int, reason: str
) -> None:
    """`others`: the number of masks of 0 and 255 beside it."""
    root = write_pairs(tmp_path, 1 + others)
    path = root / "label" / f"{others}.png"
    write(path)

    def read_all() -> None:
        for _ in or_raise(whole_loader(WholeSamples(find_split(root, "")), 1, workers=0)):
            pass

    message = user_error(read_all)
    assert str(path) in message
    assert reason in message


def test_jpeg_masks_are_noisy(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 2)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:37, 21:50] = 1
    path = save(root / "label" / "0.jpg", mask * 255, quality=60)
    dark = save(root / "label" / "1.jpg", np.full((64, 64), 3, np.uint8))
    with PIL.Image.open(path) as image:
        levels = np.asarray(image)
    assert ((levels > 0) & (levels < 128)).any()  # else this shows nothing
    split = find_split(root, "")
    assert (read_mask(path, split.binary) != mask).mean() < 0.005
    assert not read_mask(dark, split.binary).any()
