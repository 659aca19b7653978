"""Training, testing and predicting with classes: the commands that a user types."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from change import ChangeDetector
from change.checkpoint import load_checkpoint
from tests.class_pairs import CLASSES_OF_PAIRS, write_class_set
from tests.conftest import curve, last_line, run_program, run_verb, train_arguments

pytestmark = pytest.mark.slow

FEW: dict[str, object] = {"epoch": 1, "width": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_set(tmp_path_factory.mktemp("classes"), 2, 1)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binary pass on merged classes, and then the three passes with classes; each starts from the one before."""
    folder = tmp_path_factory.mktemp("run")
    for name, options in (
        ("any", {"classes": "any"}),
        ("1", {"checkpoint_path": folder / "any.pth", "dice": 0.5, "swap": True, "cache": "disk"}),
        ("2", {"checkpoint_path": folder / "1.pth", "refine": True, "cache": "device"}),
        ("3", {"checkpoint_path": folder / "2.pth", "refine": True, "cross": True}),
    ):
        options |= {"resume": name != "any", "best_name": name, "cache_path": folder / "cache"}
        if options.get("cache") != "disk":
            del options["cache_path"]
        result = run_program("train.py", *train_arguments(data, folder, **FEW, **options))
        assert result.returncode == 0, result.stderr
        if name == "1":
            assert (
                "apart changed, this run 3 classes (new, vanished, recoloured): the last layer is made from"
                in result.stderr
            )
            assert "newly initialised: 2 in head.out" in result.stderr
    return folder


def stored(path: Path) -> NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(path))


def score(folder: Path, weights: Path, root: Path, *options: object) -> dict[str, Any]:
    """Run test.py and return metrics.json."""
    arguments = ("--test_root", root, "--checkpoint_path", weights, "--save_path", folder, "--device", "cpu")
    result = run_program("test.py", *arguments, *options)
    assert result.returncode == 0, result.stderr
    (folder / "out.txt").write_text(result.stdout + result.stderr)
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def test_checkpoints_know_their_classes(run: Path) -> None:
    """The encoder and the decoder of the binary pass were taken over."""
    assert load_checkpoint(run / "any.pth").classes is None and load_checkpoint(run / "any.pth").config.outputs == 1
    for name in "123":
        checkpoint = load_checkpoint(run / f"{name}.pth")
        assert checkpoint.classes == CLASSES_OF_PAIRS and checkpoint.config.classes == 3
        assert [record.scores.keys() >= {"f1", "mean_f1"} for record in checkpoint.lineage][-1]
    assert [len(load_checkpoint(run / f"{name}.pth").lineage) for name in ("any", "1", "2", "3")] == [1, 2, 3, 4]
    assert curve(run, "val_mean/f1", "3") and curve(run, "val_f1/recoloured", "3")


def test_scores_and_masks(data: Path, run: Path, tmp_path: Path) -> None:
    """The counts are those of the written masks; these mark the pixels of the headline counts."""
    found = score(tmp_path, run / "3.pth", data / "val", "--threshold", 0.2, "--save_result", "--report")
    truth, mask = stored(data / "val" / "label" / "0.png"), stored(tmp_path / "pred" / "0.png")
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (truth.ravel(), mask.ravel()), 1)
    classes, counts = found["classes"], found["counts"]
    assert classes["confusion"]["pixels"] == confusion.tolist()
    assert classes["confusion"]["names"] == ["unchanged", "new", "vanished", "recoloured"]
    assert counts["tp"] + counts["fp"] == (mask > 0).sum() > 0 and counts["fn"] == ((mask == 0) & (truth > 0)).sum()
    assert "mean over classes" in (tmp_path / "out.txt").read_text()
    assert '"confusion"' in (tmp_path / "report.html").read_text()
    detector = ChangeDetector(run / "3.pth", device="cpu")
    detector.threshold = 0.2
    pair = [data / "val" / sub / "0.png" for sub in "AB"]
    assert np.array_equal(detector.predict_classes(*pair), mask)
    assert np.array_equal(detector.predict(*pair) > 0.2, mask > 0)


def test_sets_and_checkpoints_of_other_kinds(data: Path, run: Path, tmp_path: Path) -> None:
    """A binary checkpoint scores classes as changed, and one with classes scores binary masks; others are refused."""
    found = score(tmp_path / "any", run / "any.pth", data / "val")
    assert "classes" not in found
    assert "all classes of the masks are scored as changed" in (tmp_path / "any" / "out.txt").read_text()
    binary = tmp_path / "binary" / "val"
    shutil.copytree(data / "val", binary)
    PIL.Image.fromarray((stored(binary / "label" / "0.png") > 0) * np.uint8(255)).save(binary / "label" / "0.png")
    merged = score(tmp_path / "merged", run / "3.pth", data / "val", "--classes", "any")
    found = score(tmp_path / "plain", run / "3.pth", binary)
    assert found["counts"] == merged["counts"] and "classes" not in found and "classes" not in merged
    (binary / "classes.txt").write_text("a\nb\nc\n")
    arguments = ("--test_root", binary, "--checkpoint_path", run / "3.pth", "--save_path", tmp_path / "x")
    PIL.Image.fromarray(stored(data / "val" / "label" / "0.png")).save(binary / "label" / "0.png")
    result = run_program("test.py", *arguments)
    assert result.returncode == 2 and "the masks hold 3 classes (a, b, c)" in last_line(result)


def test_data_that_is_refused(data: Path, run: Path, tmp_path: Path) -> None:
    """Values beyond the classes, other classes than those of the file, and other ones in a continued run."""
    for options, message in (
        ({"classes": "new,vanished"}, "gives other classes than classes.txt"),
        ({"classes": "new,new"}, "is listed twice"),
    ):
        result = run_program("train.py", *train_arguments(data, tmp_path / "run", **FEW, **options))
        assert result.returncode == 2 and message in last_line(result)
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("new <-> vanished\n")
    result = run_program("train.py", *train_arguments(tmp_path / "data", tmp_path / "run", **FEW))
    assert result.returncode == 2 and "and there are 2 classes (new, vanished)" in last_line(result)
    shutil.copytree(run, tmp_path / "again")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\n")
    result = run_program(
        "train.py", "--continue_run", tmp_path / "again", "--best_name", "1", "--root", tmp_path / "data"
    )
    assert result.returncode == 2 and "the run began with 3 classes (new, vanished, recoloured)" in last_line(result)


def test_scenes_and_pictures(data: Path, run: Path, tmp_path: Path) -> None:
    """The mask of predict has the values of test.py; each polygon has one class, and their areas are summed up."""
    geopandas = pytest.importorskip("geopandas")
    place = rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)
    for sub in "AB":
        levels = stored(data / "val" / sub / "0.png").transpose(2, 0, 1)
        profile = {"count": 3, "height": 64, "width": 64, "dtype": "uint8", "crs": "EPSG:32631", "transform": place}
        with rasterio.open(tmp_path / f"{sub}.tif", "w", **profile) as dataset:
            dataset.write(levels)
    options = ("--checkpoint_path", run / "3.pth", "--threshold", 0.2, "--device", "cpu", "--amp", "off")
    for suffix, folder in (("tif", tmp_path), ("png", data / "val")):
        pair = [folder / f"{sub}.tif" if suffix == "tif" else folder / sub / "0.png" for sub in "AB"]
        result = run_verb("predict", *pair, "-o", tmp_path / suffix, *options)
        assert result.returncode == 0, result.stderr
    detector = ChangeDetector(run / "3.pth", device="cpu")
    detector.threshold = 0.2
    expected = detector.predict_classes(*[data / "val" / sub / "0.png" for sub in "AB"])
    assert np.array_equal(stored(tmp_path / "png" / "mask.png"), expected)
    with rasterio.open(tmp_path / "tif" / "mask.tif") as mask:
        assert np.array_equal(mask.read(1), expected) and mask.nodata == 255
        assert len({mask.colormap(1)[value] for value in range(4)}) == 4
    metadata = json.loads((tmp_path / "tif" / "metadata.json").read_text())
    frame = geopandas.read_file(tmp_path / "tif" / "changes.gpkg")
    for row in metadata["classes"]:
        own = frame[frame["class"] == row["name"]]
        assert row["pixels"] == (expected == row["value"]).sum()
        assert (row["polygons"], row["area_m2"]) == (len(own), pytest.approx(own["area_m2"].sum()))
    assert sum(row["pixels"] for row in metadata["classes"]) == (expected > 0).sum() > 0
    assert 'attr="class"' in (tmp_path / "tif" / "changes.qml").read_text()


def test_check(data: Path, tmp_path: Path) -> None:
    """The masks of classes are in order, and a value too much is an error."""
    result = run_verb("check", data, "--save_path", tmp_path / "check")
    assert "no class" not in result.stdout and "error" not in result.stdout, result.stdout
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("new <-> vanished\n")
    result = run_verb("check", tmp_path / "data", "--save_path", tmp_path / "check")
    assert result.returncode == 1 and "error: mask value that is no class: 3" in result.stdout


def test_weights_are_finite_and_seeded(data: Path, run: Path, tmp_path: Path) -> None:
    """The same pass without a cache ends with the same weights."""
    options = {"checkpoint_path": run / "1.pth", "refine": True, "resume": True, "best_name": "2"}
    result = run_program("train.py", *train_arguments(data, tmp_path, **FEW, **options))
    assert result.returncode == 0, result.stderr
    ours, theirs = (load_checkpoint(folder / "2.pth").weights for folder in (tmp_path, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
