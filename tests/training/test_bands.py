"""Training, testing and predicting with bands other than 8-bit RGB: the commands that a user types."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch

from change import ChangeDetector
from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint
from change.common.bands import Bands
from change.common.errors import UserError
from tests.band_pairs import NAMES, write_band_pairs, write_band_set
from tests.conftest import last_line, run_program, run_verb, start, train_arguments, wait_for_step

FEW: dict[str, object] = {"cropsize": 32, "epoch": 1, "bands": "green=B03 red=B04 nir=B08 swir1=B11 swir2=B12"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_set(tmp_path_factory.mktemp("bands"))


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a short run on five bands."""
    folder = tmp_path_factory.mktemp("run")
    result = run_program("train.py", *train_arguments(data, folder, **FEW, cache="disk", cache_path=folder / "cache"))
    assert result.returncode == 0, result.stderr
    assert "mean and standard deviation of the bands of train: green 1" in result.stderr
    return folder / "1.pth"


def test_the_checkpoint_says_what_it_reads(data: Path, weights: Path) -> None:
    """Its mean and deviation are those of all train images, in their own units."""
    checkpoint = load_checkpoint(weights)
    assert checkpoint.bands == Bands(
        ("green", "red", "nir", "swir1", "swir2"), (1, 2, 3, 4, 5), 5, "uint16", (1, 0, None)
    )
    assert checkpoint.config.in_channels == 5
    images = [rasterio.open(path).read() for sub in "AB" for path in sorted((data / "train" / sub).iterdir())]
    levels = np.stack(images).transpose(1, 0, 2, 3).reshape(5, -1).astype(np.float64)
    assert checkpoint.mean == pytest.approx(levels.mean(1)) and checkpoint.std == pytest.approx(levels.std(1))


def test_a_cache_changes_nothing(data: Path, weights: Path, tmp_path: Path) -> None:
    result = run_program("train.py", *train_arguments(data, tmp_path / "run", **FEW))
    assert result.returncode == 0, result.stderr
    ours, theirs = (load_checkpoint(path).weights for path in (tmp_path / "run" / "1.pth", weights))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_program_gives_the_same_mask(data: Path, weights: Path, tmp_path: Path) -> None:
    """test.py, predict, and the Python interface with files and with arrays."""
    arguments = ("--test_root", data / "val", "--checkpoint_path", weights, "--threshold", 0.4, "--save_result")
    result = run_program("test.py", *arguments, "--save_path", tmp_path / "test", "--report", "--save_panels")
    assert result.returncode == 0, result.stderr
    expected = np.asarray(PIL.Image.open(tmp_path / "test" / "pred" / "0.png")) > 0
    assert 0 < expected.sum() < expected.size
    pair = [data / "val" / sub / "0.tif" for sub in "AB"]
    options = ("--checkpoint_path", weights, "--threshold", 0.4, "--device", "cpu", "--amp", "off")
    result = run_verb("predict", *pair, "-o", tmp_path / "scene", *options)
    assert result.returncode == 0, result.stderr
    with rasterio.open(tmp_path / "scene" / "mask.tif") as mask:
        assert np.array_equal(mask.read(1) == 1, expected)
    metadata = json.loads((tmp_path / "scene" / "metadata.json").read_text())
    assert metadata["read_bands"] == {"green": 1, "red": 2, "nir": 3, "swir1": 4, "swir2": 5}
    assert metadata["bands"] == [1, 2, 3] and metadata["read_type"] == "uint16"
    detector = ChangeDetector(weights, device="cpu")
    found = detector.predict(*map(str, pair))
    assert np.array_equal(found > 0.4, expected)
    arrays = [rasterio.open(path).read().transpose(1, 2, 0) for path in pair]
    assert np.array_equal(detector.predict(*arrays), found)


def test_files_in_another_order(data: Path, weights: Path, tmp_path: Path) -> None:
    """Bands are found by name, so their order in a raster does not matter; without names, --bands gives it."""
    checkpoint = load_checkpoint(weights)
    order = [4, 2, 1, 3, 0]
    results = []
    for names in (("swir2", "nir", "red", "swir1", "green"), ()):
        pair = []
        for sub in "AB":
            with rasterio.open(data / "val" / sub / "0.tif") as source:
                path = tmp_path / f"{sub}{len(names)}.tif"
                with rasterio.open(path, "w", **{**source.profile, "count": 6}) as other:
                    other.write(source.read()[order], [1, 2, 3, 4, 5])
                    other.descriptions = [*names, *[""] * (6 - len(names))]
            pair.append(path)
        out, bands = tmp_path / f"out{len(names)}", None if names else (5, 3, 2, 4, 1)
        ChangeDetector(weights, device="cpu").predict_rasters(pair[0], pair[1], out, bands=bands)
        results.append(rasterio.open(out / "probability.tif").read())
    ChangeDetector(weights, device="cpu").predict_rasters(
        data / "val" / "A" / "0.tif", data / "val" / "B" / "0.tif", tmp_path / "plain"
    )
    expected = rasterio.open(tmp_path / "plain" / "probability.tif").read()
    assert checkpoint.bands is not None and all(np.array_equal(result, expected) for result in results)


@pytest.mark.slow
def test_two_processes(data: Path, weights: Path, tmp_path: Path) -> None:
    """They measure the statistics that one process measures, read the same pairs, and train."""
    arguments = train_arguments(data, tmp_path / "run", **FEW, train_batchsize=2)
    result = run_program("train.py", *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    ours, theirs = load_checkpoint(tmp_path / "run" / "1.pth"), load_checkpoint(weights)
    assert ours.lineage[0].versions["processes"] == "2" and ours.lineage[0].images == theirs.lineage[0].images
    assert (ours.config, ours.bands, ours.mean, ours.std) == (theirs.config, theirs.bands, theirs.mean, theirs.std)
    assert not torch.equal(ours.weights["head.out.weight"], theirs.weights["head.out.weight"])  # fewer steps


@pytest.mark.slow
def test_the_next_pass_killed_and_continued(data: Path, weights: Path, tmp_path: Path) -> None:
    """It reads the bands of the checkpoint, with its statistics, and a continued run ends with the same weights."""
    options = {"cropsize": 32, "resume": True, "checkpoint_path": weights, "refine": True, "epoch": 2}
    options |= {"train_batchsize": 1, "best_name": "run"}
    result = run_program("train.py", *train_arguments(data, tmp_path / "whole", **options))
    assert result.returncode == 0, result.stderr
    process = start(train_arguments(data, tmp_path / "broken", **options, save_minutes=0))
    wait_for_step(tmp_path / "broken" / "run.state.pth", process, 2)
    process.kill()
    process.communicate()
    weights.rename(tmp_path / "moved.pth")  # a continued run needs it no longer
    try:
        result = run_program("train.py", "--continue_run", tmp_path / "broken")
    finally:
        (tmp_path / "moved.pth").rename(weights)
    assert result.returncode == 0, result.stderr
    whole, broken, first = (
        load_checkpoint(path) for path in (tmp_path / "whole" / "run.pth", tmp_path / "broken" / "run.pth", weights)
    )
    assert (broken.bands, broken.mean, broken.std) == (first.bands, first.mean, first.std)
    assert all(torch.equal(whole.weights[name], broken.weights[name]) for name in whole.weights)
    result = run_program("train.py", *train_arguments(data, tmp_path / "x", **options, bands="all"))
    assert result.returncode == 2
    assert last_line(result).startswith("error: --bands does nothing with --resume")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": "1 2 9"}, "error: --bands 9: "),
        ({"bands": "all", "cache": "device"}, "error: --cache device keeps 8-bit RGB images"),
        ({"bands": "all", "degrade": 0.1}, "error: --degrade imitates cameras and JPEG, for RGB"),
        ({"rgb_bands": "1 2 3"}, "error: --rgb_bands does nothing"),
        ({}, "choose --bands"),
    ],
)
def test_options_that_are_refused(data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    result = run_program("train.py", *train_arguments(data, tmp_path / "run", **{**FEW, "bands": "", **options}))
    assert result.returncode == 2 and message in last_line(result)
    assert not (tmp_path / "run").exists()


def test_data_that_is_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    """Other bands, another type and another grid: one line that names the file."""
    bands = load_checkpoint(weights).bands
    for options, message in (
        (
            {"bands": 3},
            r"A/0\.tif has 3 bands, and this network reads 5 bands of uint16 \(green, red, nir, swir1, swir2",
        ),
        ({"kind": "int16"}, r"A/0\.tif has levels of type int16: save it as uint16"),
    ):
        folder = write_band_pairs(tmp_path / str(options), 1, names=NAMES, **options)
        with pytest.raises(UserError, match=message):
            find_split(folder, "", bands=bands)
    folder = write_band_pairs(tmp_path / "moved", 1)
    with rasterio.open(folder / "B" / "0.tif", "r+") as dataset:
        dataset.transform = dataset.transform @ rasterio.Affine.translation(0.5, 0)
    with pytest.raises(UserError, match="lie on different grids: python -m change regrid brings them to one"):
        find_split(folder, "", bands=bands)
    pair = [np.zeros((64, 64, 5), np.uint8)] * 2
    with pytest.raises(UserError, match=r"before is uint8 \(64, 64, 5\): give \(height, width, 5\) with 5 bands of ui"):
        ChangeDetector(weights, device="cpu").predict(*pair)
    result = run_verb(
        "predict",
        "test_samples/A/0_0000.jpg",
        "test_samples/B/0_0000.jpg",
        "-o",
        tmp_path / "out",
        "--checkpoint_path",
        weights,
    )
    assert result.returncode == 2 and "0_0000.jpg: this network reads 5 bands of uint16" in last_line(result)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_other_types(tmp_path: Path, kind: str) -> None:
    """Thirteen bands of each type: a run with scaled, turned and shifted crops, and a test.

    The checkpoint has the statistics of the files, and the test scores every pixel of the resized pair.
    """
    data = write_band_set(tmp_path / "data", bands=13, kind=kind, names=())
    options: dict[str, object] = {"bands": "all", "scale": "0.8 1.3", "symmetries": True, "swap": True, "shift": 2}
    arguments = train_arguments(data, tmp_path / "run", **{**FEW, **options})
    result = run_program("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    result = run_program(
        "test.py",
        "--test_root",
        data / "val",
        "--checkpoint_path",
        tmp_path / "run" / "1.pth",
        "--save_path",
        tmp_path / "test",
        "--testsize",
        32,
    )
    assert result.returncode == 0, result.stderr
    checkpoint = load_checkpoint(tmp_path / "run" / "1.pth")
    assert checkpoint.bands is not None and (checkpoint.bands.kind, checkpoint.config.in_channels) == (kind, 13)
    images = [rasterio.open(path).read() for sub in "AB" for path in sorted((data / "train" / sub).iterdir())]
    levels = np.stack(images).transpose(1, 0, 2, 3).reshape(13, -1).astype(np.float64)
    assert checkpoint.mean == pytest.approx(levels.mean(1)) and checkpoint.std == pytest.approx(levels.std(1))
    (row,) = csv.DictReader((tmp_path / "test" / "images.csv").open())
    assert sum(int(row[name]) for name in ("tp", "fp", "fn", "tn")) == 32**2
    with rasterio.open(data / "val" / "label" / "0.tif") as file:
        mask = np.asarray(PIL.Image.fromarray(file.read(1)).resize((32, 32), PIL.Image.Resampling.NEAREST)) > 0
    assert int(row["tp"]) + int(row["fn"]) == mask.sum() > 0


def test_check(data: Path, tmp_path: Path) -> None:
    """It finds the pairs that test.py scores: the hashes are the same."""
    result = run_verb("check", data, "--bands", "all", "--save_path", tmp_path / "check")
    assert result.returncode == 0, result.stderr
    pairs = json.loads((tmp_path / "check" / "check.json").read_text())["pairs"]
    from change.common.band_files import read_header
    from change.common.bands import choose_bands

    bands = choose_bands("all", "", read_header(data / "val" / "A" / "0.tif"))
    (hashes,) = find_split(data, "val", bands=bands).read(0).hashes
    assert [pair["hashes"] for pair in pairs if pair["pair"] == "val/0"] == [list(hashes)]
    result = run_verb("check", data, "--rgb_bands", "1 2 3", "--save_path", tmp_path / "check")
    assert result.returncode == 2 and "--rgb_bands has no effect without --bands" in last_line(result)
