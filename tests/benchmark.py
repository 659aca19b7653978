"""Speed and memory compared with the textbook: `python -m tests.benchmark` prints a table, and writes JSON on request.

Each variant runs in its own process. The processes take turns, so that each ratio compares runs close in time.
The table gives medians, and the lowest and highest ratio over the rounds. *Textbook* is the plain graph as the paper
describes it (`tests/textbook.py`): explicit attention matrices, a head of three layers, NCHW, eager, float32 or
autocast. Its loader decodes the files of a pair with Pillow, crops, then jitters with torchvision, in one worker.

The floor
---------
Arithmetic of the forward pass, ResNet-18 with X-Cross (a multiply-add counts as 2): 12.7 GFLOP for a pair of 256 pixels
a side, 53.9 for 512, 263.9 for 1024. A training step takes about three times that.

Memory traffic for a pair of 1024 in float32, if each feature map is written once and read once:

    stem                134 MB at stride 2, 34 MB pooled
    layer1 to layer4    five maps each, of 34, 17, 8 and 4 MB
    X-Cross             five maps each, of 34, 17, 8 and 4 MB
    fusion              four maps each, of 17, 8, 4 and 2 MB
    logits              4 MB

In total, about 0.9 GB are written, and 1.9 GB with the reads. The floor is the larger of arithmetic / matrix rate and
bytes / copy rate; both rates are measured in the same run. With 160 GFLOP/s and 13 GB/s, as on two cores with AVX2, it
is the arithmetic: 1.65 s against 0.14 s.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from change.common.devices import choose_device
from change.common.errors import OneLineParser, run_command
from change.data.loaders import default_workers
from change.evaluation.metrics import count_pixels, histogram
from change.prediction.compiling import Compiled
from change.prediction.folding import Fused
from change.training.precision import Precision
from models.config import NetworkConfig
from models.losses import TrainingLoss
from models.network import PRXChange, build_network
from models.padding import normalise
from tests.benchmark_loaders import batches
from tests.benchmark_rounds import (
    HEADER,
    Variant,
    add_share_of_floor,
    compare,
    format_row,
    measure_rates,
    plan_groups,
)
from tests.gpu.session import describe as describe_gpu_session
from tests.gpu.session import main as run_gpu_session
from tests.textbook import textbook

AHEAD = 4  # batches that a loader may have ready


def make_network(refine: bool = False) -> PRXChange:
    """Build the network with X-Cross, with the same random weights in every process."""
    torch.manual_seed(0)
    return build_network(NetworkConfig(cross=True, refine=refine))


def make_batch(variant: Variant, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw uint8 images (B, 3, S, S) and a mask (B, 1, S, S) of 0 and 1, the same in every process."""
    draw = torch.Generator().manual_seed(1)
    shape = (variant.batch, 3, variant.size, variant.size)
    before, after = (torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8) for _ in range(2))
    mask = (torch.rand(shape[0], 1, *shape[2:], generator=draw) > 0.95).to(torch.uint8)
    return before.to(device), after.to(device), mask.to(device)


def infer(variant: Variant, device: torch.device) -> Callable[[], Any]:
    """Compute logits from a pair of uint8 images on the device."""
    precision = Precision(variant.amp, device)
    network = make_network().eval().to(device)
    if variant.form == "textbook":
        forward: Callable[..., Tensor] = textbook(network)
        context: Callable[[], contextlib.AbstractContextManager[Any]] = precision.autocast
    else:
        fused = Fused(network, precision.dtype or torch.float32)
        forward = Compiled(fused) if variant.compiled else fused
        context = contextlib.nullcontext
    before, after, _ = make_batch(variant, device)

    def run() -> Tensor:
        with torch.inference_mode(), context():
            logits: Tensor = forward(normalise(before), normalise(after))
        return logits

    return run


def make_step(variant: Variant, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make a function that does a training step, with refinement, on uint8 images and a mask on the device."""
    precision = Precision(variant.amp, device)
    network = make_network(refine=True).to(device)
    ours = variant.form == "ours"
    network = network.to(memory_format=torch.channels_last) if ours else textbook(network)
    loss = TrainingLoss(network)
    forward = Compiled(loss, variant.kept) if variant.compiled else loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, eps=1e-3, weight_decay=2e-3, fused=ours)

    def step(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
        torch.manual_seed(0)
        with precision.autocast():
            losses, _ = forward(normalise(before), normalise(after), mask.float())
        torch.autograd.backward(precision.scaler.scale(losses.total))
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        total: Tensor = losses.total.detach()
        return total

    return step


def step(variant: Variant, device: torch.device) -> Callable[[], Any]:
    """Do a training step on a batch that is already on the device."""
    train, batch = make_step(variant, device), make_batch(variant, device)
    return lambda: train(*batch)


def load(variant: Variant, device: torch.device) -> Callable[[], Any]:
    """Load a batch from files into memory, in one worker."""
    source = batches(variant, 1)
    return lambda: next(source)


def files(variant: Variant, device: torch.device) -> Callable[[], Any]:
    """Do a training step on a batch from files: loader, transfer, step."""
    workers = max(1, default_workers() - (device.type == "cpu"))
    train, source = make_step(variant, device), batches(variant, workers)

    def run() -> Any:
        before, after, mask = (tensor.to(device, non_blocking=True) for tensor in next(source))
        return train(before, after, mask)

    return run


def count(variant: Variant, device: torch.device) -> Callable[[], Any]:
    """Count pixels from probabilities on the device; ours also gives the curve over 1024 thresholds."""
    _, _, mask = make_batch(variant, device)
    probability = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)).to(device)

    def by_nonzero() -> list[int]:
        changed, truth = (probability > 0.5).cpu().numpy(), mask.cpu().numpy() > 0
        return [len(np.nonzero((changed == p) & (truth == t))[0]) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0))]

    def ours() -> list[Any]:
        return [count_pixels(probability > 0.5, mask > 0).tolist(), histogram(probability, mask > 0).sum(0).cpu()]

    return by_nonzero if variant.form == "textbook" else ours


def memory_mark(device: torch.device) -> int:
    """Free what can be freed, reset the peak, and return the bytes in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def memory_peak(device: torch.device) -> int:
    """Return the most bytes that were in use since `memory_mark`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """Return a memory figure of this process on Linux; elsewhere the largest resident size so far."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


KINDS = {"infer": infer, "step": step, "load": load, "files": files, "count": count}


class Served:
    """A variant that is ready to run in this process.

    Attributes:
        answer: seconds to build it and of a call, bytes that a call needs, and for predictions a sample of the outcome.
    """

    def __init__(self, variant: Variant, device: torch.device) -> None:
        """Build the variant, run it three times, and measure the memory and the time of the last run."""
        self.variant, self.device = variant, device
        began = time.perf_counter()
        self.run = KINDS[variant.kind](variant, device)
        outcome = self.call()
        self.answer: dict[str, Any] = {"built": time.perf_counter() - began}
        if variant.kind == "infer":
            self.answer["outcome"] = outcome.flatten()[:: max(1, outcome.numel() // 4096)].float().tolist()
        del outcome
        self.call()
        mark = memory_mark(device)
        began = time.perf_counter()
        self.call()
        self.answer["seconds"] = time.perf_counter() - began
        self.answer["bytes"] = memory_peak(device) - mark
        if variant.kind == "step":  # the gradients exist with every network that trains
            parameters = make_network(refine=True).parameters()
            self.answer["bytes"] -= sum(p.numel() * p.element_size() for p in parameters)

    def call(self) -> Any:
        """Run once, and wait for the device."""
        outcome = self.run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return outcome

    def turn(self, calls: int) -> list[float]:
        """Return the seconds of each of `calls` runs."""
        # Not timed: batches that loaders had ready are used up, and idle threads and caches warm up.
        for _ in range(AHEAD if self.variant.kind in ("load", "files") else 1):
            self.call()
        seconds = []
        for _ in range(calls):
            began = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - began)
        return seconds


def serve(text: str) -> int:
    """Build a variant and write a line with its answer. Then time as many runs as each input line says."""
    variant = Variant(**json.loads(text))
    served = Served(variant, choose_device(variant.device))
    sys.stdout.write(json.dumps(served.answer) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(served.turn(int(line))) + "\n")
        sys.stdout.flush()
    return 0


def size_and_batch(text: str) -> tuple[int, int]:
    """Read "512x8": crops of 512 pixels, 8 pairs per step. Raises argparse's error for anything else."""
    try:
        size, batch = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIZExBATCH: give for example 512x8") from None
    return size, batch


def write_jpeg_pairs(folder: Path, size: int, number: int) -> None:
    """Write pairs of noisy images in the layout of a data set, for runs without real ones."""
    draw = np.random.default_rng(0)
    for sub in ("A", "B", "label"):
        (folder / "train" / sub).mkdir(parents=True)
    for index in range(number):
        for sub in ("A", "B"):
            coarse = draw.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
            smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.int16)
            noisy = (smooth + draw.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
            PIL.Image.fromarray(noisy).save(folder / "train" / sub / f"{index}.jpg", quality=92, subsampling=0)
        mask = (draw.random((size // 32, size // 32)) > 0.9).repeat(32, 0).repeat(32, 1)
        PIL.Image.fromarray(mask).save(folder / "train" / "label" / f"{index}.png")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        prog="python -m tests.benchmark",
        description="Measure speed and memory in comparison with the textbook.",
        epilog=f"A session on a GPU, described in docs/speed.md: {describe_gpu_session()}",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or the number of a GPU (default: auto)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[256, 512, 1024],
        help="sides of the pairs for prediction, in pixels (default: 256 512 1024)",
    )
    parser.add_argument(
        "--steps",
        type=size_and_batch,
        nargs="+",
        help="crop and pairs per training step (default: 512x8 512x32 1024x8; on a CPU 256x4)",
    )
    parser.add_argument("--load", type=int, default=512, help="crop for the loader by itself, in pixels (default: 512)")
    parser.add_argument(
        "--data", default="", help="data folder with a train split (default: noise, written for the run)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (default: 5)")
    parser.add_argument("--calls", type=int, help="calls per turn (default: 10 on a GPU, 1 on a CPU)")
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), help="kinds of work (default: all)")
    parser.add_argument(
        "--compiled", action="store_true", help="also compile on a CPU, which takes minutes per variant"
    )
    parser.add_argument(
        "--half", action="store_true", help="also run bf16 on a CPU without hardware for it, which is very slow"
    )
    parser.add_argument("--json", default="", help="file to write the rows to, as JSON")
    parser.add_argument("--gpu-session", metavar="MINUTES", help="check, measure and train on a GPU; see below")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str]) -> int:
    """Measure everything and print the table; return the exit code."""
    if any(argument.partition("=")[0] == "--gpu-session" for argument in arguments):
        return run_gpu_session(arguments)
    options = make_parser().parse_args(arguments)
    if options.serve:
        return serve(options.serve)
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    options.steps = options.steps or ([(512, 8), (512, 32), (1024, 8)] if on_gpu else [(256, 4)])
    options.calls = options.calls or (10 if on_gpu else 1)
    card = platform.processor() or platform.machine()
    if on_gpu:
        card = torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    rates = measure_rates(device)
    shown_rates = [f"{name} {value:.3g} {'GB' if name == 'copy' else 'TFLOP'}/s" for name, value in rates.items()]
    rows = []
    sys.stdout.write(f"{card}, {os.cpu_count()} cores, torch {torch.__version__}, CPU {capability}\n")
    sys.stdout.write(", ".join(shown_rates) + "\n")
    sys.stdout.write(HEADER + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        if not options.data and (not options.only or {"load", "files"} & set(options.only)):
            write_jpeg_pairs(Path(scratch), max(1024, options.load), 4 * options.steps[0][1])
        for group in plan_groups(options, device, options.data or scratch):
            found = compare(group, rounds=options.rounds, calls=options.calls, threads=default_workers())
            for row, variant in zip(found, group, strict=True):
                add_share_of_floor(row, variant, rates)
                sys.stdout.write(format_row(row, variant) + "\n")
                sys.stdout.flush()
                rows.append(row)
    if options.json:
        text = json.dumps({"device": card, "torch": torch.__version__, "rates": rates, "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
