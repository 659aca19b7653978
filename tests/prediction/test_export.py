"""`python -m change export`: other runtimes give what PyTorch gives, and what cannot be written is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch.torch_version import TorchVersion

from change.checkpoint import load_checkpoint, load_strict, network_for_prediction, read_tensors
from change.common.errors import UserError
from change.prediction.detector import ChangeDetector
from change.prediction.export import OLDEST, main, padding, write_onnx
from models.network import build_network
from models.padding import pad_side
from tests.conftest import draw_pair, last_line, run_verb
from tests.test_quick_start import CHECKPOINT


def run(path: Path, **inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """The one output of an ONNX file."""
    found: NDArray[np.float32] = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    return found


exports = pytest.mark.skipif(
    TorchVersion(torch.__version__) < OLDEST, reason=f"torch {torch.__version__} cannot export the network to ONNX"
)


@pytest.mark.parametrize("length", [1, 17, 31, 32, 33, 64, 100])
def test_padding(length: int) -> None:
    """That of prediction, but for the sides of 2 to 16 that reflection does not fill."""
    row = torch.arange(1.0, length + 1).expand(1, 1, 1, length)
    assert torch.equal(row[..., padding(length)], pad_side(row, 3))


@exports
def test_onnx(tmp_path: Path) -> None:
    """Any batch, any size, whole numbers in, probabilities out."""
    out = tmp_path / "network.onnx"
    paths = [str(tmp_path / f"{date}.png") for date in ("before", "after")]
    for path, image in zip(paths, draw_pair(np.random.default_rng(9), 150, 110)[:2], strict=True):
        PIL.Image.fromarray(image).save(path)
    assert main([str(CHECKPOINT), "-o", str(out), "--pair", *paths]) == 0
    onnx.checker.check_model(out)
    graph = onnx.load(out).graph
    for put, channels in zip((*graph.input, *graph.output), (3, 3, 1), strict=True):
        sides = [side.dim_param or side.dim_value for side in put.type.tensor_type.shape.dim]
        assert sides == ["batch", channels, "height", "width"]
    detector = ChangeDetector(CHECKPOINT, device="cpu")
    for batch, height, width in ((1, 64, 96), (3, 75, 33)):
        pairs = [draw_pair(np.random.default_rng(seed), width, height)[:2] for seed in range(batch)]
        before, after = (np.stack([pair[i].transpose(2, 0, 1) for pair in pairs]) for i in (0, 1))
        found = run(out, before=before, after=after)
        assert found.shape == (batch, 1, height, width) and found.dtype == np.float32
        for i, pair in enumerate(pairs):
            assert np.abs(found[i, 0] - detector.predict(*pair)).max() <= 1e-4


@exports
def test_onnx_from_a_small_pair(tmp_path: Path) -> None:
    """Sizes stay open, whatever the size of the pair for the comparison."""
    paths = [str(tmp_path / f"{date}.png") for date in ("before", "after")]
    pair = draw_pair(np.random.default_rng(9), 64, 64)[:2]
    for path, image in zip(paths, pair, strict=True):
        PIL.Image.fromarray(image[:32, :32]).save(path)
    out = tmp_path / "network.onnx"
    assert main([str(CHECKPOINT), "-o", str(out), "--pair", *paths]) == 0
    before, after = (image.transpose(2, 0, 1)[None, :, :61, :43] for image in pair)
    found = run(out, before=before, after=after)[0, 0]
    assert (
        np.abs(found - ChangeDetector(CHECKPOINT, device="cpu").predict(pair[0][:61, :43], pair[1][:61, :43])).max()
        <= 1e-4
    )


@exports
def test_deepness(tmp_path: Path) -> None:
    """Its metadata, read back, and its one stacked input; in half precision."""
    out = tmp_path / "plugin.onnx"
    assert (
        main([str(CHECKPOINT), "-o", str(out), "--format", "deepness", "--tile", "64", "--resolution", "30", "--half"])
        == 0
    )
    model = onnx.load(out)
    settings = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
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
    expected = ChangeDetector(CHECKPOINT, device="cpu").predict(before, after)
    assert out.stat().st_size < 40e6 and np.abs(run(out, both=both)[0, 0] - expected).max() <= 1e-2


def test_plain_weights(tmp_path: Path) -> None:
    out = tmp_path / "plain.pth"
    assert main([str(CHECKPOINT), "-o", str(out), "--format", "pth"]) == 0
    weights, checkpoint = read_tensors(out), load_checkpoint(CHECKPOINT)
    expected = network_for_prediction(checkpoint)[0].state_dict()
    load_strict(build_network(checkpoint.config), weights, out)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@exports
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and what is there stays."""
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
        write_onnx(torch.nn.Conv2d(3, 1, 3), [case], tmp_path / "new.onnx", -1.0, {})
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
