"""Draw tiny downloads of data sets whose masks are made from several files, or whose folders are unusual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from tests.data.helpers import Array

# The colours of SECOND, and what they stand for.
COLOURS = {
    "unchanged": (255, 255, 255),
    "water": (0, 0, 255),
    "non-vegetated ground": (128, 128, 128),
    "low vegetation": (0, 128, 0),
    "tree": (0, 255, 0),
    "building": (128, 0, 0),
    "playground": (255, 0, 0),
}
SIZE = 16


def picture(seed: int, width: int = SIZE, height: int = SIZE) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def put(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def in_colour(rows: list[str]) -> Array:
    """Draw a land cover mask of SECOND, one land cover per row of pixels, the last up to the lower border."""
    colours = [COLOURS[rows[min(index, len(rows) - 1)]] for index in range(SIZE)]
    return np.repeat(np.array(colours, np.uint8)[:, None], SIZE, axis=1)


Rows = dict[str, tuple[list[str], list[str]]]  # by "split/stem", the land covers of the rows before and after
SECOND_ROWS: Rows = {
    "train/00003": (["water", "tree", "unchanged"], ["tree", "water", "unchanged"]),
    "train/00010": (["building", "low vegetation", "unchanged"], ["building", "building", "unchanged"]),
    "train/00021": (["unchanged"], ["unchanged"]),
    # water -> building is no class of train; the last row has no land cover after.
    "test/00002": (["water", "tree", "water", "unchanged"], ["building", "water", "unchanged", "unchanged"]),
}


def draw_second(folder: Path, rows: Rows = SECOND_ROWS) -> Path:
    """Draw SECOND: im1, im2, label1 and label2 in each split."""
    for seed, (name, (before, after)) in enumerate(rows.items()):
        split, stem = name.split("/")
        top = folder / "SECOND" / split
        put(top / "im1" / f"{stem}.png", picture(2 * seed))
        put(top / "im2" / f"{stem}.png", picture(2 * seed + 1))
        put(top / "label1" / f"{stem}.png", in_colour(before))
        put(top / "label2" / f"{stem}.png", in_colour(after))
    return folder / "SECOND"


HRSCD_NAMES = {  # the stems of a pair's images before and after; masks have the name of the image after
    "35-0300-6785": ("35-2006-0300-6785-LA93", "35-2012-0300-6785-LA93-0M50-E080"),
    "35-0305-6785": ("35-2006-0305-6785-LA93", "35-2012-0305-6785-LA93-0M50-E080"),
    "14-0415-6890": ("14-2005-0415-6890-LA93", "14-2012-0415-6890-LA93-0M50-E080"),
}


def hrscd_masks(name: str) -> tuple[Array, Array, Array]:
    """Return land cover before and after, and the mask of change, of a pair of HRSCD."""
    rng = np.random.default_rng(int(name[3:7]))
    before, after = (rng.integers(0, 3, (SIZE, SIZE), np.uint8) for _ in range(2))
    return before, after, rng.integers(0, 2, (SIZE, SIZE), np.uint8)


def draw_hrscd(folder: Path) -> Path:
    """Draw HRSCD: folders of images and masks, each with a folder per department."""
    top = folder / "HRSCD"
    for seed, (name, (before, after)) in enumerate(HRSCD_NAMES.items()):
        place = "D" + name[:2]
        put(top / "images_2006" / place / f"{before}.tif", picture(2 * seed))
        put(top / "images_2012" / place / f"{after}.tif", picture(2 * seed + 1))
        masks = ("labels_land_cover_2006", "labels_land_cover_2012", "labels_change")
        for sub, mask in zip(masks, hrscd_masks(name), strict=True):
            put(top / sub / place / f"{after}.tif", mask)
    return top


def draw_whu(folder: Path) -> Path:
    """Draw WHU-CD: two dates of a train and a test area, and the files beside them that are not wanted."""
    top = folder / "Building change detection dataset" / "1. The two-period image data"
    for split, width in (("train", 70), ("test", 40)):
        for year in (2012, 2016):
            whole = top / str(year) / "whole_image" / split
            put(whole / "image" / f"{year}_{split}.tif", picture(year + width, width, 48))
            put(whole / "label" / f"{year}_{split}.tif", picture(0, width, 48)[..., 0])
            put(top / str(year) / "splited_images" / split / "image" / f"{year}_{split}_0.tif", picture(1))
        put(top / "change_label" / split / "change_label.tif", whu_mask(width))
    return top.parent


def whu_mask(width: int) -> Array:
    """Return the change mask of an area of WHU-CD."""
    return np.random.default_rng(width).choice(np.array([0, 255], np.uint8), (48, width))


def square(row: int, column: int, side: int, size: int = 96) -> Array:
    """Return a mask of 0 and 1 with one square."""
    mask = np.zeros((size, size), np.uint8)
    mask[row : row + side, column : column + side] = 1
    return mask


def draw_s2looking(folder: Path, turned: bool = False, seen: bool = True, pairs: int = 12) -> Path:
    """Draw S2Looking: per pair one new house and one that vanished, in label1 (blue) and label2 (red).

    Args:
        folder: Where to put it.
        turned: Whether label1 holds the houses that vanished.
        seen: Whether the images show the houses.
        pairs: The number of train pairs.
    """
    top = folder / "S2Looking"
    for split, count in (("train", pairs), ("val", 1)):
        for index in range(count):
            rng = np.random.default_rng(index)
            new, vanished = square(8 + index, 10, 30), square(30, 50 - index, 36)
            images = [rng.integers(90, 110, (96, 96, 3)).astype(np.uint8) for _ in range(2)]
            if seen:
                images[1][new > 0] += np.uint8(60)
                images[0][vanished > 0] += np.uint8(60)
            for number, image in enumerate(images, start=1):
                put(top / split / f"Image{number}" / f"{index}.png", image)
            marks = (vanished, new) if turned else (new, vanished)
            for number, mark, colour in ((1, marks[0], (0, 0, 255)), (2, marks[1], (255, 0, 0))):
                put(top / split / f"label{number}" / f"{index}.png", mark[..., None] * np.array(colour, np.uint8))
            put(top / split / "label" / f"{index}.png", (new | vanished) * np.uint8(255))
    return top
