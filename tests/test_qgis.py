"""docs/qgis/change.py, the script for QGIS: with a stand-in for QGIS, and in QGIS itself if it is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely

from tests.conftest import REPOSITORY, last_line, run_verb, surroundings
from tests.rasters.drawn import UTM, read_band, scene
from tests.rasters.test_propose_project import python_of_qgis
from tests.test_docs import commands, text_of

SCRIPT = REPOSITORY / "docs" / "qgis" / "change.py"
# What QGIS sets on some systems. The program must not see it.
FOREIGN = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PROJ_LIB": "/nowhere", "GDAL_DATA": "/nowhere"}


def write_program(folder: Path, source: str) -> Path:
    """Write a program that runs in this Python, and finds this repository."""
    folder.mkdir(exist_ok=True)
    program = folder / "prx-change"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{source}")
    program.chmod(0o755)
    return program


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write the command `prx-change` as pip does, but for this repository."""
    return write_program(tmp_path / "bin", "from change.__main__ import entry\nentry()\n")


# --- without QGIS --------------------------------------------------------------------------------------------------


def stand_in(name: str) -> type:
    """Make an empty class in place of one of QGIS."""
    return type(name, (Exception,) if name.endswith("Exception") else (), {})


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script with stand-ins for the modules of QGIS."""
    for name in ("qgis", "qgis.core", "qgis.PyQt", "qgis.PyQt.QtGui"):
        module = ModuleType(name)
        vars(module)["__getattr__"] = stand_in
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("script_for_qgis", SCRIPT)
    assert spec is not None and spec.loader is not None
    imported = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    return imported


class Feedback:
    """Collects what an algorithm reports, and cancels it once `cancel_at` appears in a line or as progress."""

    def __init__(self, cancel_at: object = None) -> None:
        self.lines: list[str] = []
        self.progress: list[float] = []
        self.cancel_at = cancel_at

    def pushCommandInfo(self, line: str) -> None:
        self.lines.append(line)

    pushConsoleInfo = pushCommandInfo

    def setProgress(self, progress: float) -> None:
        self.progress.append(progress)

    def isCanceled(self) -> bool:
        return self.cancel_at in (*self.lines, *(["progress"] if self.progress else []))


BAR = """
import logging
from tqdm import tqdm
from change.common.logs import start_logging
start_logging()
with tqdm(total=40, desc="scene", unit="row", leave=False, mininterval=0, miniters=1) as bar:
    for row in range(40):
        bar.update(1)
        if row == 20:
            logging.info("größer: 9 von 100%, nicht 50%")
logging.info("written to out")
"""


def test_progress_and_log(tmp_path: Path, script: Any) -> None:
    """The program's own progress bar moves that of QGIS; everything else goes to the log."""
    feedback = Feedback()
    program = write_program(tmp_path, BAR)
    script.run([str(program), "a b"], tmp_path / "out", feedback)
    assert feedback.lines == [f"{program} 'a b'", "größer: 9 von 100%, nicht 50%", "written to out"]
    assert feedback.progress == sorted(feedback.progress) and len(set(feedback.progress)) > 10
    assert (feedback.progress[0], feedback.progress[-1]) == (0, 90)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from change.common.errors import fail\nsys.exit(fail('a.tif: choose another'))", "a.tif: choose another"),
        ("raise ValueError('no such thing')", "exit code 1: ValueError: no such thing"),
    ],
)
def test_errors(tmp_path: Path, script: Any, source: str, reason: str) -> None:
    """The error is the program's line, without the word before it, which QGIS adds itself."""
    program = write_program(tmp_path, f"sys.stderr.write('first\\n')\n{source}\n")
    feedback = Feedback()
    with pytest.raises(script.QgsProcessingException) as failure:
        script.run([str(program)], tmp_path / "out", feedback)
    assert str(failure.value) == reason and feedback.lines[1] == "first"
    with pytest.raises(script.QgsProcessingException, match=r"^cannot run .*gone: No such file"):
        script.run([str(tmp_path / "gone")], tmp_path / "out", Feedback())


def test_environment(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program does not see what QGIS sets for its own Python, GDAL and PROJ."""
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    program = write_program(tmp_path, "import os\nprint(sorted(v for v in os.environ.values() if v == '/nowhere'))")
    feedback = Feedback()
    script.run([str(program)], tmp_path / "out", feedback)
    assert feedback.lines[1:] == ["[]"]


STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
out = pathlib.Path(sys.argv[1])
out.with_name(".out.part").mkdir()
out.with_name(".out.part").joinpath("mask.tif").touch()
out.with_name(".out.lock").touch()
print("begun", flush=True)
time.sleep(60)
"""


def test_a_program_that_does_not_stop_is_killed(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished files are removed, and nothing else."""
    monkeypatch.setattr(script, "PATIENCE", 0.2)
    program = write_program(tmp_path / "bin", STUBBORN)
    folder = tmp_path / "results"
    (folder / "other").mkdir(parents=True)
    script.run([str(program), str(folder / "out")], folder / "out", Feedback(cancel_at="begun"))
    assert [path.name for path in folder.iterdir()] == ["other"]


@pytest.mark.slow
def test_cancel(tmp_path: Path, script: Any, program: Path) -> None:
    """`predict`, cancelled while it predicts, leaves nothing, not even the folders that it made."""
    folder = tmp_path / "new" / "out"
    small = ["--tile", "32", "--overlap", "8", "--device", "cpu"]
    feedback = Feedback(cancel_at="progress")
    pair = [str(path) for path in scene(tmp_path / "scene")]
    script.run([str(program), "predict", *pair, "-o", str(folder), *small], folder, feedback)
    assert feedback.progress and max(feedback.progress) < 90 and not folder.parent.exists()


def test_it_needs_only_qgis() -> None:
    """It imports the standard library and QGIS, and is written for the Python of QGIS 3.22."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    packages = {str(name).partition(".")[0] for name in imported}
    assert "qgis" in packages and packages - {"qgis"} <= sys.stdlib_module_names


def test_the_page_names_every_parameter() -> None:
    """The table and the command of docs/qgis.md name the parameters that the script declares."""
    calls = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func).startswith("QgsProcessingParameter")]
    declared = {ast.literal_eval(call.args[0]) for call in named}
    page = text_of("docs/qgis.md")
    table = re.findall(r"`([A-Z]+)`", "".join(line for line in page.splitlines() if line.startswith("|")))
    (command,) = [command for command in commands(page) if command.startswith("qgis_process")]
    assert len(declared) == 8 and declared == set(table) > set(re.findall(r"\b([A-Z]+)=", command))


# --- in QGIS -------------------------------------------------------------------------------------------------------


def surroundings_of_qgis(folder: Path) -> dict[str, str]:
    """Return the environment of a QGIS without a window whose profile in `folder` holds the script."""
    scripts = folder / "profiles" / "default" / "processing" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(SCRIPT, scripts)
    own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "QGIS_CUSTOM_CONFIG_PATH": str(folder)}
    return {**surroundings(), **own, "QT_QPA_PLATFORM": "offscreen"}


def qgis_process(folder: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    """Run the script by QGIS's command; skip the test if that is not installed."""
    # Debian's qgis_process is a shell script that passes an option which the command does not know.
    command = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if not command:
        pytest.skip("QGIS is not installed (on Debian: apt-get install qgis)")
    given = [f"{name}={value}" for name, value in parameters.items()]
    return subprocess.run(
        [command, "--json", "run", "script:prx_change", "--", *given],
        capture_output=True,
        text=True,
        timeout=300,
        env=surroundings_of_qgis(folder),
        check=False,
    )


def find_pair(name: str, folder: Path) -> list[Path]:
    """Return two rasters: drawn ones, or the NAIP pair; skip the test if PRX_REAL_DATA does not hold it."""
    if name == "drawn":
        return scene(folder)
    found = [Path(os.environ.get("PRX_REAL_DATA", "")) / "scenes" / f"naip_{year}.tif" for year in (2009, 2020)]
    if not found[0].is_file():
        pytest.skip("PRX_REAL_DATA names no folder with scenes/naip_2009.tif")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), [("drawn", "prx_change_r18"), ("naip", "land")])
def test_qgis_process(tmp_path: Path, program: Path, name: str, weights: str) -> None:
    """It writes the same files as the command itself, and names them as its results."""
    before, after = find_pair(name, tmp_path / "scene")
    out, expected = tmp_path / "my results" / "out", tmp_path / "expected"
    checkpoint = REPOSITORY / "checkpoints" / f"{weights}.pth"
    given = {"PROGRAM": program, "CHECKPOINT": checkpoint, "THRESHOLD": 0.125, "EXTRA": "--min_area 0 --device cpu"}
    done = qgis_process(tmp_path / "qgis", BEFORE=before, AFTER=after, **given, OUTPUT=out)
    assert done.returncode == 0, done.stderr
    names = {"OUTPUT": "", "POLYGONS": "changes.gpkg", "MASK": "mask.tif", "PROBABILITY": "probability.tif"}
    assert json.loads(done.stdout)["results"] == {output: str(out / file) for output, file in names.items()}
    options = ["--checkpoint_path", checkpoint, "--threshold", 0.125, "--min_area", 0, "--device", "cpu"]
    assert run_verb("predict", before, after, "-o", expected, *options).returncode == 0
    for raster in ("mask.tif", "probability.tif"):
        assert np.array_equal(read_band(out / raster), read_band(expected / raster))
    polygons = [geopandas.read_file(folder / "changes.gpkg") for folder in (out, expected)]
    assert polygons[0].equals(polygons[1]) and len(polygons[0])


@pytest.mark.slow
def test_errors_of_qgis_process(tmp_path: Path, program: Path) -> None:
    """The error of `predict` is that of the algorithm; so is one in what it is given."""
    before, after = scene(tmp_path / "scene")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    layers = {"BEFORE": before, "AFTER": after, "OUTPUT": tmp_path / "out"}
    cases: list[tuple[dict[str, object], str]] = [
        ({"PROGRAM": program}, f"{tmp_path}/out exists but holds no result of this program: choose another -o"),
        ({"PROGRAM": tmp_path / "gone"}, f"cannot run {tmp_path}/gone: install PRX-Change and choose its program"),
        ({"PROGRAM": program, "EXTRA": '--min_area "2'}, 'EXTRA --min_area "2: No closing quotation'),
    ]
    for number, (given, error) in enumerate(cases):
        done = qgis_process(tmp_path / f"qgis{number}", **layers, **given)
        assert done.returncode == 1 and last_line(done).startswith(error) and "Traceback" not in done.stderr


# Runs the script in QGIS: with layers that it refuses, then cancelled, then to the end. Arguments: a JSON object with
# the parameters, and a vector file.
IN_QGIS = """
import json, sys
from pathlib import Path
from qgis.core import *
app = QgsApplication([], False)
app.initQgis()
sys.path.append(QgsApplication.pkgDataPath() + "/python/plugins")
import processing
from processing.core.Processing import Processing
Processing.initialize()

class Feedback(QgsProcessingFeedback):
    errors = ()
    def reportError(self, error, fatalError=False):
        self.errors = (*self.errors, error)

def refuse(**given):
    feedback = Feedback()
    try:
        processing.run("script:prx_change", {**parameters, **given}, feedback=feedback)
    except QgsProcessingException:
        return feedback.errors[0]

parameters, file = json.loads(sys.argv[1]), sys.argv[2]
tiles = QgsRasterLayer("type=xyz&url=http://127.0.0.1/{z}/{x}/{y}.png&zmax=1&zmin=0", "tiles", "wms")
drawn = QgsVectorLayer("Polygon?crs=epsg:32633", "drawn", "memory")
filtered = QgsVectorLayer(file, "filtered", "ogr")
filtered.setSubsetString("name = 'first'")
edited = QgsVectorLayer(file, "edited", "ogr")
edited.startEditing()
edited.deleteFeature(next(edited.getFeatures()).id())
assert all(layer.isValid() for layer in (tiles, drawn, filtered, edited))
refused = [refuse(BEFORE=tiles), refuse(AOI=drawn), refuse(AOI=filtered), refuse(AOI=edited)]

feedback = Feedback()
feedback.progressChanged.connect(lambda progress: feedback.cancel())
out = Path(parameters["OUTPUT"]).with_name("cancelled")
small = {"OUTPUT": str(out), "EXTRA": "--tile 32 --overlap 8 --device cpu"}
cancelled = processing.run("script:prx_change", {**parameters, **small}, feedback=feedback)
left = [path.name for path in out.parent.iterdir()] if out.parent.exists() else []

area = QgsVectorLayer(file, "area", "ogr")
processing.runAndLoadResults("script:prx_change", {**parameters, "AOI": area, "THRESHOLD": 0.125})
layers = [(node.layer(), node.isVisible()) for node in QgsProject.instance().layerTreeRoot().findLayers()]
print("FOUND" + json.dumps({
    "refused": refused, "cancelled": cancelled, "left": left,
    "layers": [[layer.source().partition("|")[0], visible, layer.renderer().type()] for layer, visible in layers],
    "ranges": [entry.label() for entry in layers[0][0].renderer().ranges()],
    "mask": [entry.value for layer, _ in layers if layer.source().endswith("mask.tif")
             for entry in layer.renderer().classes()],
}), flush=True)
app.exitQgis()
"""


@pytest.mark.slow
def test_layers_in_qgis(tmp_path: Path, program: Path) -> None:
    """Layers that are no files are refused, cancelling leaves nothing, and the result has its style and its order."""
    before, after = scene(tmp_path / "scene")
    left, bottom = 500_000, 5_000_000 - 2 * 96
    boxes = [shapely.box(left, bottom, left + 128, bottom + 192), shapely.box(left, bottom, left + 1, bottom + 1)]
    area = tmp_path / "area.gpkg"
    geopandas.GeoDataFrame({"name": ["first", "second"]}, geometry=boxes, crs=UTM).to_file(area)
    out = tmp_path / "results" / "out"
    given = {"BEFORE": before, "AFTER": after, "OUTPUT": out, "EXTRA": "--device cpu --min_area 0"}
    given["PROGRAM"] = Path("~", "..", program.relative_to(tmp_path))
    python = python_of_qgis()
    if not python:
        pytest.skip("QGIS is not installed (on Debian: apt-get install qgis)")
    done = subprocess.run(
        [python, "-c", IN_QGIS, json.dumps({name: str(value) for name, value in given.items()}), str(area)],
        capture_output=True,
        text=True,
        timeout=300,
        env=surroundings_of_qgis(tmp_path / "qgis"),
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")] or [done.stderr]
    found = json.loads(line.removeprefix("FOUND"))
    assert found["refused"] == [
        "BEFORE tiles is no local file: export the layer to one and choose that",
        "AOI drawn is no local file: export the layer to one and choose that",
        "AOI filtered shows a part of its file: export the layer and choose the new file",
        "AOI edited has edits that are not saved: save them first",
    ]
    assert found["cancelled"] == {} and found["left"] == []
    assert found["layers"][0] == [str(out / "changes.gpkg"), True, "graduatedSymbol"]
    rasters = [[str(out / "mask.tif"), False, "paletted"], [str(out / "probability.tif"), False, "singlebandgray"]]
    assert sorted(found["layers"][1:]) == rasters
    assert found["ranges"] == ["below 0.6", "0.6 to 0.8", "above 0.8"] and found["mask"] == [1]
    assert json.loads((out / "metadata.json").read_text())["aoi"] == str(area)
    mask = read_band(out / "mask.tif")
    assert (mask[:, :64] != 255).all() and (mask[:, 64:] == 255).all()
