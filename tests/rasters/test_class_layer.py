"""Scenes with classes: connected changes of one class each, in any strips; styles, colours and strata."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

import change.rasters.numbering
from change.common.classes import Classes, parse_classes
from change.common.errors import UserError
from change.common.pictures import class_colours
from change.rasters.class_layer import class_style, mask_colours, measure_classes, name_changes, require_few
from change.rasters.levels import COLOURS, NO_DATA
from change.rasters.numbering import Numbering
from change.rasters.strata import read_strata
from tests.rasters.drawn import GRID, UTM, write_raster

CLASSES = parse_classes(["new <-> vanished", 'a "quoted" & <odd> name'])


def draw_mask() -> NDArray[np.uint8]:
    """Draw large and small patches of three classes that touch each other, and some pixels without data."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (60, 50)).astype(np.uint8)
    mask = np.asarray(cv2.resize(mask[:20, :16], (50, 60), interpolation=cv2.INTER_NEAREST), np.uint8)
    mask[5:9, 5:30] = NO_DATA
    return mask


@pytest.mark.parametrize("rows", [7, 512])
def test_a_change_has_one_class(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many changes as OpenCV finds when it labels the whole mask of each class, with the same pixels."""
    monkeypatch.setattr(change.rasters.numbering, "ROWS", rows)
    mask = draw_mask()
    place = {"height": 60, "width": 50, "crs": UTM, "transform": GRID}
    numbering = Numbering(tmp_path / "numbers.tif", place, CLASSES)
    for top in (0, 33):
        part = mask[top : top + 33]
        numbering.add(part, np.full_like(part, 200))
    changes = numbering.finish()
    numbers = rasterio.open(tmp_path / "numbers.tif").read(1)
    count = 0
    for value in (1, 2, 3):
        found, labels = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=8)
        for label in range(1, found):
            (number,) = np.unique(numbers[labels == label])
            assert numbering.values[number] == value and changes.pixels[number] == (labels == label).sum()
        count += found - 1
    assert len(changes.pixels) == len(numbering.values) == 1 + count and numbering.values[0] == 0
    assert ((numbers > 0) == ((mask > 0) & (mask < NO_DATA))).all()
    rows_of_classes = measure_classes(CLASSES, numbering.values, changes.pixels, None)
    assert [row["pixels"] for row in rows_of_classes] == [(mask == value).sum() for value in (1, 2, 3)]
    assert name_changes(CLASSES, np.array([0, 2])).tolist() == ["", "vanished"]


def test_style_and_colours() -> None:
    """The polygons of a class have the colour of its mask value; names may hold any character."""
    style = ElementTree.fromstring(class_style(CLASSES).partition("\n")[2])
    assert [category.get("value") for category in style.iter("category")] == list(CLASSES.names)
    colours = [prop.get("v") for prop in style.iter("prop") if prop.get("k") == "outline_color"]
    assert colours == [",".join(map(str, (*colour, 255))) for colour in class_colours(3)]
    table = mask_colours(COLOURS, CLASSES)
    assert [table[value][:3] for value in (1, 2, 3)] == class_colours(3) and table[NO_DATA] == COLOURS[NO_DATA]
    assert mask_colours(COLOURS, None) == COLOURS


def test_too_many_classes() -> None:
    names = tuple(f"c{number}" for number in range(255))
    with pytest.raises(UserError, match=r"tells apart 255 classes: mask\.tif can hold at most 254"):
        require_few(Classes(names, tuple(range(256))))


def test_all_classes_are_change_in_strata(tmp_path: Path) -> None:
    """A mask with classes has the strata of the same mask without."""
    mask = draw_mask()
    merged = np.where(mask == NO_DATA, mask, np.minimum(mask, 1)).astype(np.uint8)
    found = []
    for name, levels in (("classes", mask), ("merged", merged)):
        with rasterio.open(write_raster(tmp_path / f"{name}.tif", levels[None], UTM, GRID)) as dataset:
            found.append(np.concatenate([strata for _, strata in read_strata(dataset, 2)]))
    assert np.array_equal(found[0], found[1]) and set(np.unique(found[0])) == {0, 1, 2, 3}
