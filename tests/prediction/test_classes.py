"""Probabilities of classes: blended, averaged over flips, and turned into values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from change.checkpoint import load_checkpoint
from change.common.classes import parse_classes
from change.common.errors import UserError
from change.prediction.average import average
from change.prediction.detector import ChangeDetector
from change.prediction.export import main
from change.prediction.onnx_file import OLDEST
from change.prediction.threshold import any_change, mask_values
from change.prediction.tiles import sliding, symmetric
from models.encoders import BUILDERS
from tests.class_pairs import CLASSES_OF_PAIRS, draw_class_pair, write_class_checkpoint
from tests.four_layers import FourLayers


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that tells three classes apart."""
    return write_class_checkpoint(tmp_path_factory.mktemp("weights") / "3.pth")


def pixelwise(before: Tensor, after: Tensor) -> Tensor:
    """Return probabilities (B, 4, H, W) that depend on each pixel only."""
    levels = torch.stack((before[:, 0], after[:, 0], before[:, 1], after[:, 2]), dim=1)
    return torch.softmax(levels.float() / 64, dim=1)


def test_tiles_and_flips_keep_every_class() -> None:
    pair = torch.randint(0, 256, (2, 1, 3, 70, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = pixelwise(*pair)
    torch.testing.assert_close(sliding(pixelwise, 32, 8)(*pair), whole)
    torch.testing.assert_close(symmetric(sliding(pixelwise, 32, 8, 3))(*pair), whole)


def test_values_mark_the_changed_pixels() -> None:
    """A pixel that is most probably unchanged still has a class if the threshold is low."""
    probability = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.9, 0.06, 0.04]]).T[None, :, None]
    assert any_change(probability)[0, 0, 0].tolist() == pytest.approx([0.4, 0.8, 0.1])
    for threshold, expected in ((0.5, [0, 1, 0]), (0.3, [2, 1, 0]), (0.0, [2, 1, 1])):
        values = mask_values(probability, threshold, ["one"])
        assert values.dtype == torch.uint8 and values[0, 0, 0].tolist() == expected
    single = torch.rand(2, 1, 3, 3)
    assert any_change(single) is single
    assert torch.equal(mask_values(single, 0.25, "ab"), (single > 0.25).to(torch.uint8))


def test_python(weights: Path) -> None:
    """Both methods agree, also in tiles; a checkpoint without classes has no values."""
    before, after, _ = draw_class_pair(np.random.default_rng(0), 48, 40)
    for tile in (1024, 32):
        detector = ChangeDetector(weights, device="cpu", tile=tile, overlap=8)
        values = detector.predict_classes(before, after)
        assert values.shape == (48, 40) and np.array_equal(values > 0, detector.predict(before, after) > 0.5)
    assert set(np.unique(values)) & {1, 2, 3}
    with pytest.raises(UserError, match="tells no classes apart: use predict"):
        ChangeDetector(device="cpu").predict_classes(before, after)


def test_checkpoints_with_other_classes(weights: Path, tmp_path: Path) -> None:
    """They are not averaged, and a file whose names do not fit its network is refused."""
    first, second = load_checkpoint(weights), load_checkpoint(weights)
    assert average([first, second]).classes == CLASSES_OF_PAIRS
    second.classes = parse_classes(["a", "b", "c"])
    with pytest.raises(UserError, match="differ in their classes"):
        average([first, second])
    second.classes = None
    second.save(tmp_path / "none.pth")
    with pytest.raises(UserError, match="the names of the classes are not those of 3 classes"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.slow
@pytest.mark.skipif(TorchVersion(torch.__version__) < OLDEST, reason="this torch cannot export")
def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both outputs are those of PyTorch, for images of any size. Real encoders are exported in test_export.py."""
    monkeypatch.setitem(BUILDERS, "resnet18", FourLayers)
    weights = write_class_checkpoint(tmp_path / "3.pth", backbone="resnet18", width=32)
    out = tmp_path / "network.onnx"
    assert main([str(weights), "-o", str(out)]) == 0
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert metadata == {"classes": list(CLASSES_OF_PAIRS.names), "threshold": 0.5}
    session = onnxruntime.InferenceSession(out)
    assert [output.name for output in session.get_outputs()] == ["probability", "probabilities"]
    pair = draw_class_pair(np.random.default_rng(0), 50, 41)[:2]
    found = session.run(
        None, {name: image.transpose(2, 0, 1)[None] for name, image in zip(("before", "after"), pair, strict=True)}
    )
    detector = ChangeDetector(weights, device="cpu")
    expected, _ = detector.predict_all(*pair, "")
    np.testing.assert_allclose(found[1], expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[0][0, 0], detector.predict(*pair), atol=1e-4)
    with pytest.raises(UserError, match="--format deepness is for networks without classes"):
        main([str(weights), "-o", str(tmp_path / "d.onnx"), "--format", "deepness"])
