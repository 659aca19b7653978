"""Pictures of results: colours, layout, and files that are complete or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from change.common.errors import UserError
from change.common.pictures import error_map, mask_picture, outline, outlined_panel, panel, save_png

CHANGED = np.array([[True, True, False], [False, True, False]])
MASK = np.array([[True, False, True], [False, True, True]])
GREEN, RED, BLUE, BLACK = [0, 255, 0], [255, 0, 0], [0, 0, 255], [0, 0, 0]  # TP, FN, FP, TN
GAP = 4


def test_error_map_colours() -> None:
    picture = error_map(CHANGED, MASK)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[GREEN, BLUE, RED], [BLACK, GREEN, RED]]


@pytest.mark.parametrize("labelled", [True, False])
def test_panel_layout(labelled: bool) -> None:
    before, after = np.random.default_rng(0).integers(0, 255, (2, 2, 3, 3), dtype=np.uint8)
    picture = panel(before, after, CHANGED, MASK if labelled else None)
    parts = [before, after, np.array([[[255] * 3, [255] * 3, BLACK], [BLACK, [255] * 3, BLACK]])]
    if labelled:
        parts.append(np.array([[GREEN, BLUE, RED], [BLACK, GREEN, RED]]))
    assert picture.shape == (2, 3 * len(parts) + GAP * (len(parts) - 1), 3)
    for index, part in enumerate(parts):
        left = index * (3 + GAP)
        np.testing.assert_array_equal(picture[:, left : left + 3], part)
        assert (picture[:, left + 3 : left + 3 + GAP] == 255).all()


def test_outlines_lie_around_the_change() -> None:
    """They are of the given width, hide no changed pixel, and leave the original as it is."""
    picture = np.random.default_rng(0).integers(0, 200, (9, 9, 3), dtype=np.uint8)
    changed, around = np.zeros((2, 9, 9), bool)
    changed[3:6, 4] = around[1:8, 2:7] = True
    before = picture.copy()
    drawn = outline(picture, changed, (255, 210, 0), width=2)
    expected = np.where((around & ~changed)[..., None], np.array([255, 210, 0], np.uint8), before)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(picture, before)
    panel_of_both = outlined_panel(picture, drawn, changed)
    assert panel_of_both.shape == (9, 9 + GAP + 9, 3) and (panel_of_both[3:6, 4] == before[3:6, 4]).all()
    assert (panel_of_both[2, [3, 9 + GAP + 3]] == (255, 210, 0)).all()


def test_saved_pictures_hold_their_pixels(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for picture, mode in ((colour, "RGB"), (mask_picture(CHANGED), "L")):
        path = tmp_path / "new" / "folder" / f"{mode}.png"
        save_png(picture, path)
        with PIL.Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", mode)
            np.testing.assert_array_equal(np.asarray(image), picture)
    assert sorted(path.name for path in path.parent.iterdir()) == ["L.png", "RGB.png"]


@pytest.mark.parametrize("target", ["file/folder/picture.png", "folder"])
def test_a_failed_picture_leaves_nothing(tmp_path: Path, target: str) -> None:
    """There is a file in place of a folder, or a folder in place of a file; permissions would not stop root."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"cannot write {tmp_path / target}"):
        save_png(mask_picture(CHANGED), tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"
