"""The Python interface: files, pictures and arrays, large images in tiles, devices, and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from change.checkpoint import load_checkpoint, network_for_prediction
from change.common.errors import UserError
from change.common.images import mode_and_bits
from change.prediction.detector import ChangeDetector
from change.prediction.threshold import NotFiniteError
from change.prediction.tiles import Predict
from models.padding import apply_to_any_size, normalise
from tests.conftest import REPOSITORY, draw_pair
from tests.prediction.devices import pretend_two_gpus
from tests.rasters.drawn import write_raster
from tests.test_quick_start import CHECKPOINT


@pytest.fixture(scope="module")
def detector() -> ChangeDetector:
    return ChangeDetector(CHECKPOINT, device="cpu", tile=128, overlap=32)


def test_arrays_pictures_and_files_are_the_same(detector: ChangeDetector, tmp_path: Path) -> None:
    """They give what the network gives when it is called directly."""
    before, after, _ = draw_pair(np.random.default_rng(0), 100, 70)
    found = detector.predict(before, after)
    assert found.shape == (70, 100) and found.dtype == np.float32
    pictures = [PIL.Image.fromarray(image) for image in (before, after)]
    paths = [tmp_path / "before.png", tmp_path / "after.png"]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    assert np.array_equal(found, detector.predict(*pictures))
    assert np.array_equal(found, detector.predict(str(paths[0]), paths[1]))
    network, _ = network_for_prediction(load_checkpoint(CHECKPOINT))
    tensors = [normalise(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in (before, after)]
    with torch.no_grad():
        expected = torch.sigmoid(apply_to_any_size(network, *tensors))[0, 0].numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_large_images_are_tiled(detector: ChangeDetector) -> None:
    before, after, _ = draw_pair(np.random.default_rng(1), 300, 140)
    found = detector.predict(before, after)
    whole = ChangeDetector(CHECKPOINT, device="cpu").predict(before, after)
    assert found.shape == whole.shape == (140, 300)
    assert not np.array_equal(found, whole)
    corner = ChangeDetector(CHECKPOINT, device="cpu").predict(before[:128, :128], after[:128, :128])
    assert np.abs(found[:12, :96] - corner[:12, :96]).max() <= 1e-5  # before the next tiles begin


@pytest.mark.parametrize("tta", [False, True])
def test_probabilities_that_are_not_finite_are_an_error(tmp_path: Path, tta: bool) -> None:
    """The pair is named: by its file, or by the name that the caller gives."""
    broken = load_checkpoint(CHECKPOINT)
    broken.weights["head.out.bias"].fill_(torch.nan)
    broken.save(tmp_path / "nan.pth")
    detector = ChangeDetector(tmp_path / "nan.pth", device="cpu", tile=64, overlap=16, tta=tta)
    before, after, _ = draw_pair(np.random.default_rng(0), 80, 48)
    path = tmp_path / "before.png"
    PIL.Image.fromarray(before).save(path)
    with pytest.raises(NotFiniteError, match=f"no finite probability for {path}: "):
        detector.predict(path, after)
    with pytest.raises(NotFiniteError, match="no finite probability for this pair: "):
        detector.predict(before, after)
    with pytest.raises(NotFiniteError, match="no finite probability for here: "):
        detector.predict(before, after, name="here")


GOOD = np.zeros((32, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (GOOD[:31], "before has 48 x 31 pixels, after 48 x 32"),
        (GOOD[..., 0], r"before is uint8 \(32, 48\)"),
        (GOOD.astype(np.float32), "before is float32"),
        (GOOD[:0], "before is uint8"),
        ("nowhere.png", "no file at .*nowhere.png: check the path"),
    ],
)
def test_wrong_images(detector: ChangeDetector, before: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        detector.predict(before, GOOD)


def test_colours_under_transparency_do_not_matter(detector: ChangeDetector, tmp_path: Path) -> None:
    """Files and Pillow images with a hole give 0 there, and the same elsewhere whatever lies under it."""
    before, after, _ = draw_pair(np.random.default_rng(0), 100, 70)
    alpha = np.full((70, 100, 1), 255, np.uint8)
    alpha[20:40, 30:60] = 0
    found = []
    for hidden in (0, 255):
        colours = np.concatenate((np.where(alpha > 0, after, np.uint8(hidden)), alpha), axis=2)
        picture = PIL.Image.fromarray(colours)
        picture.save(tmp_path / "after.png")
        found.append(detector.predict(PIL.Image.fromarray(before), picture))
        found.append(detector.predict(before, tmp_path / "after.png"))
    assert all(np.array_equal(found[0], other) for other in found[1:])
    assert not found[0][20:40, 30:60].any() and found[0][:20].any()


def write_tiff(path: Path, image: NDArray[Any], east: float = 5e5, code: int = 32633, pixel: float = 0.5) -> Path:
    """Write a GeoTIFF with Pillow alone."""
    tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
    tags[33550] = (pixel, pixel, 0.0)
    tags[33922] = (0.0, 0.0, 0.0, east, 5e6, 0.0)
    tags[34735] = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, code)
    tags.tagtype.update({33550: 12, 33922: 12, 34735: 3})
    PIL.Image.fromarray(image).save(path, tiffinfo=tags)
    return path


def test_geotiffs_of_other_places(detector: ChangeDetector, tmp_path: Path) -> None:
    """Two GeoTIFFs on one grid are compared; other places, pixels and reference systems are refused."""
    before, after, _ = draw_pair(np.random.default_rng(0), 100, 70)
    first = write_tiff(tmp_path / "1.tif", before)
    expected = detector.predict(before, after)
    assert np.array_equal(detector.predict(first, write_tiff(tmp_path / "2.tif", after)), expected)
    PIL.Image.fromarray(after).save(tmp_path / "bare.tif")
    assert np.array_equal(detector.predict(first, tmp_path / "bare.tif"), expected)
    for other in ({"east": 5e5 + 5000}, {"east": 5e5 + 0.1}, {"code": 32634}, {"pixel": 0.6}):
        path = write_tiff(tmp_path / "other.tif", after, **other)
        with pytest.raises(UserError, match=r"1.tif and .*other.tif lie on different grids: .python -m change predict"):
            detector.predict(first, path)


def test_tiffs_that_pillow_does_not_decode(detector: ChangeDetector, tmp_path: Path) -> None:
    """A sound file of 16 bits or five bands is not called damaged."""
    image = draw_pair(np.random.default_rng(0), 64, 64)[0].transpose(2, 0, 1)
    for bands, dtype, said in ((3, "uint16", "3 bands of 16 bits"), (5, "uint8", "5 bands of 8 bits")):
        levels = np.concatenate((image, image))[:bands].astype(dtype)
        for more in ({}, {"BIGTIFF": "YES"}):
            path = write_raster(tmp_path / "deep.tif", levels, photometric="MINISBLACK", **more)
            with pytest.raises(UserError, match=rf"deep.tif has {said}: use .python -m change predict"):
                detector.predict(path, image.transpose(1, 2, 0))
            with pytest.raises(UserError, match=rf"deep.tif has {said}: convert it"):
                mode_and_bits(path)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "deep.tif").read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut.tif cannot be decoded"):
        detector.predict(tmp_path / "cut.tif", image.transpose(1, 2, 0))


@pytest.mark.parametrize(("amp", "dtype"), [("auto", torch.float16), ("off", torch.float32), ("bf16", torch.bfloat16)])
def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, amp: str, dtype: torch.dtype) -> None:
    """The second of two processes takes the second GPU, and `auto` is fp16 there."""
    asked: list[tuple[torch.device, torch.dtype]] = []

    def predictor(network: nn.Module, device: torch.device, dtype: torch.dtype, *args: Any, **more: Any) -> Predict:
        asked.append((device, dtype))
        return lambda before, after: before

    pretend_two_gpus(monkeypatch)
    monkeypatch.setattr("change.prediction.detector.predictor", predictor)
    detector = ChangeDetector(CHECKPOINT, amp=amp)
    assert asked == [(torch.device("cuda", 1), dtype)]
    assert detector.describe()["device"] == "cuda:1"
    assert detector.describe()["precision"] == {"auto": "fp16", "off": "float32", "bf16": "bf16"}[amp]
    with pytest.raises(UserError, match="--device 0: with several processes each takes its own GPU"):
        ChangeDetector(CHECKPOINT, device="0")


HOST = """
import logging, signal, sys, warnings
import torch, torch._functorch.config
import torchvision, rasterio, geopandas  # loading torch and its companions is not what is tested

def state():
    backends = torch.backends
    return {
        "tf32": (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "cudnn": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "budget": torch._functorch.config.activation_memory_budget,
        "filters": list(warnings.filters),
        "show": warnings.showwarning,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "root": (logging.root.level, list(logging.root.handlers)),
        "levels": [logging.getLogger(name).level for name in ("onnx_ir", "onnxscript", "rasterio", "torch", "PIL")],
    }

torch._functorch.config.activation_memory_budget = 0.5
import numpy as np
before = state()
from change import ChangeDetector
detector = ChangeDetector(device="cpu", tile=64, overlap=16)
image = np.zeros((70, 70, 3), np.uint8)
detector.predict(image, image)
detector.predict_rasters(*sys.argv[1:])
after = state()
print([name for name in before if before[name] != after[name]])
"""


def test_the_host_program_stays_as_it_was(tmp_path: Path) -> None:
    """Importing and calling ChangeDetector changes no flag, filter, handler or logger."""
    pair = [write_raster(tmp_path / f"{n}.tif", np.full((3, 70, 70), n, np.uint8)) for n in (1, 2)]
    command = [sys.executable, "-c", HOST, *map(str, pair), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_default_is_the_shipped_checkpoint() -> None:
    default = ChangeDetector(device="cpu")
    assert default.checkpoint.sha256 == load_checkpoint(REPOSITORY / "checkpoints" / "buildings.pth").sha256
    assert (default.tile, default.overlap, default.batch) == (1024, 256, 1)


def test_overlap_of_a_whole_tile() -> None:
    with pytest.raises(UserError, match="overlap 128"):
        ChangeDetector(CHECKPOINT, tile=128, overlap=128)
