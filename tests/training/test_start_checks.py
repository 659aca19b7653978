"""What train.py looks at before the first step: the scale of val, the masks, the files of a continued run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from change.checkpoint import read_tensors
from change.data.loaders import EpochOrder
from models.config import NetworkConfig
from models.losses import TrainingLoss
from models.network import build_network
from tests.conftest import last_line, run_program, train_arguments, write_pairs
from tests.data.helpers import save


@pytest.mark.slow
def test_val_is_scored_as_test_py_scores_it(tmp_path: Path) -> None:
    """By default val images keep their size, so that both programs count the same pixels; a stretch is logged."""
    write_pairs(tmp_path / "data" / "train", 2, seed=1)
    write_pairs(tmp_path / "data" / "val", 2, width=96, seed=2)
    scores, said = {}, {}
    for name, more in (("default", []), ("stretched", ["--trainsize=128"])):
        given = train_arguments(tmp_path / "data", tmp_path / name, epoch=1, best_name="net", lr=1e-4)
        arguments = [argument for argument in given if not argument.startswith("--trainsize")]
        result = run_program("train.py", *arguments, *more)
        assert result.returncode == 0, result.stderr
        row = json.loads((tmp_path / name / "net.epochs.jsonl").read_text())
        scores[name] = row["val"]
        said[name] = [line for line in result.stderr.splitlines() if "resized" in line]
    assert not said["default"]
    assert len(said["stretched"]) == 1
    for part in ("2 of 2 val images", "128x128", "96x64", "--trainsize 0"):
        assert part in said["stretched"][0]
    given = [f"--test_root={tmp_path / 'data' / 'val'}", f"--checkpoint_path={tmp_path / 'default' / 'net.pth'}"]
    result = run_program("test.py", *given, f"--save_path={tmp_path / 'out'}", "--device=cpu", "--workers=0")
    assert result.returncode == 0, result.stderr
    tested = json.loads((tmp_path / "out" / "metrics.json").read_text())
    text = json.dumps(tested)
    assert scores["default"] != scores["stretched"]
    assert scores["default"].items() <= {**tested, **tested.get("scores", {})}.items(), text[:600]


def test_train_without_change_is_refused(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "train" / "label").iterdir():
        save(path, np.zeros((64, 96), np.uint8))
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run"))
    assert result.returncode == 2
    for part in ("no train mask", str(dataset), "marks any change", "label folder", "python -m change check"):
        assert part in last_line(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("sub", "what"), [("A", "images"), ("B", "images"), ("label", "masks")])
def test_a_run_does_not_go_on_with_other_files(dataset: Path, tmp_path: Path, sub: str, what: str) -> None:
    """Files that were exchanged under the same names and sizes are named; the same files elsewhere are accepted."""
    folder = tmp_path / "run"
    assert run_program("train.py", *train_arguments(dataset, folder, epoch=1)).returncode == 0
    state = read_tensors(folder / "1.state.pth")
    state["progress"] |= {"epoch": 0, "step": 0}
    torch.save(state, folder / "1.state.pth")
    moved = dataset.rename(tmp_path / "moved")
    one, other = (moved / "train" / sub / f"{stem}.png" for stem in "13")
    (kept, bytes_of_other) = one.read_bytes(), other.read_bytes()
    one.write_bytes(bytes_of_other)
    other.write_bytes(kept)
    refused = run_program("train.py", "--continue_run", folder, "--root", moved)
    assert refused.returncode == 2
    assert f"trained on {what} that differ from those in --root now: train/1, train/3;" in last_line(refused)
    one.write_bytes(kept)
    other.write_bytes(bytes_of_other)
    result = run_program("train.py", "--continue_run", folder, "--root", moved)
    assert result.returncode == 0, result.stderr
    del state["contents"]  # as in states of earlier versions
    state["options"]["root"] = str(moved)
    torch.save(state, folder / "1.state.pth")
    result = run_program("train.py", "--continue_run", folder)
    assert result.returncode == 0, result.stderr
    assert "does not record which files the run began with" in result.stderr


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("model", ["prx", "unet"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "efficientnet_lite0", "timm:mobilenetv3_small_100"])
def test_smallest_crop_and_batch(backbone: str, model: str, size: int) -> None:
    """The only network that cannot train on one pair of 32 x 32 is the one that is refused below."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone, cross=model == "prx", refine=model == "prx", model=model)).train()
    images = torch.rand(1, 3, size, size)
    if model == "unet" and size == 32:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            TrainingLoss(network)(images, images, images[:, :1])
    else:
        losses, _ = TrainingLoss(network)(images, images, images[:, :1])
        assert bool(torch.isfinite(losses.total))


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, True),  # five pairs in twos: the last batch is one pair
        ({"train_batchsize": 5}, False),
        ({"train_batchsize": 3}, False),
        ({"train_batchsize": 5, "grad_accum": 3}, True),  # 2, 2 and 1
        ({"cropsize": 64}, False),
        ({"model": "prx"}, False),
    ],
)
def test_batches_too_small_for_batch_norm(
    dataset: Path, tmp_path: Path, changed: dict[str, int], refused: bool
) -> None:
    given = {"model": "unet", "cropsize": 32, **changed}
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", epoch=1, **given))
    assert result.returncode == (2 if refused else 0), result.stderr
    if refused:
        for part in ("--cropsize 32", "one pair", "batch norm", "5 train pairs", "choose a --cropsize of 64"):
            assert part in last_line(result)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("samples", [5, 9, 10, 13, 18])
def test_the_smallest_batch(samples: int, parts: int, processes: int) -> None:
    """It is that of all shares, split as the trainer splits them."""
    orders = [EpochOrder(samples, 9, 0, parts, process, processes) for process in range(processes)]
    sizes = [
        len(part)
        for order in orders
        for step, keys in enumerate(order)
        for part in torch.zeros(len(keys)).tensor_split(order.share(step).parts)
    ]
    assert orders[0].smallest() == min(sizes)
