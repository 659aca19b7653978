"""`python -m change export`: other runtimes give what PyTorch gives, and errors say what cannot be written."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch.torch_version import TorchVersion

from change.checkpoint import Checkpoint, load_checkpoint, load_strict, network_for_prediction, read_tensors
from change.common.errors import UserError
from change.prediction.detector import ChangeDetector
from change.prediction.export import main
from change.prediction.onnx_file import OLDEST, padding, write_onnx
from models.config import NetworkConfig
from models.network import build_network
from models.padding import pad_side
from tests.conftest import draw_pair, last_line, run_verb
from tests.test_quick_start import CHECKPOINT

pytestmark = pytest.mark.slow


def run(path: Path, **inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """Run an ONNX file and return its output."""
    found: NDArray[np.float32] = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    return found


@pytest.fixture(params=["buildings_r18", "efficientnet_lite0"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give the checkpoint that comes with the repository, and one of another encoder with random weights."""
    if request.param == "buildings_r18":
        return CHECKPOINT
    torch.manual_seed(0)
    config = NetworkConfig(request.param)
    network = build_network(config)
    Checkpoint(config, network.state_dict(), mean=network.encoder.mean, std=network.encoder.std).save(
        tmp_path / "lite.pth"
    )
    return tmp_path / "lite.pth"


exports = pytest.mark.skipif(
    TorchVersion(torch.__version__) < OLDEST, reason=f"torch {torch.__version__} cannot export the network to ONNX"
)


@pytest.mark.parametrize("length", [*range(1, 41), 64, 100])
def test_padding(length: int) -> None:
    """Every side is padded as in prediction, also one too short to be reflected."""
    row = torch.arange(1.0, length + 1).expand(1, 1, 1, length)
    assert torch.equal(row[..., padding(length)], pad_side(row, 3))


@exports
def test_onnx(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Any batch size, any image size, uint8 in, probabilities out. Each step is reported when it begins.

    This also holds if the pair for the comparison is small, as it is here for the second network.
    """
    out = tmp_path / "network.onnx"
    paths = [str(tmp_path / f"{date}.png") for date in ("before", "after")]
    height, width = (110, 150) if source == CHECKPOINT else (32, 32)
    for path, image in zip(paths, draw_pair(np.random.default_rng(9), 150, 110)[:2], strict=True):
        PIL.Image.fromarray(image[:height, :width]).save(path)
    assert main([str(source), "-o", str(out), "--pair", *paths]) == 0
    steps = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert [step.partition(":")[0] for step in steps] == ["step 1 of 2", "step 2 of 2", "step 2 of 2"]
    assert steps[-1].endswith("input 2 of 2")
    onnx.checker.check_model(out)
    assert onnx.load(out).ir_version == 8  # onnxruntime 1.17 refuses version 10
    graph = onnx.load(out).graph
    for put, channels in zip((*graph.input, *graph.output), (3, 3, 1), strict=True):
        sides = [side.dim_param or side.dim_value for side in put.type.tensor_type.shape.dim]
        assert sides == ["batch", channels, "height", "width"]
    detector = ChangeDetector(source, device="cpu")
    for batch, height, width in ((1, 64, 96), (3, 75, 33), (1, 1, 1), (2, 2, 16), (1, 9, 17), (1, 40, 13)):
        drawn = [draw_pair(np.random.default_rng(seed), 96, 96)[:2] for seed in range(batch)]
        pairs = [(before[:height, :width], after[:height, :width]) for before, after in drawn]
        before, after = (np.stack([pair[i].transpose(2, 0, 1) for pair in pairs]) for i in (0, 1))
        found = run(out, before=before, after=after)
        assert found.shape == (batch, 1, height, width) and found.dtype == np.float32
        for i, pair in enumerate(pairs):
            assert np.abs(found[i, 0] - detector.predict(*pair)).max() <= 1e-4


@exports
def test_deepness(tmp_path: Path, source: Path) -> None:
    """Metadata and the single input, in half precision."""
    out = tmp_path / "plugin.onnx"
    assert (
        main([str(source), "-o", str(out), "--format", "deepness", "--tile", "64", "--resolution", "30", "--half"]) == 0
    )
    model = onnx.load(out)
    settings = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    # onnxruntime 1.17, which the plugin installs, runs files up to version 9 and operators up to version 20.
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert settings == {
        "model_type": "Segmentor",
        "class_names": {"0": "background", "1": "change"},
        "resolution": 30,
        "tiles_size": 64,
        "tiles_overlap": 15,
        "seg_thresh": 0.5,
        "seg_small_segment": 9,
        "standardization_mean": [0] * 6,
        "standardization_std": [1] * 6,
    }
    assert [[d.dim_value for d in put.type.tensor_type.shape.dim][1:] for put in model.graph.input] == [[6, 64, 64]]
    before, after, _ = draw_pair(np.random.default_rng(0), 64, 64)
    both = np.concatenate((before, after), axis=2).transpose(2, 0, 1)[None].astype(np.float32) / 255
    expected = ChangeDetector(source, device="cpu").predict(before, after)
    assert out.stat().st_size < 40e6 and np.abs(run(out, both=both)[0, 0] - expected).max() <= 1e-2


def test_plain_weights(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "plain.pth"
    assert main([str(source), "-o", str(out), "--format", "pth"]) == 0
    weights, checkpoint = read_tensors(out), load_checkpoint(source)
    expected = network_for_prediction(checkpoint)[0].state_dict()
    load_strict(build_network(checkpoint.config), weights, out)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@exports
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are one line, and existing files stay."""
    out = tmp_path / "there.onnx"
    out.write_text("mine")
    result = run_verb("export", CHECKPOINT, "-o", out)
    assert result.returncode == 2 and "--overwrite" in last_line(result) and out.read_text() == "mine"
    for arguments, said in ((["--tile", "50"], "multiple of 32"), (["--overlap", "100"], "0 to 99")):
        with pytest.raises(UserError, match=said):
            main([str(CHECKPOINT), "-o", str(tmp_path / "new.onnx"), "--format", "deepness", *arguments])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        main([str(CHECKPOINT), "-o", str(tmp_path / "new.onnx")])
    monkeypatch.undo()
    case = {"before": torch.rand(1, 3, 32, 32)}
    with pytest.raises(UserError, match="is not written: onnxruntime and PyTorch differ"):
        write_onnx(torch.nn.Conv2d(3, 1, 3), [case], tmp_path / "new.onnx", tolerance=-1.0, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


class NanFrom(torch.nn.Module):
    """A convolution that gives NaN for images higher than `height`."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.network, self.height = torch.nn.Conv2d(3, 1, 3), height

    def forward(self, before: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(before)
        return torch.where(torch.ones_like(found).sum(2, keepdim=True) > self.height, torch.nan, found)


@exports
@pytest.mark.parametrize("height", [0, 64])
def test_probabilities_that_are_not_finite_are_an_error(tmp_path: Path, height: int) -> None:
    """In every case of the comparison, also if it is not the first."""
    cases = [{"before": torch.rand(1, 3, *size)} for size in ((60, 70), (101, 67))]
    with pytest.raises(UserError, match="is not written: the network gives no finite probability in PyTorch"):
        write_onnx(NanFrom(height).eval(), cases, tmp_path / "new.onnx", tolerance=1e-3, metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("--tile 64", "--format onnx"),
        ("--overlap 15", "--format onnx"),  # also if it is the default
        ("--resolution 30", "--format pth"),
        ("--min_segment 0", "--format pth"),
        ("--half", "--format pth"),
        ("--pair a.png b.png", "--format pth"),
    ],
)
def test_options_without_effect(tmp_path: Path, given: str, mode: str) -> None:
    name = given.partition(" ")[0]
    with pytest.raises(UserError, match=f"^{name} does nothing with {mode}.*: leave it out"):
        main([str(tmp_path / "not read.pth"), "-o", str(tmp_path / "new"), *mode.split(), *given.split()])


@exports
def test_the_host_program_stays_as_it_was(tmp_path: Path) -> None:
    """The exporter is silenced only while it works: levels of loggers and filters of warnings are restored."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    before = [logger.level for logger in loggers]
    loggers[0].setLevel(logging.ERROR)
    filters = list(warnings.filters)
    try:
        case = {"before": torch.rand(1, 3, 32, 32)}
        write_onnx(torch.nn.Conv2d(3, 1, 3), [case], tmp_path / "new.onnx", tolerance=1e-3, metadata={})
        assert [logger.level for logger in loggers] == [logging.ERROR, before[1]]
        assert warnings.filters == filters
    finally:
        loggers[0].setLevel(before[0])


def test_a_missing_sample_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("change.prediction.onnx_file.SAMPLES", ("test_samples/A/gone.jpg", "test_samples/B/gone.jpg"))
    with pytest.raises(UserError, match=r"A/gone\.jpg is missing: .*install it again"):
        main([str(tmp_path / "no checkpoint is read.pth"), "-o", str(tmp_path / "new.onnx")])
