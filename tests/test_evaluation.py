"""test.py as a process: exact counts, what it writes, what it says of images that were trained on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from change.checkpoint import Checkpoint, PassRecord, load_checkpoint
from change.images import image_hash, read_image
from models.network import NetworkConfig, any_size, build_network
from tests.conftest import REPOSITORY, run_program, write_pairs
from tests.reference.reference_weights import reference_state_dict

REFERENCE = REPOSITORY / "tests" / "reference"


@pytest.mark.parametrize("part", ["base", "cross"])
def test_counts_of_the_published_system(real_data: Path, tmp_path: Path, part: str) -> None:
    """Real files, published-style weights: the counts of expected_counts.json."""
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
    assert "trained on these pairs is not known" in result.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for key in ("tp", "fp", "fn", "tn"):
        assert metrics["counts"][key] == sum(int(row[key]) for row in rows.values())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Random weights, normalisation and threshold of its own, and a record of training on one pair of `write_pairs`."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(18, cross=True, refine=True))
    folder = write_pairs(tmp_path / "trained", 1, seed=7)
    record = PassRecord("refine+cross", images=[image_hash(read_image(folder / "A" / "0.png"))])
    config = NetworkConfig(18, cross=True, refine=True)
    Checkpoint(config, network.state_dict(), [record], mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.1), threshold=0.45).save(
        tmp_path / "net.pth"
    )
    return tmp_path / "net.pth"


def test_everything_written(tmp_path: Path, checkpoint: Path) -> None:
    """Images of three sizes, none a multiple of 32, against a prediction made here."""
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
            logits = any_size(network, *(i.permute(2, 0, 1)[None] for i in images))
            changed = torch.sigmoid(logits)[0, 0].numpy() > 0.45
        saved = np.asarray(PIL.Image.open(out / "pred" / f"{row['image']}.png"))
        assert saved.shape == mask.shape and set(np.unique(saved)) <= {0, 255}
        assert (saved != changed * 255).mean() < 0.01  # logits within rounding of 0 may fall on either side
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


def test_images_that_were_trained_on(tmp_path: Path, checkpoint: Path) -> None:
    """Found again under another name and in another lossless format, and named beside the score."""
    root = write_pairs(tmp_path / "set", 2, seed=3)
    with PIL.Image.open(tmp_path / "trained" / "A" / "0.png") as image:
        image.save(root / "A" / "1.tif")
    (root / "A" / "1.png").unlink()
    result = run_program(
        "test.py",
        f"--test_root={root}",
        f"--checkpoint_path={checkpoint}",
        "--device=cpu",
        f"--save_path={tmp_path / 'out'}",
    )
    assert "NOT A TEST SCORE: 1 of these pairs were trained on: 1" in result.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["trained_on"] == ["1"]
    assert [row["trained_on"] for row in read_csv(tmp_path / "out" / "images.csv")] == ["False", "True"]


def test_without_labels_and_resized(tmp_path: Path, checkpoint: Path) -> None:
    """Pictures alone, at the size asked for."""
    root = write_pairs(tmp_path / "set", 2, 70, 50, seed=3)
    shutil.rmtree(root / "label")
    result = run_program(
        "test.py",
        f"--test_root={root}",
        f"--checkpoint_path={checkpoint}",
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
