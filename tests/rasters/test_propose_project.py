"""The QGIS project of `python -m change propose`: its files, and what QGIS reads and edits, if it is installed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio

import change.rasters.tiles
from change.rasters.propose_project import place_from
from tests.rasters.drawn import GRID, UTM, WORLD, noise, write_raster
from tests.rasters.test_propose import _loggers as _loggers
from tests.rasters.test_propose import propose, run_predict, write_scene
from tests.rasters.test_training_set import DEGREES, read_png

# Opens a project in QGIS without a window. It deletes the first polygon of the first tile with any, draws a square at
# the centre of the last tile, marks that tile as done, and reports what it finds.
IN_QGIS = """
import json, sys
from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsPointXY, QgsProject
QgsApplication.setPrefixPath("/usr", True)
app = QgsApplication([], False)
app.initQgis()
project = QgsProject.instance()
read = project.read(sys.argv[1])
layers = [node.layer() for node in project.layerTreeRoot().findLayers()]
found = {
    "read": read, "crs": project.crs().toWkt(), "names": [layer.name() for layer in layers],
    "valid": [layer.isValid() and layer.crs().isValid() for layer in layers],
    "sources": [layer.source().partition("|")[0] for layer in layers],
    "renderers": [type(layer.renderer()).__name__ for layer in layers],
    "bands": [[layer.renderer().redBand(), layer.renderer().greenBand(), layer.renderer().blueBand()]
              for layer in layers[2:]],
    "ends": [[layer.renderer().redContrastEnhancement().minimumValue(),
              layer.renderer().redContrastEnhancement().maximumValue()] for layer in layers[2:]],
}
changes, tiles = layers[:2]
last = list(tiles.getFeatures())[-1]
side = last.geometry().boundingBox().width() / 4
square = QgsFeature(changes.fields())
square.setGeometry(QgsGeometry.fromRect(last.geometry().centroid().boundingBox().buffered(side)))
changes.startEditing()
removed = next(changes.getFeatures())
found["removed"] = removed["tile"]
found["edited"] = [changes.deleteFeature(removed.id()), changes.addFeature(square), changes.commitChanges()]
tiles.startEditing()
found["done"] = tiles.changeAttributeValue(last.id(), tiles.fields().indexOf("done"), True) and tiles.commitChanges()
print("FOUND" + json.dumps(found), flush=True)
app.exitQgis()
"""


@cache
def python_of_qgis() -> str:
    """Return a Python that can import QGIS; empty if there is none."""
    candidates = [sys.executable, "/usr/bin/python3", shutil.which("python3") or ""]
    for python in filter(None, candidates):
        if (
            Path(python).exists()
            and not subprocess.run([python, "-c", "import qgis.core"], capture_output=True).returncode
        ):
            return python
    return ""


def open_in_qgis(project: Path) -> dict[str, Any]:
    """Run `IN_QGIS` on a project; skip the test if QGIS is not installed."""
    python = python_of_qgis()
    if not python:
        pytest.skip("QGIS is not installed (on Debian: apt-get install python3-qgis)")
    environment = {"PATH": os.environ["PATH"], "HOME": str(project.parent), "QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [python, "-c", IN_QGIS, str(project)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")] or [done.stderr]
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND"))
    return found


def test_the_project_is_xml(tmp_path: Path) -> None:
    """It is well-formed although names hold special characters, and its relative paths lead to the files."""
    out = write_scene(tmp_path)
    propose(out, "-n", 4)
    folder = out / "propose"
    assert {path.name for path in folder.iterdir()} == {"propose.gpkg", "propose.qgs", "propose.qml"}
    project = ElementTree.parse(folder / "propose.qgs").getroot()
    layers = {layer.findtext("layername"): layer for layer in project.iter("maplayer")}
    assert list(layers) == ["changes", "tiles", "after: after.tif", "before: be & <fore>.tif"]
    for name, layer in layers.items():
        source = layer.findtext("datasource", "")
        path, _, own = source.partition("|layername=")
        assert (
            path.startswith(".") and (folder / path).is_file() and own == (name if name in ("changes", "tiles") else "")
        )
        wkt = layer.findtext("srs/spatialrefsys/wkt", "")
        assert rasterio.crs.CRS.from_wkt(wkt) == UTM
    in_tree = [(layer.get("id"), layer.get("source")) for layer in project.iter("layer-tree-layer")]
    assert in_tree == [(layer.findtext("id"), layer.findtext("datasource")) for layer in layers.values()]
    assert all(len(str(number)) > 10 for number, _ in in_tree)  # QGIS replaces shorter ones
    style = ElementTree.parse(folder / "propose.qml").getroot().find("renderer-v2")
    drawn = layers["changes"].find("renderer-v2")
    assert style is not None and drawn is not None
    assert ElementTree.tostring(drawn).strip() == ElementTree.tostring(style).strip()


def test_paths(tmp_path: Path) -> None:
    """Paths are relative and with slashes, also through a link and to a file beside the project."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "x.tif").touch()
    assert place_from(tmp_path / "a" / "b", tmp_path / "x.tif") == "../../x.tif"
    assert place_from(tmp_path / "link", tmp_path / "x.tif") == "../../x.tif"
    assert place_from(tmp_path, tmp_path / "x.tif") == "./x.tif"
    (tmp_path / "y.tif").symlink_to(tmp_path / "a" / "z.tif")
    assert place_from(tmp_path, tmp_path / "link" / ".." / ".." / "y.tif") == "./y.tif"
    assert place_from(tmp_path, tmp_path / "..x.tif") == "./..x.tif"


@pytest.mark.slow
@pytest.mark.parametrize(("crs", "transform"), [(UTM, GRID), (WORLD, DEGREES)])
def test_qgis_opens_and_edits(tmp_path: Path, caplog: pytest.LogCaptureFixture, crs: Any, transform: Any) -> None:
    """All layers open in their order, with the system and the style; what was edited there reaches the labels."""
    out = write_scene(tmp_path, crs, transform, bands=(3, 2, 1), stretch="5,95")
    caplog.set_level("INFO")
    tiles, changes = propose(out, "-n", 12)
    command = shlex.split(caplog.messages[-1])
    found = open_in_qgis(out / "propose" / "propose.qgs")
    assert found["read"] and all(found["valid"]) and rasterio.crs.CRS.from_wkt(found["crs"]) == crs
    assert found["names"] == ["changes", "tiles", "after: after.tif", "before: be & <fore>.tif"]
    layers = out / "propose" / "propose.gpkg"
    rasters = [tmp_path / f"{name}.tif" for name in ("after", "be & <fore>")]
    assert [Path(source).resolve() for source in found["sources"]] == [layers, layers, *rasters]
    assert found["renderers"] == [
        "QgsSingleSymbolRenderer",
        "QgsCategorizedSymbolRenderer",
        *["QgsMultiBandColorRenderer"] * 2,
    ]
    metadata = json.loads((out / "metadata.json").read_text())["stretched"]
    assert found["bands"] == [[3, 2, 1]] * 2
    ends = [[metadata[date][end][0] for end in ("low", "high")] for date in ("after", "before")]
    assert found["ends"] == [pytest.approx(pair) for pair in ends]
    assert found["edited"] == [True] * 3 and found["done"]
    edited = geopandas.read_file(layers, layer="tiles")
    assert edited["done"].notna().tolist() == [False] * 11 + [True]
    assert len(geopandas.read_file(layers, layer="changes")) == len(changes)
    data = tmp_path / "data"
    assert change.rasters.tiles.main([*command[4:-1], str(data)]) == 0
    labels = {}
    for number, row, column in tiles[["tile", "row", "column"]].itertuples(index=False):
        (path,) = data.glob(f"*/label/*_{row}_{column}.png")
        labels[number] = read_png(path) > 0
    assert labels[12][12:20, 12:20].all() and labels[12].sum() >= 16**2
    with rasterio.open(out / "mask.tif") as dataset:
        mask = dataset.read(1)
    row, column = tiles.set_index("tile").loc[found["removed"], ["row", "column"]]
    predicted = mask[row : row + 32, column : column + 32] == 1
    assert labels[found["removed"]].sum() < predicted.sum()


def test_a_colour_table(tmp_path: Path) -> None:
    """QGIS draws a raster with a colour table by itself."""
    paths = []
    for name, seed in (("before", 1), ("after", 2)):
        levels = noise(128, 128, bands=1, seed=seed)
        paths.append(write_raster(tmp_path / f"{name}.tif", levels))
        with rasterio.open(paths[-1], "r+") as dataset:
            dataset.write_colormap(1, {level: (level, 255 - level, level, 255) for level in range(256)})
    out = run_predict(paths, tmp_path / "out", min_area=0)
    propose(out, "-n", 2)
    project = ElementTree.parse(out / "propose" / "propose.qgs").getroot()
    assert project.find(".//rasterrenderer") is None
    assert np.unique([layer.get("type") for layer in project.iter("maplayer")]).tolist() == ["raster", "vector"]
