"""Images: read as RGB whatever their mode and size; Pillow's limit on sizes stays as the host program set it."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.change_dataloader import find_split
from change.common.images import (
    PIXEL_LIMIT,
    fill_missing,
    image_hash,
    nearest_data,
    open_image,
    read_image,
    read_opaque,
)
from change.data.check import main as check
from change.data.masks import read_mask
from change.data.prepare import main as prepare
from tests.conftest import REPOSITORY, write_pairs
from tests.data.helpers import palette, save


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set a limit that the test images exceed more than twice, so that Pillow itself refuses to open them."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    return 10


def test_pillow_refuses_by_itself(tmp_path: Path, limit: int) -> None:
    """Without this, the other tests would show nothing."""
    path = write_pairs(tmp_path, 1) / "A" / "0.png"
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(path)


def test_imports_change_nothing() -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for folder in ("common", "data", "synthetic")
        for path in sorted((REPOSITORY / "change" / folder).glob("*.py"))
        if path.stem != "__init__"
    ]
    program = (
        "import cv2, importlib, PIL.Image\n"
        "PIL.Image.MAX_IMAGE_PIXELS = 123456\n"
        "threads = cv2.getNumThreads()\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    assert PIL.Image.MAX_IMAGE_PIXELS == 123456 and cv2.getNumThreads() == threads, name\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)


def test_large_images_are_read(tmp_path: Path, limit: int) -> None:
    """Every function that opens files reads them, and leaves the limit as it was."""
    root = write_pairs(tmp_path / "set" / "train", 2)
    split = find_split(root.parent, "train")
    pixels = split.read(0)
    assert split.pairs[0].mask is not None
    assert np.array_equal(read_image(split.pairs[0].before), pixels.before)
    assert np.array_equal(read_opaque(split.pairs[0].after)[0], pixels.after)
    assert np.array_equal(read_mask(split.pairs[0].mask, split.binary), pixels.mask)
    assert limit == PIL.Image.MAX_IMAGE_PIXELS
    assert check([str(root.parent), f"--save_path={tmp_path / 'check'}"]) == 0
    folders = ("--before=A", "--after=B", "--label=label", "--tile=32", f"--list_path={tmp_path / 'list'}")
    for _ in range(2):  # the second time, tiles that are there are compared
        assert prepare(["mine", str(root.parent), str(tmp_path / "tiles"), *folders]) == 0
    assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_the_last_reader_restores_the_limit(tmp_path: Path, limit: int) -> None:
    """A thread that leaves first does not restore the limit for those that are still reading."""
    path = write_pairs(tmp_path, 1) / "A" / "0.png"
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with open_image(path):
            inside.set()
            assert leave.wait(60)
            assert PIL.Image.MAX_IMAGE_PIXELS is None

    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(stay)
        assert inside.wait(60)
        with open_image(path):
            pass
        assert PIL.Image.MAX_IMAGE_PIXELS is None
        leave.set()
        staying.result()
    assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_many_readers(tmp_path: Path, limit: int) -> None:
    path = write_pairs(tmp_path, 1) / "A" / "0.png"
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_image, [path] * 200))) == 200
    assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_an_error_restores_the_limit(tmp_path: Path, limit: int) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(OSError), open_image(tmp_path / "text.png"):
        pass
    assert limit == PIL.Image.MAX_IMAGE_PIXELS


def test_a_new_limit_of_the_host_stays(limit: int) -> None:
    with PIXEL_LIMIT.lifted():
        PIL.Image.MAX_IMAGE_PIXELS = 20
    assert PIL.Image.MAX_IMAGE_PIXELS == 20


def test_one_door() -> None:
    """No module but `change.common.images` opens files with Pillow, or sets its limit."""
    for path in sorted((REPOSITORY / "change").rglob("*.py")):
        place = path.relative_to(REPOSITORY).as_posix()
        if place == "change/common/images.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert text not in ("PIL.Image.open", "Image.open", "PIL.Image.MAX_IMAGE_PIXELS"), place


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_images_of_any_mode_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    shape = (9, 13)
    colours = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    picture: NDArray[Any] | PIL.Image.Image
    if mode == "RGBA":
        picture = rng.integers(0, 256, (*shape, 4), dtype=np.uint8)
        expected = picture[..., :3]
    elif mode == "P":
        index = rng.integers(0, 4, shape, dtype=np.uint8)
        picture, expected = palette(index, *colours.ravel().tolist()), colours[index]
    else:
        grey = rng.integers(0, 256, shape, dtype=np.uint8)
        grey = np.where(grey > 99, 255, 0).astype(np.uint8) if mode == "1" else grey
        expected = np.dstack([grey] * 3)
        picture = {"L": grey, "LA": np.dstack([grey, grey // 2]), "1": grey > 0}[mode]
    path = save(tmp_path / "image.png", picture)
    with PIL.Image.open(path) as image:
        assert image.mode == mode
    read = read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


def test_image_hash_knows_pixels_not_files(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    files = [
        save(tmp_path / "a.png", picture),
        save(tmp_path / "b.tif", picture, compression="tiff_lzw"),
        save(tmp_path / "c.bmp", picture),
    ]
    assert len({image_hash(read_image(path)) for path in files}) == 1
    assert image_hash(picture.reshape(10, 12, 3)) != image_hash(picture)
    before = image_hash(picture)
    picture[11, 9, 2] ^= 1
    assert image_hash(picture) != before


def test_the_nearest_pixel_with_data() -> None:
    """Compared with a search over all pixels."""
    data = np.random.default_rng(0).random((20, 30)) < 0.1
    data[12:] = False
    known = np.argwhere(data)
    for place, found in zip(np.argwhere(~data), np.stack(nearest_data(data), axis=1), strict=True):
        distance = np.hypot(*(known - place).T).min()
        assert data[tuple(found)] and np.hypot(*(found - place)) <= 1.05 * distance  # exact to a few percent


def test_pixels_without_data_are_mirrored() -> None:
    """Mirrored at the border of the data, and nearest levels beyond; nothing changes if all or no pixels hold data."""
    draw = np.random.default_rng(0)
    images = [draw.integers(1, 9999, (20, 30, bands)).astype(np.uint16) for bands in (3, 5)]
    data = np.zeros((20, 30), np.bool_)
    data[:, 4:9] = True
    columns = [8, 7, 6, 5, *range(4, 9), 7, 6, 5, 4] + [8] * 17
    for new, old in zip(fill_missing(images, data), images, strict=True):
        assert np.array_equal(new, old[:, columns])
    data[:] = False
    data[:, :3] = data[:, 27:] = (
        True  # mirrored positions before the first and after the last column do not wrap around
    )
    columns = [0, 1, 2, 1, 0, *[2] * 10, *[27] * 10, 29, 28, 27, 28, 29]
    for new, old in zip(fill_missing(images, data), images, strict=True):
        assert np.array_equal(new, old[:, columns])
    turned = [image.transpose(1, 0, 2) for image in images]
    for new, old in zip(fill_missing(turned, data.T), turned, strict=True):
        assert np.array_equal(new, old[columns])
    assert all(new is old for new, old in zip(fill_missing(images, np.ones_like(data)), images, strict=True))
    assert not any(new.any() for new in fill_missing(images, np.zeros_like(data)))
