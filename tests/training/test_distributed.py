"""Several processes against one: the same losses, counts and files; if one process fails, all stop."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from change.checkpoint import Checkpoint, load_checkpoint, read_tensors
from change.common import distributed
from change.common.devices import choose_device
from change.common.errors import UserError
from change.data.loaders import BatchShare, EpochOrder
from change.data.samples import Batch
from change.training.average import WeightAverage
from change.training.precision import Precision
from change.training.step import weighted_parts
from models.config import NetworkConfig
from models.losses import TrainingLoss
from models.network import build_network
from tests.conftest import (
    REPOSITORY,
    children,
    curve,
    run_program,
    start,
    train_arguments,
    wait_for_step,
    write_pairs,
)

ENDED = "error: another process of this run has ended"

# A program that trains like train.py, but to the same result for any number of processes and micro-batches: batch norms
# use their running statistics, dropout is off, every pair gets the same points, and all is float64. It logs every loss.
EXACT = """
import sys
import torch
from unittest.mock import patch
import change.checkpoint, change.training.parts, change.training.trainer, train
from models.losses import TrainingLoss
from models.network import build_network
from models.padding import normalise

class Exact(TrainingLoss):
    def train(self, mode=True):
        return super().train(False)

    def forward(self, before, after, mask, points=None):
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.rand(1, number, 2, generator=generator).double() for number in (1, 2, 4, 8)]
        return super().forward(before, after, mask.double(), [p.expand(len(before), -1, -1) for p in drawn])

with (
    patch.object(change.training.trainer, "LOG_EVERY", 1),
    patch.object(change.checkpoint, "normalise", lambda *given: normalise(*given).double()),
    patch.object(change.training.parts, "build_network", lambda config: build_network(config).double()),
    patch.object(change.training.parts, "TrainingLoss", Exact),
):
    sys.exit(train.main(sys.argv[1:]))
"""


# --- shares and parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "batch", "parts", "processes"), [(11, 4, 1, 2), (13, 6, 2, 3), (9, 8, 1, 8)])
def test_shares_of_a_batch(samples: int, batch: int, parts: int, processes: int) -> None:
    """The shares add up to the batch of one process, and all processes do the same number of passes."""
    alone = list(EpochOrder(samples, batch, seed=3))
    orders = [EpochOrder(samples, batch, 3, parts, process, processes) for process in range(processes)]
    for step, keys in enumerate(zip(*orders, strict=True)):
        shares = [order.share(step) for order in orders]
        assert [key for own, share in zip(keys, shares, strict=True) for key in own[: share.own]] == alone[step]
        assert {share.pairs for share in shares} == {len(alone[step])}
        (passes,) = {share.parts for share in shares}
        assert all(passes <= len(own) <= max(passes, share.own) for own, share in zip(keys, shares, strict=True))
        assert all(key in alone[step] for own in keys for key in own)


def test_a_batch_smaller_than_its_parts() -> None:
    with pytest.raises(UserError, match=r"--train_batchsize 5: choose 6 or more, .* 2 processes x 3 parts"):
        EpochOrder(20, 5, 0, parts=3, process=0, processes=2)


def test_parts_of_a_step() -> None:
    """Gradients of uneven parts add up to that of the whole batch; a pair that only fills up a part adds nothing."""
    torch.manual_seed(0)
    loss = TrainingLoss(build_network(NetworkConfig(refine=True))).eval().double()
    before, after = torch.rand(2, 5, 3, 32, 32, dtype=torch.float64)
    mask = (torch.rand(5, 1, 32, 32) > 0.5).double()
    points = [torch.rand(1, number, 2, dtype=torch.float64) for number in (1, 2, 4, 8)]

    def gradient(own: int, parts: int) -> torch.Tensor:
        loss.zero_grad()
        batch = Batch(before, after, mask, [], [])
        for part, weight in weighted_parts(batch, BatchShare(own, own, parts)):
            torch.autograd.backward(weight * loss(*part, [p.expand(len(part[0]), -1, -1) for p in points])[0].total)
        return torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None])

    whole = gradient(5, 1)
    assert (gradient(5, 3) - whole).norm() <= 1e-6 * whole.norm()
    *_, (part, weight) = weighted_parts(Batch(before, after, mask, [], []), BatchShare(9, 4, 5))
    assert len(part[0]) == 1 and weight == 0
    assert (gradient(4, 5) - whole).norm() > 1e-3 * whole.norm()


def test_one_process_has_nobody_to_talk_to() -> None:
    """With one process, every exchange returns what it was given."""
    values = torch.rand(3)
    assert torch.equal(distributed.sum_over_processes(values.clone()), values)
    assert (distributed.largest([3, 1]), distributed.gather("a"), distributed.gather_on_first("b")) == (
        [3, 1],
        ["a"],
        ["b"],
    )
    assert (distributed.rank(), distributed.processes(), distributed.neighbours()) == (0, 1, 1)


def test_devices_of_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr("change.common.distributed.processes", lambda: 3)
    monkeypatch.setattr("change.common.distributed.neighbours", lambda: 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1) and taken == [1]
    assert choose_device("auto") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("0", "mps"):
        with pytest.raises(UserError, match=f"--device {name}: with several processes each takes its own GPU"):
            choose_device(name)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="3 processes, but torch sees 2 GPUs"):
        choose_device("cuda")


def test_only_a_lost_process_is_called_one() -> None:
    """The true cause of another error is not hidden, and that of a lost process is named."""
    with pytest.raises(RuntimeError, match="invalid device ordinal"), distributed.together():
        raise RuntimeError("CUDA error: invalid device ordinal")
    for error in (RuntimeError("Connection closed by peer"), dist.DistBackendError("a peer is gone")):
        with pytest.raises(UserError, match=r"another process of this run has ended.* peer"), distributed.together():
            raise error


# --- the average and the optimizer ---------------------------------------------------------------------------------


def test_average_of_the_weights() -> None:
    """The average equals a loop over plain numbers; with decay 0 it is the trained network itself."""
    torch.manual_seed(0)
    network = torch.nn.BatchNorm1d(1)
    average = WeightAverage(network, 0.5)
    assert network.running_mean is not None
    expected = [network.weight.item(), network.running_mean.item()]
    for step in range(1, 20):
        with torch.no_grad():
            network.weight.add_(torch.randn(1))
        network(torch.randn(4, 1))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        now = [network.weight.item(), network.running_mean.item()]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
    found = average.state_dict()
    assert [float(found["weight"]), float(found["running_mean"])] == pytest.approx(expected, rel=1e-5)
    assert found["num_batches_tracked"] == 19
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    off = WeightAverage(network, 0.0)
    assert off.network is network and off.state_dict() == {}


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_the_fused_optimizer(amp: str) -> None:
    """It takes the step of the plain one, also for channels-last weights and for scaled gradients of fp16."""
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        precision = Precision(amp, torch.device("cpu"))
        layer = torch.nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, eps=1e-3, weight_decay=2e-3, fused=fused)
        for _ in range(10):
            precision.backward(layer(torch.randn(2, 8, 5, 5)).square().mean(), optimizer)
            precision.step(optimizer)
        results.append(layer.weight.detach())
    assert torch.allclose(results[0], results[1], rtol=1e-5, atol=1e-7)


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_counts_are_those_of_one_process(tmp_path: Path) -> None:
    """Every file of test.py is the same, for images of two sizes, and if there are more processes than pairs."""
    root = write_pairs(tmp_path / "set", 4, 70, 50, seed=3)
    for sub in ("A", "B", "label"):
        (write_pairs(tmp_path / "more", 1, 40, 64, seed=4) / sub / "0.png").rename(root / sub / "00.png")
    torch.manual_seed(0)
    config = NetworkConfig(cross=True)
    Checkpoint(config, build_network(config).state_dict()).save(tmp_path / "net.pth")
    (tmp_path / "one.txt").write_text("2\n")
    arguments = [f"--test_root={root}", f"--checkpoint_path={tmp_path / 'net.pth'}", "--device=cpu", "--workers=0"]
    arguments += ["--save_result", "--save_iou_map", "--save_panels", "--report"]
    found = []
    for name, processes in (("alone", 1), ("two", 2), ("one", 2)):
        out = tmp_path / name
        given = [*arguments, f"--save_path={out}", *([f"--list={tmp_path / 'one.txt'}"] if name == "one" else [])]
        result = run_program("test.py", *given, processes=processes)
        assert result.returncode == 0, result.stderr
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*")}
        found.append((files, result.stdout.replace(str(out), "")))
    alone, two, (one, _) = found
    assert alone == two and len(alone[0]) == 3 + 3 * 5
    assert len(one) == 3 + 3 and all(one[f"{sub}/2.png"] == alone[0][f"{sub}/2.png"] for sub in ("pred", "panels"))
    assert json.loads(one["metrics.json"])["images"] == 1
    head, *rows = alone[0]["images.csv"].splitlines()
    assert one["images.csv"].splitlines() == [head, next(row for row in rows if row.startswith(b"2,"))]


@pytest.mark.slow
def test_losses_are_those_of_one_process(tmp_path: Path) -> None:
    """10 steps of 4 and 3 pairs, each in two parts; with 3 pairs, the first process gets one and a filler."""
    write_pairs(tmp_path / "data" / "train", 7, seed=1)
    write_pairs(tmp_path / "data" / "val", 3, seed=2)
    script = tmp_path / "exact.py"
    script.write_text(EXACT)
    options = {"refine": True, "best_name": "run", "cropsize": 32, "train_batchsize": 4, "epoch": 5, "val_epoch": 5}
    losses, states = {}, {}
    for name, processes, parts in (("alone", 1, 1), ("two", 2, 2)):
        arguments = train_arguments(tmp_path / "data", tmp_path / name, **options, val_batchsize=1, grad_accum=parts)
        repository = {"PYTHONPATH": str(REPOSITORY)} if processes > 1 else None
        result = run_program(script, *arguments, processes=processes, environment=repository)
        assert result.returncode == 0, result.stderr
        losses[name] = curve(tmp_path / name, "train/loss")
        states[name] = read_tensors(tmp_path / name / "run.state.pth")
    assert [step for step, _ in losses["alone"]] == list(range(1, 11))
    assert len({value for _, value in losses["alone"]}) == 10
    for found, expected in zip(losses["two"], losses["alone"], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)  # TensorBoard keeps float32
    for key in ("progress", "images"):
        assert states["two"][key] == states["alone"][key]
    for name, weight in states["alone"]["weights"].items():
        assert torch.allclose(states["two"]["weights"][name], weight, rtol=1e-9, atol=1e-9), name


@pytest.mark.slow
def test_a_process_that_is_killed(dataset: Path, tmp_path: Path) -> None:
    """The others end; one process continues from the state on disk, which lists the images that all have seen."""
    folder = tmp_path / "run"
    options = {"epoch": 3, "train_batchsize": 4, "grad_accum": 2, "ema": 0.9, "deterministic": True, "save_minutes": 0}
    process = start(train_arguments(dataset, folder, **options), processes=2)
    wait_for_step(folder / "1.state.pth", process, 2)  # in the first epoch, the only one in which images are hashed
    workers = children(process)
    os.kill(workers[1], signal.SIGKILL)
    killed = time.monotonic()
    _, output = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert output.count(ENDED) == 1 and "RuntimeError" not in output
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert 2 <= read_tensors(folder / "1.state.pth")["progress"]["steps"] < 6
    finished = run_program("train.py", "--continue_run", folder)
    assert finished.returncode == 0, finished.stderr
    assert read_tensors(folder / "1.state.pth")["progress"]["steps"] == 6
    (record,) = load_checkpoint(folder / "1.pth").lineage
    assert len(record.images) == 2 * 5


@pytest.mark.slow
def test_a_signal_to_the_launcher(dataset: Path, tmp_path: Path) -> None:
    """SIGTERM saves the state; two processes continue from it to the weights of an uninterrupted run, bit for bit."""
    options = {"best_name": "run", "refine": True, "epoch": 4, "val_epoch": 4}
    whole = run_program("train.py", *train_arguments(dataset, tmp_path / "whole", **options), processes=2)
    assert whole.returncode == 0, whole.stderr
    process = start(train_arguments(dataset, tmp_path / "two", **options, save_minutes=0), processes=2)
    wait_for_step(tmp_path / "two" / "run.state.pth", process, 1)
    process.terminate()
    _, output = process.communicate(timeout=60)
    assert "stopped in epoch" in output and f"--continue_run {tmp_path / 'two'}" in output, output
    assert 1 <= read_tensors(tmp_path / "two" / "run.state.pth")["progress"]["steps"] < 12
    finished = run_program("train.py", "--continue_run", tmp_path / "two", processes=2)
    assert finished.returncode == 0, finished.stderr
    assert "epoch 4/4" in finished.stderr and "Traceback" not in finished.stderr
    states = [read_tensors(tmp_path / name / "run.state.pth") for name in ("whole", "two")]
    assert states[0]["progress"]["steps"] == states[1]["progress"]["steps"] == 12
    for name, weight in states[0]["weights"].items():
        if "running" in name:  # a mean over the processes, taken after another number of steps
            assert torch.allclose(states[1]["weights"][name], weight, rtol=1e-5, atol=1e-5), name
        else:
            assert torch.equal(states[1]["weights"][name], weight), name


@pytest.mark.slow
def test_what_one_process_fails_at(dataset: Path, tmp_path: Path) -> None:
    """Both processes end if the loss is not finite, or if one of them reads a file that does not decode."""
    result = run_program(
        "train.py", *train_arguments(dataset, tmp_path / "loss", lr=1e30, epoch=20), processes=2, timeout=60
    )
    assert result.returncode != 0
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert sum(line.startswith("error: the loss is not finite") and "pairs" in line for line in lines) == 1
    path = dataset / "train" / "A" / "3.png"
    path.write_bytes(path.read_bytes()[:-2000])
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "file"), processes=2, timeout=60)
    assert result.returncode != 0
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if "error: " in line]
    assert sum(str(path) in line for line in lines) == 1
