"""test.py: exact counts, protocols, thresholds, the files it writes, and warnings about training images."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]
from torch import Tensor

from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint, network_for_prediction
from change.common.errors import UserError
from change.data.samples import Batch, WholeSamples
from change.evaluation.metrics import Counts, count_pixels
from change.prediction.predictor import predictor
from change.prediction.tiles import Protocol
from models.network import build_network
from models.padding import apply_to_any_size
from tests.conftest import REPOSITORY, run_program, train_arguments, write_pairs
from tests.evaluation.programs import read_csv, score
from tests.reference.reference_weights import reference_state_dict

pytestmark = pytest.mark.slow

REFERENCE = REPOSITORY / "tests" / "reference"

encoders = pytest.mark.parametrize("checkpoint", ["resnet18", "efficientnet_lite0"], indirect=True)


@pytest.mark.parametrize("part", ["base", "cross"])
def test_counts_of_the_published_system(real_data: Path, tmp_path: Path, part: str) -> None:
    """Real files and published-style weights give the counts of expected_counts.json."""
    torch.save(reference_state_dict(REFERENCE / f"keys_resnet18_{part}.json"), tmp_path / "published.pth")
    result = run_program(
        "test.py",
        f"--test_root={real_data / 'levir_probe'}",
        f"--test_checkpoint_path={tmp_path / 'published.pth'}",
        "--device=cpu",
        f"--save_path={tmp_path / 'out'}",
    )
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stderr and "change_head.tf0.upsample.weight" in result.stderr
    expected = json.loads((REFERENCE / "expected_counts.json").read_text())[part]
    rows = {f"{row['image']}.png": row for row in read_csv(tmp_path / "out" / "images.csv")}
    assert rows.keys() == expected.keys()
    for name, counts in expected.items():
        for key in ("tp", "fp", "fn", "tn"):
            assert abs(int(rows[name][key]) - counts[key]) <= counts["near_threshold"], (name, key)
    assert "not known whether these weights were trained on these pairs" in result.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for key in ("tp", "fp", "fn", "tn"):
        assert metrics["counts"][key] == sum(int(row[key]) for row in rows.values())


@encoders
def test_everything_written(tmp_path: Path, checkpoint: Path) -> None:
    """Images of three sizes, none a multiple of 32, compared with a prediction that is made here."""
    root = write_pairs(tmp_path / "set", 2, 70, 50, seed=3)
    for index, (width, height) in enumerate(((45, 33), (130, 40)), start=2):
        for sub in ("A", "B", "label"):
            (write_pairs(tmp_path / "more", 1, width, height, seed=index) / sub / "0.png").rename(
                root / sub / f"{index}.png"
            )
    out = tmp_path / "out"
    result = run_program(
        "test.py",
        f"--test_root={root}",
        f"--checkpoint_path={checkpoint}",
        "--device=cpu",
        f"--save_path={out}",
        "--save_result",
        "--save_iou_map",
        "--save_panels",
        "--test_batchsize=3",
        "--workers=2",
        as_process=True,
    )
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stderr and "refinement." in result.stderr

    loaded = load_checkpoint(checkpoint)
    network = build_network(loaded.config)
    network.load_state_dict(loaded.weights)
    network.eval()
    total = np.zeros(4, np.int64)
    for row in read_csv(out / "images.csv"):
        before, after = (np.asarray(PIL.Image.open(root / sub / f"{row['image']}.png")) for sub in ("A", "B"))
        mask = np.asarray(PIL.Image.open(root / "label" / f"{row['image']}.png")) > 0
        with torch.inference_mode():
            images = [
                torch.from_numpy(((i / 255 - (0.4, 0.5, 0.3)) / (0.2, 0.3, 0.1)).astype(np.float32))
                for i in (before, after)
            ]
            logits = apply_to_any_size(network, *(i.permute(2, 0, 1)[None] for i in images))
            changed = torch.sigmoid(logits)[0, 0].numpy() > 0.45
        saved = np.asarray(PIL.Image.open(out / "pred" / f"{row['image']}.png"))
        assert saved.shape == mask.shape and set(np.unique(saved)) <= {0, 255}
        assert (saved != changed * 255).mean() < 0.01  # rounding may move probabilities near the threshold
        errors = np.asarray(PIL.Image.open(out / "iou_map" / f"{row['image']}.png"))
        assert (errors[..., 1] > 0).sum() == int(row["tp"]) == ((saved > 0) & mask).sum()
        assert (errors[..., 0] > 0).sum() == int(row["fn"]) == ((saved == 0) & mask).sum()
        assert (errors[..., 2] > 0).sum() == int(row["fp"]) == ((saved > 0) & ~mask).sum()
        with PIL.Image.open(out / "panels" / f"{row['image']}.png") as panel:
            assert panel.size == (4 * mask.shape[1] + 3 * 4, mask.shape[0])
        total += [int(row[key]) for key in ("tp", "fp", "fn", "tn")]

    metrics = json.loads((out / "metrics.json").read_text())
    tp, fp, fn, tn = total.tolist()
    assert metrics["counts"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert metrics["scores"]["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert metrics["scores"]["oa"] == pytest.approx((tp + tn) / total.sum())
    assert metrics["protocol"]["precision"] == "float32"
    assert len(metrics["checkpoint"]["sha256"]) == 64
    assert f"{100 * metrics['scores']['iou']:.2f}" in result.stdout
    assert "NOT A TEST SCORE" not in result.stdout


@encoders
def test_images_that_were_trained_on(tmp_path: Path, checkpoint: Path) -> None:
    """They are found under another name and in another lossless format, and are named beside the score."""
    root = write_pairs(tmp_path / "set", 2, seed=3)
    with PIL.Image.open(tmp_path / "trained" / "A" / "0.png") as image:
        image.save(root / "A" / "1.tif")
    (root / "A" / "1.png").unlink()
    result = run_program(
        "test.py",
        f"--test_root={root}",
        f"--checkpoint_path={checkpoint}",
        "--workers=0",
        "--device=cpu",
        f"--save_path={tmp_path / 'out'}",
    )
    assert "NOT A TEST SCORE: 1 of these pairs were trained on: 1" in result.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["trained_on"] == ["1"]
    assert [row["trained_on"] for row in read_csv(tmp_path / "out" / "images.csv")] == ["unknown", "True"]


def test_without_labels_and_resized(tmp_path: Path, checkpoint: Path) -> None:
    """There are only pictures, at the given size."""
    root = write_pairs(tmp_path / "set", 2, 70, 50, seed=3)
    shutil.rmtree(root / "label")
    result = run_program(
        "test.py",
        f"--test_root={root}",
        f"--checkpoint_path={checkpoint}",
        "--workers=0",
        "--device=cpu",
        "--testsize=64",
        f"--save_path={tmp_path / 'out'}",
        "--save_result",
        "--save_panels",
    )
    assert result.returncode == 0, result.stderr
    with PIL.Image.open(tmp_path / "out" / "pred" / "0.png") as mask:
        assert mask.size == (64, 64)
    with PIL.Image.open(tmp_path / "out" / "panels" / "0.png") as panel:
        assert panel.size == (3 * 64 + 2 * 4, 64)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "scores" not in metrics
    assert metrics["protocol"]["size"] == "resized to 64 x 64"


# --- protocols, thresholds, groups, in this process ----------------------------------------------------------------


def probabilities(root: Path, checkpoint: Path, protocol: Protocol) -> dict[str, tuple[Tensor, Tensor]]:
    """Predict without test.py; return probabilities (H, W) and truth, bool (H, W), by name."""
    loaded = load_checkpoint(checkpoint)
    network, _ = network_for_prediction(loaded)
    predict = protocol.apply(predictor(network, torch.device("cpu"), torch.float32, loaded))
    samples = WholeSamples(find_split(root, ""))
    found = {}
    for index in range(len(samples)):
        batch = samples[index]
        assert isinstance(batch, Batch)
        found[batch.names[0]] = (predict(batch.before, batch.after)[0, 0], batch.mask[0, 0] > 0)
    return found


def pooled(found: dict[str, tuple[Tensor, Tensor]], threshold: float) -> Counts:
    return sum((Counts(*count_pixels((p > threshold)[None], m[None])[0].tolist()) for p, m in found.values()), Counts())


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        ((), Protocol()),
        (("--tta",), Protocol(tta=True)),
        (("--protocol=slide", "--window=40", "--overlap=8"), Protocol("slide", 40, 8)),
        (("--protocol=tile256", "--tta"), Protocol("tile256", 256, 0, True)),
    ],
)
def test_protocols(tmp_path: Path, checkpoint: Path, arguments: tuple[str, ...], protocol: Protocol) -> None:
    """The counts are those of the protocol, which is recorded."""
    size = (300, 270) if protocol.tile == 256 else (70, 50)
    root = write_pairs(tmp_path / "set", 2, *size, seed=3)
    metrics = score(root, checkpoint, tmp_path / "out", *arguments)
    expected = pooled(probabilities(root, checkpoint, protocol), 0.45)
    assert metrics["counts"] == asdict(expected)
    expected_protocol = protocol.as_dict()
    assert {key: metrics["protocol"][key] for key in expected_protocol} == expected_protocol
    assert metrics["protocol"]["threshold"] == 0.45
    whole = pooled(probabilities(root, checkpoint, Protocol()), 0.45)
    assert (expected == whole) == (protocol == Protocol())


def test_scores_of_every_kind(tmp_path: Path, checkpoint: Path) -> None:
    """Average precision, curve, the best threshold and the score at 0.5, objects, boundaries and means."""
    root = write_pairs(tmp_path / "set", 3, 70, 50, seed=3)
    found = probabilities(root, checkpoint, Protocol())
    metrics = score(root, checkpoint, tmp_path / "out", "--threshold=0.4375")
    assert metrics["scores"]["f1"] == pooled(found, 0.4375).f1
    assert metrics["at_half"]["scores"]["f1"] == pooled(found, 0.5).f1
    every = torch.cat([torch.stack((p.flatten(), m.flatten().float())) for p, m in found.values()], dim=1).numpy()
    rounded = np.ceil(every[0] * 1024) / 1024
    assert metrics["average_precision"] == pytest.approx(average_precision_score(every[1], rounded))
    for threshold, f1 in zip(metrics["curve"]["threshold"][1:], metrics["curve"]["f1"][1:], strict=True):
        expected = pooled(found, threshold).f1
        assert f1 == pytest.approx(expected) or (f1 is None and np.isnan(expected))
    best = metrics["best_threshold"]
    assert best["f1"] == max(pooled(found, k / 1024).f1 for k in range(1, 1024)) == pooled(found, best["threshold"]).f1
    assert metrics["objects"]["true"] == sum(
        cv2.connectedComponents(m.numpy().astype(np.uint8), connectivity=8)[0] - 1 for _, m in found.values()
    )
    assert metrics["boundary"]["tolerance"] == 2
    assert metrics["image_means"]["f1"]["images"] == 3
    assert metrics["intervals"]["too_few"] and metrics["intervals"]["over"] == "images"
    low, high = metrics["intervals"]["scores"]["f1"]
    assert low < metrics["scores"]["f1"] < high


def test_threshold_of_val(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is used only on request, together with the score at 0.5; a checkpoint without one is an error."""
    root = write_pairs(tmp_path / "set", 2, 70, 50, seed=3)
    with pytest.raises(UserError, match=r"net\.pth has no threshold chosen on val"):
        score(root, checkpoint, tmp_path / "out", "--threshold=val")
    chosen = replace(load_checkpoint(checkpoint), threshold=0.5, val_threshold=0.25)
    chosen.save(tmp_path / "chosen.pth")
    found = probabilities(root, checkpoint, Protocol())
    metrics = score(root, tmp_path / "chosen.pth", tmp_path / "out")
    assert metrics["counts"] == asdict(pooled(found, 0.5)) and "at_half" not in metrics
    metrics = score(root, tmp_path / "chosen.pth", tmp_path / "out", "--threshold=val")
    assert metrics["counts"] == asdict(pooled(found, 0.25))
    assert metrics["at_half"]["counts"] == asdict(pooled(found, 0.5))
    assert "at threshold 0.5" in capsys.readouterr().out


def test_training_chooses_a_threshold_on_val(dataset: Path, tmp_path: Path) -> None:
    """It is the threshold that test.py finds best on val."""
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", epoch=1))
    assert result.returncode == 0, result.stderr
    metrics = score(dataset / "val", tmp_path / "run" / "1.pth", tmp_path / "out")
    assert load_checkpoint(tmp_path / "run" / "1.pth").val_threshold == metrics["best_threshold"]["threshold"]
