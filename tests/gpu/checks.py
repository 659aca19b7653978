"""The checks of the GPU session: `python -m tests.gpu.checks OUT`, started by tests/gpu/session.py.

Each check gives figures, each with the largest value that passes. They are written to OUT/checks.json after every
check, so that the checks before a crash are kept. Float32 is computed without TF32.
"""

from __future__ import annotations

import concurrent.futures
import copy
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from change.common.devices import choose_device
from change.common.errors import run_command
from change.common.files import write_whole
from change.prediction.detector import ChangeDetector
from change.training.precision import Precision
from change.training.recorded import Recorded
from models.config import STRIDES, NetworkConfig
from models.encoders import encode_dates
from models.losses import TrainingLoss
from models.network import build_network
from tests.gpu.resume import killed_run
from tests.gpu.settings import device_name, load_session
from tests.models.test_parity import NETWORKS, PAIRS, REFERENCE, drop_nothing, published_network
from tests.reference.reference_weights import reference_pair

REPOSITORY = Path(__file__).resolve().parents[2]
BACKBONES = ("resnet18", "efficientnet_lite0")
PAIRS_PER_STEP = 4
LOOSEST = 2e-2  # gradients: float32 moves a few of them by almost 1e-2, where it changes the choice of a maximum


def side_of(device: torch.device) -> int:
    """Return the side of the images of the checks, in pixels: small on a CPU, which only rehearses them."""
    return 32 if device.type == "cpu" else 128


class Figure(NamedTuple):
    """A figure of a check, and the largest value that passes."""

    name: str
    value: float
    bound: float


Check = Callable[[], Iterator[Figure]]


def distance(ours: Tensor, expected: Tensor | np.ndarray[Any, Any]) -> float:
    """Return the largest absolute difference, relative to the largest absolute value expected."""
    own, other = ours.detach().double().cpu(), torch.as_tensor(expected).detach().double().cpu()
    return float((own - other.reshape(own.shape)).abs().max() / other.abs().max().clamp_min(1e-30))


# --- the published reference ---------------------------------------------------------------------------------------


@torch.inference_mode()
def parity_outputs(device: torch.device) -> Iterator[Figure]:
    """Compare the outputs of the published networks, with the bound of tests/models/test_parity.py."""
    for depth, part in NETWORKS[1:2] if device.type == "cpu" else NETWORKS:
        network, worst = published_network(depth, part).to(device), 0.0
        with np.load(REFERENCE / f"expected_resnet{depth}_{part}.npz") as expected:
            for seed, batch, height, width in PAIRS:
                suffix = f"_s{seed}_b{batch}_{height}x{width}"
                before, after = (image.to(device) for image in reference_pair(seed, batch, height, width))
                features = encode_dates(network.encoder, before, after)
                fused = network.decoder(features)
                found = {"logits": network(before, after)}
                found |= {f"encoder{i}_mean": features[i].mean((2, 3)) for i in range(4)}
                found |= {f"fusion{i}_mean": fused[i].mean((2, 3)) for i in range(4)}
                worst = max(worst, *(distance(value, expected[name + suffix]) for name, value in found.items()))
        yield Figure(f"outputs of resnet{depth} {part}", worst, 1e-4)


def parity_step(device: torch.device) -> Iterator[Figure]:
    """Compare the losses of one training step with the published ones, and the logits after it."""
    for part in ("cross",) if device.type == "cpu" else ("base", "cross"):
        with np.load(REFERENCE / f"expected_train_step_resnet18_{part}.npz") as arrays:
            expected = dict(arrays)
        network = published_network(18, part).train().to(device)
        drop_nothing(network)
        before, after = (image.to(device) for image in reference_pair(7, 2, 96, 96))
        mask = np.random.RandomState(107).standard_normal((2, 1, 96, 96)).astype(np.float32) > 0.5
        points = [
            torch.from_numpy(np.random.RandomState(7 + 1000 + i).random_sample((2, 96 // s, 2)).astype(np.float32))
            for i, s in enumerate(reversed(STRIDES))
        ]
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-4, eps=1e-3, weight_decay=2e-3)
        losses, logits = TrainingLoss(network)(
            before, after, torch.from_numpy(mask).float().to(device), [each.to(device) for each in points]
        )
        losses.total.backward()
        optimizer.step()
        named = zip(("total", "cls", "refine"), losses, strict=True)
        worst = max(distance(loss, expected[f"loss_{name}"]) for name, loss in named)
        yield Figure(f"losses, {part}", worst, 1e-3)
        yield Figure(f"logits, {part}", distance(logits, expected["logits"]), 1e-3)
        with torch.inference_mode():
            after_step = network.eval()(before, after)
        yield Figure(f"logits after the step, {part}", distance(after_step, expected["logits_after_step_eval"]), 1e-3)


# --- training steps ------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The input of a training step: normalised images, the mask, and the points of each stage."""

    before: Tensor
    after: Tensor
    mask: Tensor
    points: list[Tensor]

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Move the batch to a device in a dtype."""
        before, after, mask = (tensor.to(device, dtype) for tensor in (self.before, self.after, self.mask))
        return Batch(before, after, mask, [tensor.to(device, dtype) for tensor in self.points])


def make_batch(side: int) -> Batch:
    """Draw a batch of images with sides of `side` pixels on the CPU."""
    draw = torch.Generator().manual_seed(3)
    before, after = (torch.randn(PAIRS_PER_STEP, 3, side, side, generator=draw) for _ in range(2))
    mask = (torch.rand(PAIRS_PER_STEP, 1, side // 16, side // 16, generator=draw) > 0.7).float()
    mask = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)
    points = [torch.rand(PAIRS_PER_STEP, side // stride, 2, generator=draw) for stride in reversed(STRIDES)]
    return Batch(before, after, mask, points)


def make_loss(backbone: str) -> TrainingLoss:
    """Build a network with refinement and X-Cross and its loss on the CPU, without dropout."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone, cross=True, refine=True)).train()
    drop_nothing(network)
    return TrainingLoss(network)


def gradients(loss: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Take one backward pass; return the loss, under "loss", and the gradients by name, in float64 on the CPU."""
    losses, _ = loss(*batch)
    losses.total.backward()
    found = {name: each.grad for name, each in loss.named_parameters() if each.grad is not None}
    return {name: tensor.detach().double().cpu() for name, tensor in {"loss": losses.total, **found}.items()}


def differences(own: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative differences of the loss, of three gradients and of all gradients as one vector."""
    names = [name for name, tensor in exact.items() if tensor.ndim == 4]  # kernels, in the order of the network
    parts = {"loss": ["loss"], "first kernel": names[:1], "middle kernel": [names[len(names) // 2]]}
    parts |= {"last kernel": names[-1:], "all gradients": [name for name in exact if name != "loss"]}
    found = {}
    for title, members in parts.items():
        a, b = (torch.cat([tensors[name].flatten() for name in members]) for tensors in (own, exact))
        found[title] = float((a - b).norm() / b.norm())
    return found


def step_against_cpu(backbone: str, device: torch.device) -> Iterator[Figure]:
    """Compare the gradients of one step on the device in float32 with those of the CPU in float64.

    The bound is 1e-4 for the loss. For gradients it is 5 times the difference that float32 makes on the CPU, or
    `LOOSEST` if that is larger.
    """
    loss, batch = make_loss(backbone), make_batch(side_of(device))
    cpu = torch.device("cpu")
    exact = gradients(copy.deepcopy(loss).double(), batch.to(cpu, torch.float64))
    on_cpu = differences(gradients(copy.deepcopy(loss), batch), exact)
    moved = loss.to(device).to(memory_format=torch.channels_last)
    on_device = differences(gradients(moved, batch.to(device, torch.float32)), exact)
    for title, value in on_device.items():
        bound = 1e-4 if title == "loss" else max(5 * on_cpu[title], LOOSEST)
        yield Figure(f"{title} (CPU {on_cpu[title]:.1e})", value, bound)


def recorded_step(backbone: str, device: torch.device) -> Iterator[Figure]:
    """Compare the gradients of a step that is replayed as a CUDA graph with those of the same step, launch by launch.

    The network has no refinement, whose gradients are sums in no fixed order.
    """
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone)).train()
    loss = TrainingLoss(network).to(device).to(memory_format=torch.channels_last)
    before, after, mask, _ = make_batch(side_of(device)).to(device, torch.float32)

    def add_gradients(*inputs: Tensor) -> Tensor:
        losses, _ = loss(*inputs)
        losses.total.backward()
        total: Tensor = losses.total.detach()
        return total

    def one_step(step: Callable[..., Tensor]) -> dict[str, Tensor]:
        total = step(before, after, mask).double().cpu()
        found = {name: each.grad.double().cpu() for name, each in loss.named_parameters() if each.grad is not None}
        loss.zero_grad(set_to_none=True)
        return {"loss": total, **found}

    exact, step = one_step(add_gradients), Recorded(add_gradients, loss)
    for turn in ("recorded", "replayed"):
        for title, value in differences(one_step(step), exact).items():
            yield Figure(f"{title}, {turn}", value, 1e-4)
    yield Figure("not recorded", float(step.graph is None), 0)


def train_losses(backbone: str, amp: str, device: torch.device) -> tuple[list[float], bool]:
    """Take a few steps as train.py does, in one number format.

    Returns:
        The losses, and whether all weights are finite after them.
    """
    loss, precision = make_loss(backbone).to(device).to(memory_format=torch.channels_last), Precision(amp, device)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-4, eps=1e-3, fused=True)
    batch, found = make_batch(side_of(device)).to(device, torch.float32), []
    for _ in range(1 if device.type == "cpu" else 4):
        with precision.autocast():
            losses, _ = loss(*batch)
        precision.backward(losses.total, optimizer)
        precision.step(optimizer)
        found.append(float(losses.total.detach()))
    finite = all(bool(each.isfinite().all()) for each in loss.state_dict().values() if each.is_floating_point())
    return found, finite


def half_steps(backbone: str, device: torch.device) -> Iterator[Figure]:
    """Compare the losses of a few steps in half precision with those in float32, relative to the latter."""
    exact, _ = train_losses(backbone, "off", device)
    for amp in ("bf16", "fp16"):
        found, finite = train_losses(backbone, amp, device)
        worst = max(abs(one - other) / abs(other) for one, other in zip(found, exact, strict=True))
        yield Figure(f"loss of {len(found)} steps, {amp}", worst, 0.05)
        yield Figure(f"weights that are not finite, {amp}", float(not finite), 0)


# --- prediction ----------------------------------------------------------------------------------------------------


def predictions(device: torch.device) -> Iterator[Figure]:
    """Compare predictions of a real pair with those of the CPU in float32: probabilities, and masks by 1 - IoU."""
    side = 256 if device.type == "cpu" else 512
    paths = [REPOSITORY / "test_samples" / date / "0_0000.jpg" for date in ("A", "B")]
    pair = [PIL.Image.open(path).crop((0, 0, side, side)) for path in paths]
    bounds = {"off": (1e-3, 1e-3), "bf16": (0.2, 0.05), "fp16": (0.05, 0.01)}

    def predict(name: str, amp: str) -> np.ndarray[Any, Any]:
        detector = ChangeDetector(REPOSITORY / "checkpoints" / "buildings_r18.pth", device=name, amp=amp)
        return detector.predict(*pair)

    exact = predict("cpu", "off")
    for amp, (largest, lost) in bounds.items():
        found = predict(device_name(device), amp)
        one, other = exact > 0.5, found > 0.5
        yield Figure(f"probability, {amp}", float(np.abs(found - exact).max()), largest)
        yield Figure(f"1 - IoU, {amp}", float((one ^ other).sum() / max(1, (one | other).sum())), lost)


# --- the list ------------------------------------------------------------------------------------------------------


def plan_checks(device: torch.device) -> dict[str, Check]:
    """Return the checks by name, those without a training step of EfficientNet first, as its kernels take long."""
    checks: dict[str, Check] = {
        "parity": lambda: parity_outputs(device),
        "parity of a step": lambda: parity_step(device),
        "prediction": lambda: predictions(device),
    }
    for backbone in BACKBONES:
        checks[f"step {backbone}"] = lambda backbone=backbone: step_against_cpu(backbone, device)  # type: ignore[misc]
        if device.type == "cuda":
            checks[f"recorded {backbone}"] = lambda backbone=backbone: recorded_step(backbone, device)  # type: ignore[misc]
        checks[f"half {backbone}"] = lambda backbone=backbone: half_steps(backbone, device)  # type: ignore[misc]
    return checks


def run_check(check: Check) -> dict[str, Any]:
    """Run a check. Returns its seconds, its figures and whether it passed; after an error, the error."""
    began, figures, error = time.monotonic(), [], ""
    try:
        for figure in check():
            figures.append(figure._asdict() | {"passed": bool(figure.value <= figure.bound)})  # NaN fails
    except Exception as problem:  # whatever it is, the other checks go on
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}".partition("\n")[0]
    passed = not error and bool(figures) and all(figure["passed"] for figure in figures)
    return {"passed": passed, "seconds": time.monotonic() - began, "figures": figures, "error": error}


def run_checks(checks: dict[str, Check], meanwhile: dict[str, Check], out: Path) -> None:
    """Run checks in turn. Those in `meanwhile`, whose work is done by other processes, run at the same time."""
    results: dict[str, Any] = dict.fromkeys([*checks, *meanwhile])

    def note(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        write_whole(out / "checks.json", json.dumps(results, indent=1).encode())
        state = "passed" if result["passed"] else "FAILED"
        sys.stdout.write(f"check {name}: {state} in {result['seconds']:.1f} s {result['error']}\n")
        sys.stdout.flush()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        beside = {name: pool.submit(run_check, check) for name, check in meanwhile.items()}
        for name, check in checks.items():
            note(name, run_check(check))
        for name, result in beside.items():
            note(name, result.result())


def main(arguments: list[str]) -> int:
    """Run all checks of a session; return 0 even if some fail."""
    session = load_session(Path(arguments[0]))
    device = choose_device(session.device)
    torch.backends.cudnn.allow_tf32 = False

    def resume() -> Iterator[Figure]:
        for name, value in killed_run(session, device_name(device)):
            yield Figure(name, value, 0)

    def chosen(checks: dict[str, Check]) -> dict[str, Check]:
        parts = session.checks or [""]
        return {name: check for name, check in checks.items() if any(part in name for part in parts)}

    run_checks(chosen(plan_checks(device)), chosen({"resume": resume}), session.out)
    return 0


if __name__ == "__main__":
    run_command(main)
