"""train.py: three passes, equal runs for equal seeds, kill and continue, signals, a loss that is not finite."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import time
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from change.checkpoint import load_checkpoint, read_tensors
from change.options.train import OptimizerOptions
from change.training.parts import parameter_groups
from change.training.trainer import Training
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import (
    children,
    curve,
    last_line,
    run_program,
    start,
    train_arguments,
    wait_for,
    wait_for_step,
    write_pairs,
)

HARD = {"refine": True, "cross": True, "best_name": "run", "color_setting": "0.2 0.2 0.1 0.1", "save_minutes": 60}


def weights(folder: Path, name: str = "run") -> dict[str, torch.Tensor]:
    """Return the weights that a run ended with."""
    state = read_tensors(folder / f"{name}.state.pth")
    assert isinstance(state["weights"], dict)
    return state["weights"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def epochs(folder: Path, name: str = "run") -> list[dict[str, object]]:
    """Return the epoch lines of a run without the fields that depend on the clock."""
    rows = [json.loads(line) for line in (folder / f"{name}.epochs.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "pairs_per_second")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("amp", "ema", "recipe"), [pytest.param("off", 0, "published", marks=pytest.mark.rare), ("bf16", 0.9, "scratch")]
)
def test_kill_and_go_on(dataset: Path, tmp_path: Path, amp: str, ema: float, recipe: str) -> None:
    """After two kills, weights, scores, losses and curves are those of an uninterrupted run, bit for bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {**HARD, "amp": amp, "ema": ema, "recipe": recipe, "epoch": 3, "train_batchsize": 1}  # 15 steps
    options["resolution"] = "0.5 2"
    result = run_program("train.py", *train_arguments(dataset, whole, **options, workers=0))
    assert result.returncode == 0, result.stderr

    draw = random.Random(amp)
    arguments = train_arguments(dataset, broken, **{**options, "workers": 2, "save_minutes": 0})
    for first in (1, 8):
        process = start(arguments)
        wait_for_step(broken / "run.state.pth", process, draw.randint(first, first + 2))
        time.sleep(draw.random() / 10)
        if first == 1:
            process.kill()  # its workers end by themselves, after up to five seconds
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert first <= read_tensors(broken / "run.state.pth")["progress"]["steps"] < 15
        arguments = ["--continue_run", str(broken), "--workers", "2"]
    finished = run_program("train.py", *arguments)
    assert finished.returncode == 0, finished.stderr

    assert equal(weights(whole), weights(broken))
    assert equal(*(read_tensors(folder / "run.state.pth")["average"] for folder in (whole, broken)))
    assert epochs(whole) == epochs(broken)
    kept = load_checkpoint(whole / "run.pth")
    continued = load_checkpoint(broken / "run.pth")
    assert equal(kept.weights, continued.weights) and kept.resolution == continued.resolution == (0.5, 2)
    if recipe == "scratch":  # keeps the averaged weights of the last epoch, not of the best one
        assert equal(kept.weights, read_tensors(whole / "run.state.pth")["average"]) and kept.lineage[-1].epoch == 3
        assert "last weights kept" in result.stderr
    assert curve(broken, "val/f1") == curve(whole, "val/f1")
    steps = [step for step, _ in curve(broken, "train/loss")]
    assert len(steps) == len(set(steps)) and max(steps) == 15


@pytest.mark.slow
def test_same_seed_same_losses(dataset: Path, tmp_path: Path) -> None:
    """The same seed gives the same run, another seed another one."""
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        result = run_program("train.py", *train_arguments(dataset, tmp_path / name, seed=seed, **HARD))
        assert result.returncode == 0, result.stderr
    assert epochs(tmp_path / "one") == epochs(tmp_path / "two")
    assert epochs(tmp_path / "one") != epochs(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save(dataset: Path, tmp_path: Path, number: signal.Signals, code: int, group: bool) -> None:
    """A signal, to the process only or to its workers too, makes it save, log how to continue, and end."""
    folder = tmp_path / "a run"
    process = start(train_arguments(dataset, folder, **{**HARD, "epoch": 40, "workers": 2}))
    wait_for((folder / "run.epochs.jsonl").exists, process)
    (os.killpg if group else os.kill)(process.pid, number)
    _, output = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert f"python train.py --continue_run '{folder}' --best_name run" in output.replace("\r", "\n").splitlines()[-1]
    assert "Traceback" not in output
    assert read_tensors(folder / "run.state.pth")["progress"]["steps"] > 0


@pytest.mark.slow
def test_a_stopped_run_leaves_weights(dataset: Path, tmp_path: Path) -> None:
    """With --keep last, too: those of the last validation. Before the first one, test.py says that there are none."""
    state = tmp_path / "run.state.pth"
    given = ("--test_root", dataset / "val", "--checkpoint_path", state, "--save_path", tmp_path / "out")
    options = {**HARD, "keep": "last", "recipe": "scratch", "epoch": 400, "val_epoch": 2}
    process = start(train_arguments(dataset, tmp_path, **options))
    wait_for(state.exists, process)
    refused = run_program("test.py", *given)
    assert (refused.returncode, "it has no weights yet: validation writes run.pth" in last_line(refused)) == (2, True)
    wait_for((tmp_path / "run.pth").exists, process)
    process.terminate()
    _, output = process.communicate(timeout=120)
    assert f"; weights so far: {tmp_path / 'run.pth'}; continue with: " in output
    (record,) = load_checkpoint(tmp_path / "run.pth").lineage
    assert record.epoch % 2 == 0
    refused = run_program("test.py", *given)
    assert (refused.returncode, f"--continue_run; use {tmp_path / 'run.pth'}" in last_line(refused)) == (2, True)


@pytest.mark.slow
def test_a_worker_that_is_killed(dataset: Path, tmp_path: Path) -> None:
    """The kernel does this when memory runs out."""
    process = start(train_arguments(dataset, tmp_path / "run", **{**HARD, "epoch": 40, "workers": 1}))
    wait_for((tmp_path / "run" / "run.epochs.jsonl").exists, process)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.replace("\r", "\n").splitlines()[-1].startswith("error: a loader process died")
    assert "error: a loader process died" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_three_passes(dataset: Path, tmp_path: Path) -> None:
    """1.pth, 2.pth and best.pth are in one folder; each starts from the one before and records its lineage."""
    folder = tmp_path / "run"
    passes: list[dict[str, object]] = [
        {"epoch": 1, "save_freq": 1, "backbone": "resnet18", "width": 0},  # the published network
        {"epoch": 1, "refine": True, "resume": True, "checkpoint_path": folder / "1.pth"},
        {"epoch": 1, "refine": True, "cross": True, "resume": True, "checkpoint_path": folder / "2.pth"},
    ]
    for options in passes:
        result = run_program("train.py", *train_arguments(dataset, folder, **options))
        assert result.returncode == 0, result.stderr
    new = next(line for line in result.stderr.splitlines() if line.startswith("newly initialised: "))
    counts = dict(part.split(" in ")[::-1] for part in new.partition(": ")[2].split(", "))
    added = Counter(".".join(n.split(".")[:2]) for n in weights(folder, "best") if ".cross." in n)
    assert counts == {part: str(count) for part, count in added.items()}
    assert f"cpu, float32: epoch 1 of {passes[2]['epoch']}" in result.stderr
    best = load_checkpoint(folder / "best.pth")
    assert (best.config.refine, best.config.cross) == (True, True)
    assert [record.name for record in best.lineage] == ["base", "refine", "refine+cross"]
    assert all(len(record.images) == 10 and record.epoch == 1 for record in best.lineage)
    assert load_checkpoint(folder / "1_epoch1.pth").lineage[0].epoch == 1
    lines = (folder / "log.txt").read_text().splitlines()
    assert sum(" epoch 1/1: loss " in line and line.endswith(" pairs/s") for line in lines) == len(passes)
    table = [line.split() for line in (folder / "metrics.txt").read_text().splitlines()]
    assert len(table) == 1 + 3
    recorded = json.loads((folder / "best.epochs.jsonl").read_text().splitlines()[-1])["val"]["recall"]
    assert table[-1][table[0].index("recall")] == f"{100 * recorded:.2f}"
    ((_, drawn),) = curve(folder, "val/recall", "best")
    assert drawn == pytest.approx(100 * recorded)
    again = run_program("train.py", *train_arguments(dataset, folder, **passes[0]))
    assert again.returncode == 2
    assert "holds a run named 1" in last_line(again)


@pytest.mark.parametrize(("batch", "what"), [(2, "the loss is not finite"), (5, "not finite")])
def test_loss_that_is_not_finite(dataset: Path, tmp_path: Path, batch: int, what: str) -> None:
    """The error names the pairs of the batch; every file on disk is finite, even with a validation after each step."""
    arguments = train_arguments(dataset, tmp_path / "run", lr=1e30, epoch=20, train_batchsize=batch, save_freq=1)
    result = run_program("train.py", *arguments)
    assert result.returncode == 2, result.stderr
    assert what in last_line(result) and "last good state" in last_line(result)
    if batch == 2:
        assert any(f"pairs {name}" in last_line(result) for name in range(5))
    assert last_line(result) in (tmp_path / "run" / "log.txt").read_text()
    for path in (tmp_path / "run").glob("*.pth"):
        weights = read_tensors(path)["weights"]
        assert all(bool(torch.isfinite(weight.float()).all()) for weight in weights.values()), path


@pytest.mark.slow
def test_going_on_elsewhere(dataset: Path, tmp_path: Path) -> None:
    """A finished run reports that it is; other options and other pairs are refused; the folder can be moved."""
    folder = tmp_path / "run"
    assert run_program("train.py", *train_arguments(dataset, folder, epoch=1)).returncode == 0
    before = (folder / "1.state.pth").read_bytes()
    refused = run_program("train.py", "--continue_run", folder, "--lr", "0.5")
    assert refused.returncode == 2
    assert "--lr 0.5, was 0.001" in last_line(refused)
    state = read_tensors(folder / "1.state.pth")
    state["progress"]["epoch"] = 0
    torch.save(state, tmp_path / "1.state.pth")
    write_pairs(tmp_path / "other" / "train", 6)
    write_pairs(tmp_path / "other" / "val", 2)
    refused = run_program("train.py", "--continue_run", tmp_path, "--root", tmp_path / "other")
    assert refused.returncode == 2
    assert "trained on other pairs" in last_line(refused)
    for part, message in (("progress", "no state that this version"), ("options", "made by another version")):
        broken = {key: value for key, value in state.items() if key != part}
        if part == "options":
            broken["options"] = {**state["options"], "novelty": 1}
        torch.save(broken, tmp_path / "1.state.pth")
        refused = run_program("train.py", "--continue_run", tmp_path)
        assert refused.returncode == 2
        assert message in last_line(refused)
    moved = folder.rename(tmp_path / "moved")
    finished = run_program("train.py", "--continue_run", moved)
    assert finished.returncode == 0
    assert "nothing left to do" in finished.stderr
    assert (moved / "1.state.pth").read_bytes() == before


def test_a_finished_run_frees_its_loaders(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference counting frees them. If that is left to the garbage collector, each worker takes ten seconds to end."""
    runs: list[weakref.ref[Training]] = []
    alive: list[bool] = []
    fit = Training.fit

    def watched(training: Training) -> None:
        runs.append(weakref.ref(training))
        fit(training)

    monkeypatch.setattr(Training, "fit", watched)
    monkeypatch.setattr("gc.collect", lambda: alive.append(runs[0]() is not None))  # called when the program has ended
    gc.disable()
    try:
        result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", epoch=1))
    finally:
        gc.enable()
    assert result.returncode == 0, result.stderr
    assert alive == [False]


def test_val_that_was_trained_on(tmp_path: Path) -> None:
    """A warning names the val pairs that share images with train."""
    write_pairs(tmp_path / "data" / "train", 3, seed=1)
    write_pairs(tmp_path / "data" / "val", 2, seed=1)
    result = run_program("train.py", *train_arguments(tmp_path / "data", tmp_path / "run", epoch=1))
    assert "2 of its pairs share an image file with train: 0, 1" in result.stderr.partition("epoch 1")[0]
    assert "2 of its pairs were trained on: 0, 1" in result.stderr


@pytest.mark.slow
def test_unet_is_trained_and_tested(dataset: Path, tmp_path: Path) -> None:
    result = run_program("train.py", *train_arguments(dataset, tmp_path, model="unet", epoch=1))
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(tmp_path / "1.pth").config.model == "unet"
    arguments = ("--test_root", dataset / "val", "--checkpoint_path", tmp_path / "1.pth", "--device=cpu")
    tested = run_program("test.py", *arguments, "--workers=0", "--save_path", tmp_path / "out")
    assert tested.returncode == 0, tested.stderr
    refused = train_arguments(dataset, tmp_path / "next", resume=True, checkpoint_path=tmp_path / "1.pth")
    wrong = run_program("train.py", *refused)
    assert (wrong.returncode, "holds the model unet, this run is set to --model prx" in last_line(wrong)) == (2, True)


def test_norms_and_biases_without_decay() -> None:
    network = build_network(NetworkConfig(cross=True))
    parts = parameter_groups(network, OptimizerOptions(weight_decay=0.05, decay_norms=False))
    decays = {id(p): part["weight_decay"] for part in parts for p in part["params"]}
    assert len(decays) == len([*network.parameters()])
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            norm = isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)
            assert decays[id(parameter)] == (0.0 if norm or name == "bias" else 0.05), (module, name)
    [everything] = parameter_groups(network, OptimizerOptions(weight_decay=0.05))
    assert everything["weight_decay"] == 0.05 and len(everything["params"]) == len(decays)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_learning_rate_of_the_encoder(backbone: str) -> None:
    network = build_network(NetworkConfig(backbone=backbone))
    parts = parameter_groups(network, OptimizerOptions(encoder_lr=0.25))
    factors = {id(p): part["factor"] for part in parts for p in part["params"]}
    assert len(factors) == len([*network.parameters()])
    for name, parameter in network.named_parameters():
        pretrained = name.startswith("encoder.") and not name.startswith("encoder.project.")
        assert factors[id(parameter)] == (0.25 if pretrained else 1.0), name
