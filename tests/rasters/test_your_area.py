"""docs/your-area.md: its commands run as they are written there, and what the user draws changes the prediction."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from change.rasters.levels import HIGHEST
from tests.conftest import REPOSITORY, draw_pair, run_program
from tests.rasters.drawn import read_band, write_raster
from tests.test_docs import commands, text_of

HEIGHT, WIDTH, SIZE = 724, 934, 96  # of the pair and of the tiles, as on the page
POND = 40  # side of the ponds in pixels
VERBS = ["predict", "propose", "tiles", "finetune", "predict", "area"]
TINY = ["--train_batchsize=2", "--workers=0", "--device=cpu", "--lr=5e-4", "--amp=off"]


def draw_rasters(folder: Path) -> None:
    """Draw a pair in which a pond appears in the middle of every tile, which no checkpoint knows as a change."""
    before, after, _ = draw_pair(np.random.default_rng(1), WIDTH, HEIGHT)
    after = after.copy()
    for row in range((SIZE - POND) // 2, HEIGHT - POND, SIZE):
        for column in range((SIZE - POND) // 2, WIDTH - POND, SIZE):
            after[row : row + POND, column : column + POND] = (60, 90, 70)
    for name, image in (("naip_2009", before), ("naip_2020", after)):
        write_raster(folder / f"{name}.tif", np.ascontiguousarray(image.transpose(2, 0, 1)))


def label_five(layers: Path) -> NDArray[np.bool_]:
    """Label five tiles as a user does: one polygon in each, instead of those predicted; return where they are, (H, W).

    The other tiles, which are not finished, are deleted.
    """
    tiles = geopandas.read_file(layers, layer="tiles").head(5)
    tiles["done"] = True
    squares, drawn = [], np.zeros((HEIGHT, WIDTH), np.bool_)
    for row, column, outline in zip(tiles["row"], tiles["column"], tiles.geometry, strict=True):
        left, bottom, right, top = outline.bounds
        rim = (SIZE - POND) / 2 / SIZE * (right - left)
        squares.append(shapely.box(left + rim, bottom + rim, right - rim, top - rim))
        first = row + (SIZE - POND) // 2, column + (SIZE - POND) // 2
        drawn[first[0] : first[0] + POND, first[1] : first[1] + POND] = True
    changes = geopandas.GeoDataFrame({"tile": tiles["tile"]}, geometry=squares, crs=tiles.crs)
    changes.to_file(layers, layer="changes", driver="GPKG")
    tiles.to_file(layers, layer="tiles", driver="GPKG")
    return drawn


def walk_through(folder: Path, epochs: int) -> tuple[NDArray[np.bool_], list[NDArray[np.uint8]]]:
    """Run the commands of the page in a folder; return where the user drew change, and the probabilities of both maps.

    Only the fine-tuning gets further options, which make it short.
    """
    (folder / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    drawn = np.zeros((HEIGHT, WIDTH), np.bool_)
    verbs = []
    for command in commands(text_of("docs/your-area.md")):
        python, module, package, verb, *arguments = shlex.split(command)
        assert (python, module, package) == ("python", "-m", "change")
        verbs.append(verb)
        if verb == "tiles":
            drawn = label_five(folder / "changes" / "propose" / "propose.gpkg")
        if verb == "finetune":
            arguments += [*TINY, f"--epoch={epochs}", f"--val_epoch={epochs}"]
        done = run_program("change/__main__.py", verb, *arguments, cwd=folder)
        assert done.returncode == 0, (command, done.stderr)
    assert verbs == VERBS
    assert (folder / "changes2" / "area" / "area_sample.gpkg").is_file()
    return drawn, [read_band(folder / name / "probability.tif") for name in ("changes", "changes2")]


@pytest.mark.slow
def test_walk_through(tmp_path: Path) -> None:
    """On drawn rasters: the network has learned five ponds, and finds the ponds of other tiles as well."""
    draw_rasters(tmp_path)
    drawn, (before, after) = walk_through(tmp_path, epochs=20)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] % SIZE
    pond = np.maximum(abs(rows - SIZE / 2 + 0.5), abs(columns - SIZE / 2 + 0.5)) < POND / 2
    assert (pond & drawn).sum() == drawn.sum() == 5 * POND**2
    for marked in (drawn, pond & ~drawn):
        assert before[marked].mean() / HIGHEST < 0.4 and after[marked].mean() / HIGHEST > 0.6
    assert after[~pond].mean() / HIGHEST < 0.4


@pytest.mark.rare
@pytest.mark.slow
def test_on_the_real_pair(tmp_path: Path) -> None:
    """On the pair that the page names, if PRX_REAL_DATA holds it: every command works, and the map changes."""
    folder = Path(os.environ.get("PRX_REAL_DATA", "")) / "scenes"
    if not (folder / "naip_2009.tif").is_file():
        pytest.skip("PRX_REAL_DATA names no folder with scenes/naip_2009.tif")
    for name in ("naip_2009.tif", "naip_2020.tif"):
        (tmp_path / name).symlink_to(folder / name)
    drawn, (before, after) = walk_through(tmp_path, epochs=8)
    assert before.shape == drawn.shape and after[drawn].astype(float).mean() > before[drawn].mean()
