"""Synthetic scenes: they are reproducible, have correct masks, and pixel differences do not find their changes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.common import classes
from change.common.errors import UserError
from change.synthetic.builder import Builder
from change.synthetic.canvas import Canvas, draw_look, draw_second_look
from change.synthetic.render import draw_date, draw_mask, draw_scene, write_samples
from change.synthetic.world import BOTH, GONE, NEW, Building, Rectangle, World
from tests.conftest import run_verb

pytestmark = pytest.mark.slow


def otsu_f1(before: NDArray[np.uint8], after: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """Return the F1 of the channels' mean difference at Otsu's threshold."""
    difference = np.abs(before.astype(int) - after).mean(2).round().astype(np.uint8)
    _, found = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(2 * (found & mask).sum() / (found.sum() + mask.sum()))


def samples(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_verb("samples", *arguments)


def test_a_seed_gives_one_scene() -> None:
    first, again, other = draw_scene(96, 160, (3, 1)), draw_scene(96, 160, (3, 1)), draw_scene(96, 160, (3, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert [part.shape for part in first] == [(96, 160, 3), (96, 160, 3), (96, 160)]
    assert all(part.dtype == np.uint8 for part in first)


@pytest.mark.parametrize("size", [64, 96, 200])
def test_every_scene_has_a_change(size: int) -> None:
    for index in range(8):
        before, after, mask = draw_scene(size, size, (5, index))
        assert set(np.unique(mask)) == {0, 1}
        assert mask.mean() < 0.9
        assert before.std() > 3 and after.std() > 3


def test_difference_with_otsu_fails() -> None:
    scenes = [draw_scene(512, 512, (11, index)) for index in range(6)]
    side_by_side = [np.concatenate(parts) for parts in zip(*scenes, strict=True)]
    assert otsu_f1(side_by_side[0], side_by_side[1], side_by_side[2]) < 0.3


def test_mask_marks_the_roof_that_appears() -> None:
    """A white roof on an empty plane: its pixels in after are those of the mask, for any viewing angle."""
    wing = Rectangle(np.array([30.0, 34.0]), 0.4, 11.0, 7.0)
    white = (1.0, 1.0, 1.0)
    world = World(buildings=[Building((wing,), 6.0, "gable", (white, white), NEW)])
    rng = np.random.default_rng(0)
    before = draw_look(rng)
    canvases = [Canvas(128, 128, 2.0, look) for look in (before, draw_second_look(before, rng))]
    for date, canvas in enumerate(canvases):
        draw_date(world, date, canvas, np.random.default_rng(1), np.random.default_rng(2))
    mask = draw_mask(world, canvases)
    bright = (canvases[1].albedo > 0.9).all(2)
    assert (bright & (mask > 0)).sum() > 0.97 * max(bright.sum(), mask.sum())
    assert not (canvases[0].albedo > 0.9).all(2).any()
    area = (44 + 1) * (28 + 1)  # drawn with its outline, half a pixel wide on each side
    assert float(mask.sum()) == pytest.approx(area, rel=0.05)
    assert set(np.unique(mask)) == {0, classes.NEW}


def test_directions() -> None:
    """A pixel of a new roof is new, even if a house was torn down for it; elsewhere that house has vanished."""
    white = (1.0, 1.0, 1.0)
    places = ((np.array([20.0, 30.0]), GONE), (np.array([26.0, 30.0]), NEW), (np.array([50.0, 30.0]), BOTH))
    world = World(
        buildings=[Building((Rectangle(at, 0.0, 8.0, 6.0),), 0.0, "flat", (white, white), d) for at, d in places]
    )
    canvas = Canvas(120, 120, 2.0, draw_look(np.random.default_rng(0)))
    mask = draw_mask(world, [canvas, canvas])
    assert mask[60, 26] == classes.VANISHED and mask[60, 44] == mask[60, 60] == classes.NEW and mask[60, 100] == 0
    assert (mask == classes.NEW).sum() == pytest.approx(33 * 25, rel=0.1)
    assert (mask == classes.VANISHED).sum() == pytest.approx(12 * 25, rel=0.1)


def test_what_is_there_at_both_dates_is_unmarked() -> None:
    world = Builder(300, 300, np.random.default_rng(8)).build()
    stays = World(
        world.ground, world.roads, world.patches, [b for b in world.buildings if b.dates == BOTH], world.trees
    )
    canvases = [Canvas(300, 300, 1.0, draw_look(np.random.default_rng(i))) for i in range(2)]
    assert len(stays.buildings) > 5
    assert not draw_mask(stays, canvases).any()
    assert draw_mask(world, canvases).any()


def test_command_writes_a_data_set(tmp_path: Path) -> None:
    result = samples(tmp_path / "out", "--count", 2, "--size", 64, "--seed", 4)
    assert result.returncode == 0, result.stderr
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    images = ["A/4_0000.jpg", "A/4_0001.jpg", "B/4_0000.jpg", "B/4_0001.jpg"]
    assert written == [*images, "label/4_0000.png", "label/4_0001.png"]
    _, _, mask = draw_scene(64, 64, (4, 1))
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "out" / "label" / "4_0001.png")), mask * 255)
    again = samples(tmp_path / "out", "--count", 1, "--size", 64)
    assert again.returncode == 2 and "already exists" in again.stderr and again.stderr.count("\n") == 1
    assert len([*tmp_path.iterdir()]) == 1 and len([*(tmp_path / "out" / "A").iterdir()]) == 2


def test_command_writes_directions(tmp_path: Path) -> None:
    assert samples(tmp_path / "out", "--count", 1, "--size", 64, "--seed", 4, "--direction").returncode == 0
    assert classes.read_classes(tmp_path / "out") == classes.parse_classes("new <-> vanished")
    _, _, mask = draw_scene(64, 64, (4, 0), direction=True)
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "out" / "label" / "4_0000.png")), mask)


@pytest.mark.parametrize("wrong", [("--count", 0), ("--size", 8), ("--seed", -1), ("--size", "big")])
def test_wrong_values(tmp_path: Path, wrong: tuple[str, object]) -> None:
    result = samples(tmp_path / "out", *wrong)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and wrong[0] in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_verb() -> None:
    result = run_verb("paint")
    assert result.returncode == 2 and "samples" in result.stderr and result.stderr.count("\n") == 1


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder is replaced. Other folders stay, even one that somebody fills while the scenes are drawn."""
    (tmp_path / "empty").mkdir()
    write_samples(tmp_path / "empty", 1, 64, 0)
    assert (tmp_path / "empty" / "A" / "0_0000.jpg").is_file()
    folder = tmp_path / "out"

    def draw_slowly(*given: Any) -> tuple[NDArray[np.uint8], ...]:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        return draw_scene(*given)

    monkeypatch.setattr("change.synthetic.render.draw_scene", draw_slowly)
    with pytest.raises(UserError, match="already exists"):
        write_samples(folder, 1, 64, 0)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="choose a folder of its own"):
        write_samples(Path(), 1, 64, 0)
