"""Encodings of masks: each is read as what it marks, or refused with the true reason; `check` agrees with training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.change_dataloader import find_split
from change.common.errors import UserError
from change.data.archives import File
from change.data.check import main as check
from change.data.cutting import decode
from change.data.masks import read_mask
from tests.conftest import write_pairs
from tests.data.helpers import Array, palette, save, user_error

WHITE_FIRST, NO_DATA, ORIENTATION = {262: 0}, 42113, 274
Writer = Callable[[Path, Array], object]


def few_bits(path: Path, mask: Array, maximum: int, photometric: int = 1) -> None:
    """Write a grey TIFF of 2 or 4 bits, as rasterio writes NBITS=2, by hand: Pillow only reads these."""
    bits = {3: 2, 15: 4}[maximum]
    rows = np.unpackbits(mask[..., None], axis=2)[..., 8 - bits :].reshape(len(mask), -1)
    data = np.packbits(rows, axis=1).tobytes()
    height, width = mask.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    entries = b"".join(tag.to_bytes(2, "little") + b"\x04\0\x01\0\0\0" + v.to_bytes(4, "little") for tag, v in tags)
    start = 8 + len(data)
    head = b"II*\0" + start.to_bytes(4, "little")
    path.write_bytes(head + data + len(tags).to_bytes(2, "little") + entries + bytes(4))


def grey(factor: int, **options: Any) -> Writer:
    return lambda path, mask: save(path, mask * np.uint8(factor), **options)


def deep(dtype: type[np.generic], factor: float, **options: Any) -> Writer:
    return lambda path, mask: save(path, (mask.astype(np.int64) * factor).astype(dtype), **options)


def bands(*factors: int, plus: tuple[int, ...] = ()) -> Writer:
    """Write several bands: the mask times each factor, plus a constant."""

    def write(path: Path, mask: Array) -> None:
        stack = [mask * np.uint8(f) + np.uint8(c) for f, c in zip(factors, plus or (0,) * len(factors), strict=True)]
        save(path, np.dstack(stack))

    return write


def with_level(level: int, top: int = 255, mark: int = 1) -> Writer:
    """Write `mark` where change is, and `level` in the lowest rows, as values to be ignored are."""

    def write(path: Path, mask: Array) -> None:
        levels = mask * np.uint8(mark)
        levels[-8:] = level
        save(path, levels)

    return write


def pages(path: Path, mask: Array, kind: int = 0) -> None:
    """Write a TIFF of two pages; `kind` is the second one's NewSubfileType."""
    second = PIL.Image.fromarray(mask * np.uint8(255))
    second.encoderinfo = {"tiffinfo": {254: kind}}
    PIL.Image.fromarray(mask * np.uint8(255)).save(path, save_all=True, append_images=[second])


def declared(value: str, factor: int) -> Writer:
    return lambda path, mask: save(path, mask * np.uint8(factor), tiffinfo={NO_DATA: value})


# How a mask (H, W) of 0 and 1 is written.
READ: dict[str, tuple[str, Writer]] = {
    "2 bits of 0 and 1": (".tif", lambda path, mask: few_bits(path, mask, 3)),
    "2 bits of 0 and 3": (".tif", lambda path, mask: few_bits(path, mask * np.uint8(3), 3)),
    "4 bits of 0 and 1": (".tif", lambda path, mask: few_bits(path, mask, 15)),
    "4 bits of 0 and 15": (".tif", lambda path, mask: few_bits(path, mask * np.uint8(15), 15)),
    "16 bits of 0 and 65535": (".png", deep(np.uint16, 65535)),
    "32 bits of 0 and 1": (".tif", deep(np.int32, 1)),
    "opaque RGBA": (".png", bands(255, 255, 255, 0, plus=(0, 0, 0, 255))),
    "opaque grey with alpha": (".png", bands(255, 0, plus=(0, 255))),
    "1 bit, white is zero": (
        ".tif",
        lambda path, mask: save(path, PIL.Image.fromarray(mask > 0), tiffinfo=WHITE_FIRST),
    ),
    "compressed TIFF": (".tif", grey(255, compression="tiff_lzw")),
    "0 is no data, TIFF": (".tif", declared("0", 1)),
    "0 is no data, PNG": (".png", grey(255, transparency=0)),
    "255 is no data, but absent": (".tif", declared("255", 1)),
    "no data is not a number": (".tif", declared("nan", 1)),
    "with an overview": (".tif", lambda path, mask: pages(path, mask, 1)),
    "JPEG in a TIFF": (".tif", grey(255, compression="jpeg", quality=90)),
    "JPEG named png": (".png", grey(255, format="JPEG", quality=90)),
}

# Why a mask is refused; the message must hold these words.
REFUSED: dict[str, tuple[str, Writer, str]] = {
    "alpha marks, all white": (".png", bands(0, 0, 0, 255, plus=(255, 255, 255, 0)), "transparency"),
    "alpha marks, all black": (".png", bands(0, 0, 0, 255), "transparency"),
    "alpha beside grey marks": (".png", bands(0, 255, plus=(255, 0)), "transparency"),
    "alpha in TIFF": (".tif", bands(0, 0, 0, 255, plus=(255, 255, 255, 0)), "transparency"),
    "transparent colour of a palette": (
        ".png",
        lambda path, mask: save(path, palette(mask, 255, 255, 255, 255, 255, 255), transparency=0),
        "transparency",
    ),
    "mask page in TIFF": (".tif", lambda path, mask: pages(path, mask, 4), "transparency"),
    "two pages": (".tif", pages, "2 pages"),
    "1 and 255": (".png", with_level(255), "marks with 1 and with 255"),
    "1 and 255, TIFF": (".tif", with_level(255), "marks with 1 and with 255"),
    "classes and 255": (".png", with_level(255, mark=3), "marks with 3 and with 255"),
    "255 as no data": (".tif", declared("255", 255), "declares 255 as no data"),
    "255 as no data, PNG": (".png", grey(255, transparency=255), "declares 255 as no data"),
    "grey, white is zero": (".tif", grey(255, tiffinfo=WHITE_FIRST), "0 is white"),
    "few bits, white is zero": (".tif", lambda path, mask: few_bits(path, mask, 3, 0), "0 is white"),
    "marks with 2": (".png", grey(2), "goes up to 2, but changed is above half of 255"),
    "16 bits of 0 and 255": (".png", deep(np.uint16, 255), "goes up to 255, but changed is above half of 65535"),
    "negative": (".tif", deep(np.int32, -1), "levels from -1 to 0"),
    "floats": (".tif", deep(np.float32, 1), "mode F, 32 bit"),
    "CMYK": (".tif", lambda path, mask: save(path, PIL.Image.fromarray(mask).convert("CMYK")), "mode CMYK"),
    "in colour": (".png", bands(255, 0, 0), "in colour"),
}


def write_masks(root: Path, suffix: str, write: Writer) -> list[Array]:
    """Replace the masks of three pairs; return what they mark."""
    expected = []
    for index in range(3):
        old = root / "label" / f"{index}.png"
        with PIL.Image.open(old) as image:
            mask = (np.asarray(image) > 0).astype(np.uint8)
        mask[:4] = 0  # never all of the mask
        mask[20:24, 20:40] = 1
        old.unlink()
        write(root / "label" / f"{index}{suffix}", mask)
        expected.append(mask)
    return expected


def errors_of_check(root: Path, out: Path) -> list[str]:
    check([str(root), f"--save_path={out}"])
    found = json.loads((out / "check.json").read_text())["findings"]
    return [finding["text"] for finding in found if finding["rank"] == "error"]


@pytest.mark.parametrize(("suffix", "write"), READ.values(), ids=READ)
def test_masks_that_are_read(tmp_path: Path, suffix: str, write: Writer) -> None:
    root = write_pairs(tmp_path / "set" / "train", 3)
    expected = write_masks(root, suffix, write)
    split = find_split(root.parent, "train")
    lossy = 0.01 if "JPEG" in str(write) or suffix == ".tif" else 0
    for pair, mask in zip(split.pairs, expected, strict=True):
        assert pair.mask is not None
        assert (read_mask(pair.mask, split.binary) != mask).mean() <= lossy
    assert split.changed == pytest.approx(np.mean(expected), abs=lossy)
    assert not errors_of_check(root.parent, tmp_path / "out")


@pytest.mark.parametrize(("suffix", "write", "reason"), REFUSED.values(), ids=REFUSED)
def test_masks_that_are_refused(tmp_path: Path, suffix: str, write: Writer, reason: str) -> None:
    """The error names the file and the remedy; check reports every file that training refuses, in the same words."""
    root = write_pairs(tmp_path / "set" / "train", 3)
    write_masks(root, suffix, write)
    message = user_error(lambda: find_split(root.parent, "train"))
    assert str(root / "label" / f"0{suffix}") in message
    assert reason in message
    assert "save " in message
    errors = errors_of_check(root.parent, tmp_path / "out")
    assert len(errors) == 3
    assert all(reason in text for text in errors)


@pytest.mark.parametrize("name", ["255 as no data", "255 as no data, PNG"])
def test_no_data_is_not_cut_into_tiles(tmp_path: Path, name: str) -> None:
    """`prepare --tile` refuses it too: the tiles would not say that it is no data."""
    suffix, write, reason = REFUSED[name]
    root = write_pairs(tmp_path, 3)
    write_masks(root, suffix, write)
    path = root / "label" / f"0{suffix}"
    message = user_error(lambda: decode(File(path), is_mask=True))
    assert str(path) in message and reason in message


def test_a_type_that_pillow_cannot_read(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    root = write_pairs(tmp_path / "set" / "train", 2)
    (root / "label" / "1.png").unlink()
    tifffile.imwrite(root / "label" / "1.tif", np.eye(64))
    message = user_error(lambda: find_split(root.parent, "train"))
    assert "label/1.tif" in message and "64 bits" in message and "one channel of 8 bits" in message
    assert len(errors_of_check(root.parent, tmp_path / "out")) == 1


def test_stray_levels_are_no_classes(tmp_path: Path) -> None:
    """Smoothed edges, and black that JPEG left behind, are read as before."""
    root = write_pairs(tmp_path, 2)
    smooth = np.zeros((64, 64), np.uint8)
    smooth[10:50, 10:50] = 255
    smooth[9, 10:50] = np.linspace(1, 254, 40)
    noisy = smooth.copy()
    noisy[50:56] = 1
    noisy[12:14, 12:40] = 254
    for index, levels in enumerate((smooth, noisy)):
        save(root / "label" / f"{index}.png", levels)
    split = find_split(root, "")
    for index, levels in enumerate((smooth, noisy)):
        np.testing.assert_array_equal(split.read(index).mask, levels > 127)


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_a_split_that_is_mostly_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float) -> None:
    root = write_pairs(tmp_path / "set" / "train", 2)
    for index in range(2):
        mask = np.zeros((64, 64), np.uint8)
        mask[: round(64 * share)] = 255
        save(root / "label" / f"{index}.png", mask)
    with caplog.at_level("WARNING"):
        split = find_split(root.parent, "train")
    said = any("of the pixels are marked as changed" in message for message in caplog.messages)
    assert said == (share > 0.5)
    assert split.changed == pytest.approx(share, abs=0.01)
    check([str(root.parent), f"--save_path={tmp_path / 'out'}"])
    kinds = [f["kind"] for f in json.loads((tmp_path / "out" / "check.json").read_text())["findings"]]
    assert ("split mostly marked" in kinds) == (share > 0.5)


@pytest.mark.parametrize(("part", "rank"), [("train", "error"), ("val", "warning")])
def test_a_split_without_change(tmp_path: Path, part: str, rank: str) -> None:
    """train.py refuses it for train, and check says so."""
    root = write_pairs(tmp_path / "set" / part, 2)
    for index in range(2):
        save(root / "label" / f"{index}.png", np.zeros((64, 64), np.uint8))
    assert check([str(root.parent), f"--save_path={tmp_path / 'out'}"]) == (rank == "error")
    found = json.loads((tmp_path / "out" / "check.json").read_text())["findings"]
    assert [(f["rank"], f["text"][: len(part)]) for f in found if f["kind"] == "split without change"] == [(rank, part)]


def test_more_than_two_values_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_pairs(tmp_path, 1)
    save(root / "label" / "0.png", np.repeat(np.array([0, 100, 255], np.uint8), 10)[None])
    for sub in "AB":
        save(root / sub / "0.png", np.zeros((1, 30, 3), np.uint8))
    with caplog.at_level("WARNING"):
        find_split(root, "")
    (message,) = caplog.messages
    assert "1 masks have more than two values" in message and "0, 100, 255" in message and "above 127" in message


# --- orientation ---------------------------------------------------------------------------------------------------

# What a viewer shows for each tag: axes swapped, then flipped vertically and horizontally, by the EXIF standard.
TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.swapaxes(a, 0, 1)[:, ::-1],
    7: lambda a: np.swapaxes(a, 0, 1)[::-1, ::-1],
    8: lambda a: np.swapaxes(a, 0, 1)[::-1],
}


def exif(tag: int) -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = tag
    return tags


@pytest.mark.parametrize("tag", TURNED)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_orientation_tags_are_followed(tmp_path: Path, suffix: str, tag: int) -> None:
    """Images and masks are read as a viewer shows them, and so are the sizes in their headers."""
    rng = np.random.default_rng(0)
    image = np.asarray(PIL.Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((48, 32)))
    mask = np.zeros((32, 48), np.uint8)
    mask[3:9, 4:20] = 255
    options: dict[str, Any] = {"tiffinfo": {ORIENTATION: tag}} if suffix == ".tif" else {"exif": exif(tag)}
    if suffix == ".jpg":
        options |= {"quality": 100, "subsampling": 0}
    for sub, picture in (("A", image), ("B", image), ("label", mask)):
        save(tmp_path / sub / f"0{suffix}", picture, **options)
    split = find_split(tmp_path, "")
    pixels = split.read(0)
    shown = TURNED[tag](image)
    assert split.pairs[0].size == (shown.shape[1], shown.shape[0])
    np.testing.assert_allclose(pixels.before.astype(int), shown, atol=8 if suffix == ".jpg" else 0)
    np.testing.assert_array_equal(pixels.mask, TURNED[tag](mask) > 0)


def test_turned_masks_beside_upright_images(tmp_path: Path) -> None:
    """A tag on one file of a pair is followed for that file; files that then differ in size are refused."""
    root = write_pairs(tmp_path, 1, width=96)
    with PIL.Image.open(root / "label" / "0.png") as image:
        mask = np.asarray(image)
    save(root / "label" / "0.png", mask[::-1, ::-1], exif=exif(3))
    np.testing.assert_array_equal(find_split(root, "").read(0).mask, mask > 0)
    save(root / "label" / "0.png", mask, exif=exif(6))
    with pytest.raises(UserError, match=r"label/0.png 64x96"):
        find_split(root, "")


def test_images_of_several_pages_are_refused(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 1)
    (root / "B" / "0.png").unlink()
    pages(root / "B" / "0.tif", np.zeros((64, 64), np.uint8))
    assert "B/0.tif holds 2 pages: save one page per file" in user_error(lambda: find_split(root, ""))
