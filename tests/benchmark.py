"""Speed and memory, side by side with the textbook: `python -m tests.benchmark`. One table, and a JSON on request.

Every variant runs in a process of its own; the processes take turns, so that a ratio compares neighbours in time. Given
are medians, and the lowest and highest ratio over the rounds. *Textbook* is the plain graph as the paper writes it
(`tests/textbook.py`): explicit attention matrices, a head of three layers, NCHW, eager, float32 or autocast; its loader
decodes the files of a pair with Pillow, crops, then jitters with torchvision, in one worker.

The floor
---------
Arithmetic, forward, ResNet-18 with X-Cross (1 multiply-add = 2): 12.7 GFLOP for a pair of 256, 53.9 for 512, 263.9 for
1024; a training step takes about three times that. Bytes, of a pair of 1024 in float32, every map written once and
read once: stem 134 MB at stride 2, 34 pooled; layer1 to layer4 five maps each of 34, 17, 8 and 4; X-Cross five each of
34, 17, 8 and 4; fusion four each of 17, 8, 4 and 2; logits 4: about 0.9 GB written, 1.9 GB with the reads. Nothing can
take less time than the larger of arithmetic / matrix rate and bytes / copy rate, both measured in the same run. At
160 GFLOP/s and 13 GB/s, two cores with AVX2, that is the arithmetic: 1.65 s against 0.14 s.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms.functional import pil_to_tensor

from change.change_dataloader import Split, find_split
from change.common.devices import choose_device, cpu_has_bf16
from change.common.errors import OneLineParser, UserError, run_command
from change.data.cache import DecodedCache
from change.data.loaders import TrainLoader, default_workers
from change.data.samples import TrainSamples
from change.data.transforms import ColorJitter
from change.evaluation.metrics import count_pixels, histogram
from change.prediction.compiling import Compiled
from change.prediction.folding import Fused
from change.training.precision import Precision
from models.losses import TrainingLoss
from models.network import NetworkConfig, PRXChange, build_network
from models.padding import normalise
from tests.textbook import textbook

GFLOP = {256: 12.7, 512: 53.9, 1024: 263.9}  # forward, one pair, with X-Cross; others by area and tokens, near enough
JITTER = (0.2, 0.2, 0.1, 0.1)
KEPT = 0.5  # share of activations kept in the lean form of a training step
AHEAD = 4  # batches that a loader may have made ready


def gflop(size: int) -> float:
    """Forward arithmetic of a pair: that of the parts that grow with the area, and attention with its square."""
    return GFLOP.get(size) or (size / 256) ** 2 * 12.5 + (size / 256) ** 4 * 0.25


@dataclass(frozen=True)
class Variant:
    """One way to do a piece of work. `kind`: infer, step, load, files or count; `form`: textbook or ours."""

    kind: str
    form: str
    size: int
    batch: int = 1
    amp: str = "off"
    compiled: bool = False
    cached: bool = False
    kept: float = 1.0
    device: str = "cpu"
    data: str = ""

    @property
    def name(self) -> str:
        """As the table shows it."""
        precise = self.kind in ("infer", "step", "files")
        parts = (
            self.form,
            ("float32" if self.amp == "off" else self.amp) if precise else "",
            "compiled" if self.compiled else "",
            f"keeps {self.kept}" if self.kept < 1 else "",
            "cache" if self.cached else "",
        )
        return " ".join(filter(None, parts))

    @property
    def work(self) -> str:
        """What is done, the same for variants that are compared."""
        return f"{self.kind} {self.size}" + (f" x {self.batch}" if self.batch > 1 else "")


# --- the work, in a process of its own -----------------------------------------------------------------------------


def make_network(refine: bool = False) -> PRXChange:
    """The same random weights in every process, with X-Cross."""
    torch.manual_seed(0)
    return build_network(NetworkConfig(cross=True, refine=refine))


def make_batch(variant: Variant, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Uint8 images (B, 3, S, S) and a mask (B, 1, S, S) of 0 and 1, the same in every process."""
    draw = torch.Generator().manual_seed(1)
    shape = (variant.batch, 3, variant.size, variant.size)
    before, after = (torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8) for _ in range(2))
    mask = (torch.rand(shape[0], 1, *shape[2:], generator=draw) > 0.95).to(torch.uint8)
    return before.to(device), after.to(device), mask.to(device)


def infer(variant: Variant, device: torch.device) -> Iterator[Callable[[], Any]]:
    """A pair of uint8 images on the device -> logits."""
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

    yield run


def make_step(variant: Variant, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A training step on uint8 images and a mask on the device: refine + cross."""
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


def step(variant: Variant, device: torch.device) -> Iterator[Callable[[], Any]]:
    """A training step on a batch that lies on the device."""
    do, batch = make_step(variant, device), make_batch(variant, device)
    yield lambda: do(*batch)


class TextbookSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Decode whole files with Pillow, crop, flip, jitter by torchvision; images float, normalised."""

    def __init__(self, split: Split, crop: int) -> None:
        self.split, self.crop = split, crop
        brightness, contrast, saturation, hue = JITTER
        self.jitter = TorchvisionJitter(brightness, contrast, saturation, hue)

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        pair, draw = self.split.pairs[index], np.random.default_rng(index)
        assert pair.mask is not None
        left, top = (int(draw.integers(side - self.crop + 1)) for side in pair.size)
        box = (left, top, left + self.crop, top + self.crop)
        before, after = (PIL.Image.open(path).convert("RGB").crop(box) for path in (pair.before, pair.after))
        mask = PIL.Image.open(pair.mask).convert("L").crop(box)
        flips = [
            f for f in (PIL.Image.Transpose.FLIP_LEFT_RIGHT, PIL.Image.Transpose.FLIP_TOP_BOTTOM) if draw.random() < 0.5
        ]
        for flip in flips:
            before, after, mask = (image.transpose(flip) for image in (before, after, mask))
        images = [normalise(pil_to_tensor(self.jitter(image))[None])[0] for image in (before, after)]
        return images[0], images[1], (pil_to_tensor(mask) > 127).to(torch.uint8)


def batches(variant: Variant, workers: int) -> Iterator[tuple[Tensor, ...]]:
    """Augmented batches of uint8 images and masks on the CPU, without end; textbook's images are normalised floats."""
    split, pin = find_split(Path(variant.data), "train"), variant.device.startswith("cuda")
    if variant.form == "textbook":
        samples = TextbookSamples(split, variant.size)
        loader = DataLoader(
            samples, variant.batch, shuffle=True, num_workers=1, drop_last=True, pin_memory=pin, persistent_workers=True
        )
        while True:
            yield from map(tuple, loader)
    ours = TrainSamples(split, variant.size, ColorJitter(*JITTER), 0)
    if variant.cached:
        ours.read = DecodedCache(split, Path(variant.data) / ".cache").read
    train = TrainLoader(ours, variant.batch, workers, pin)
    epoch = 1  # images are hashed in the first alone
    while True:
        for batch in train.epoch(epoch):
            if len(batch.names) == variant.batch:
                yield batch[:3]
        epoch += 1


def load(variant: Variant, device: torch.device) -> Iterator[Callable[[], Any]]:
    """A batch from files, to the CPU's memory, in one worker."""
    source = batches(variant, 1)
    yield lambda: next(source)


def files(variant: Variant, device: torch.device) -> Iterator[Callable[[], Any]]:
    """A training step on a batch from files: loader, transfer, step."""
    workers = max(1, default_workers() - (device.type == "cpu"))
    do, source = make_step(variant, device), batches(variant, workers)

    def run() -> Any:
        before, after, mask = (tensor.to(device, non_blocking=True) for tensor in next(source))
        return do(before, after, mask)

    yield run


def count(variant: Variant, device: torch.device) -> Iterator[Callable[[], Any]]:
    """From probabilities on the device to pixel counts; ours also to the curve over 1024 thresholds."""
    _, _, mask = make_batch(variant, device)
    probability = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)).to(device)

    def by_nonzero() -> list[int]:
        changed, truth = (probability > 0.5).cpu().numpy(), mask.cpu().numpy() > 0
        return [len(np.nonzero((changed == p) & (truth == t))[0]) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0))]

    def ours() -> list[Any]:
        return [count_pixels(probability > 0.5, mask > 0).tolist(), histogram(probability, mask > 0).sum(0).cpu()]

    yield by_nonzero if variant.form == "textbook" else ours


def memory_mark(device: torch.device) -> int:
    """Give back what is free, begin the peak anew; the bytes in use now."""
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
    """The most bytes in use since `memory_mark`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A figure of this process's memory on Linux; elsewhere the largest resident size so far."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


KINDS = {"infer": infer, "step": step, "load": load, "files": files, "count": count}


def serve(text: str) -> int:
    """Build a variant, say how its outcome looks and what memory it takes; then, at every line read, time some runs."""
    variant = Variant(**json.loads(text))
    device = choose_device(variant.device)

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    began = time.perf_counter()
    (run,) = KINDS[variant.kind](variant, device)
    outcome = run()
    finish()
    built = time.perf_counter() - began
    answer: dict[str, Any] = {"built": built}
    if variant.kind == "infer":
        answer["outcome"] = outcome.flatten()[:: max(1, outcome.numel() // 4096)].float().tolist()
    del outcome
    ahead = AHEAD if variant.kind in ("load", "files") else 1
    run()
    finish()
    mark = memory_mark(device)
    run()
    finish()
    answer["bytes"] = memory_peak(device) - mark
    if variant.kind == "step":
        answer["bytes"] -= sum(p.numel() * p.element_size() for p in make_network(refine=True).parameters())
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        seconds = []
        for _ in range(ahead):  # not counted: what loaders made ready in others' turns, threads and caches that slept
            run()
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            finish()
            seconds.append(time.perf_counter() - began)
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()
    return 0


# --- who takes turns ---------------------------------------------------------------------------------------------


class Worker:
    """A variant's process."""

    def __init__(self, variant: Variant, threads: int) -> None:
        self.variant = variant
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmark", "--serve", json.dumps(variant.__dict__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.seconds: list[float] = []  # the mean of each round
        self.built: dict[str, Any] = {}

    def read(self) -> Any:
        """A line of what it says. Raises UserError where it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of {self.variant.work}, {self.variant.name}, ended: see its message above")
        return json.loads(line)

    def round(self, calls: int) -> None:
        """Time some calls."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        self.seconds.append(statistics.fmean(self.read()))

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def rates(device: torch.device) -> dict[str, float]:
    """What the machine gives: matrix products in TFLOP/s by type, the best of several sizes; copies in GB/s."""

    def best(run: Callable[[], Any], tries: int = 7) -> float:
        found = []
        for _ in range(tries):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(time.perf_counter() - began)
        return min(found[1:])

    sides = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    types = {"float32": torch.float32}
    if device.type == "cuda" or cpu_has_bf16():
        types["bf16"] = torch.bfloat16
    if device.type == "cuda":
        types["fp16"] = torch.float16
    found = {}
    with torch.inference_mode():
        for name, dtype in types.items():
            squares = [torch.randn(n, n, device=device).to(dtype) for n in sides]
            products = (2 * len(x) ** 3 / best(functools.partial(torch.mm, x, x)) / 1e12 for x in squares)
            found[name] = max(products)
        # Convolutions reach more than products of matrices where their library is the better one.
        image, kernel = torch.randn(2, 128, 128, 128, device=device), torch.randn(128, 128, 3, 3, device=device)
        image, kernel = (x.to(memory_format=torch.channels_last) for x in (image, kernel))
        arithmetic = 2 * 2 * 128 * 128 * 9 * 128 * 128
        convolved = arithmetic / best(lambda: torch.conv2d(image, kernel, padding=1)) / 1e12
        found["float32"] = max(found["float32"], convolved)
        big = torch.randn(2**26, device=device)
        other = torch.empty_like(big)
        found["copy"] = 2 * big.numel() * 4 / best(lambda: other.copy_(big)) / 1e9
    return found


def compare(variants: list[Variant], rounds: int, calls: int, threads: int) -> list[dict[str, Any]]:
    """Rows of the table: variants of the same work, the first of which is the measure."""
    workers = [Worker(variant, threads) for variant in variants]
    try:
        for worker in workers:
            worker.built = worker.read()
        for _ in range(rounds):
            for worker in workers:
                worker.round(max(calls, 8) if worker.variant.kind == "load" else calls)
    finally:
        for worker in workers:
            worker.end()
    measure = workers[0]
    rows = []
    for worker in workers:
        ratios = [one / own for one, own in zip(measure.seconds, worker.seconds, strict=True)]
        row: dict[str, Any] = {
            "work": worker.variant.work,
            "variant": worker.variant.name,
            "seconds": statistics.median(worker.seconds),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "megabytes": worker.built["bytes"] / 1e6,
            "built": worker.built["built"],
        }
        if "outcome" in worker.built:
            one, own = (np.array(w.built["outcome"]) for w in (measure, worker))
            row["difference"] = float(np.abs(one - own).max() / np.abs(one).max())
        rows.append(row)
    return rows


def shown(row: dict[str, Any], variant: Variant, found: dict[str, float]) -> str:
    """A line of the table. Adds the share of the floor to the row."""
    passes = {"infer": 1, "step": 3}.get(variant.kind)
    rate = found.get("float32" if variant.amp == "off" else variant.amp)
    if passes and rate:
        row["TFLOP/s"] = passes * variant.batch * gflop(variant.size) / 1e3 / row["seconds"]
        row["of floor"] = row["TFLOP/s"] / rate
    share = f"{100 * row['of floor']:8.0f}%" if "of floor" in row else f"{'':>9}"
    difference = f"{row['difference']:11.1e}" if "difference" in row else f"{'':>11}"
    memory = f"{row['megabytes']:9.0f}" if variant.kind in ("infer", "step") else f"{'':>9}"
    spread = f"{row['ratio']:7.2f} ({row['lowest']:.2f}-{row['highest']:.2f})"
    return f"{row['work']:<16}{row['variant']:<30}{1e3 * row['seconds']:10.1f}{spread:>20}{share}{memory}{difference}"


def plan(options: argparse.Namespace, device: torch.device, data: str) -> list[list[Variant]]:
    """What is compared with what: the first of a group is the measure."""
    on_gpu = device.type == "cuda"
    half = "fp16" if on_gpu else "bf16"
    # What is fastest here: half precision where the hardware has it, compiled where that is worth its minutes.
    fast = half if on_gpu or cpu_has_bf16() else "off"
    compiled = on_gpu or options.compiled
    precisions = ("off", half) if fast == half or options.half else ("off",)

    def variants(kind: str, size: int, batch: int) -> list[Variant]:
        found = [Variant(kind, form, size, batch, amp) for form in ("textbook", "ours") for amp in precisions]
        best = Variant(kind, "ours", size, batch, precisions[-1], compiled=True)
        lean = [replace(best, kept=KEPT)] if kind == "step" else []
        return found + ([best, *lean] if compiled else [])

    groups = [variants("infer", size, 1) for size in options.sizes]
    groups += [variants("step", size, batch) for size, batch in options.steps]
    size, batch = options.steps[0]
    for kind, crop in (("load", options.load), ("files", size)):
        one = Variant(kind, "textbook", crop, batch, fast)
        ours = replace(one, form="ours", compiled=compiled and kind == "files")
        groups.append([one, ours, replace(ours, cached=True)])
    groups[-1].append(Variant("step", "ours", size, batch, fast, compiled=compiled))
    groups.append([Variant("count", form, max(options.sizes)) for form in ("textbook", "ours")])
    return [
        [replace(variant, device=str(device), data=data) for variant in group]
        for group in groups
        if not options.only or group[0].kind in options.only
    ]


def size_and_batch(text: str) -> tuple[int, int]:
    """512x8: crops of 512, 8 pairs a step."""
    try:
        size, batch = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no SIZExBATCH, as 512x8") from None
    return size, batch


def write_jpeg_pairs(folder: Path, size: int, number: int) -> None:
    """Pairs of noisy images in the layout of a data set, for where no real ones are named."""
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


def main(arguments: list[str]) -> int:
    """Measure everything, print the table."""
    parser = OneLineParser(prog="python -m tests.benchmark", description="Speed and memory beside the textbook.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="of pairs in prediction")
    parser.add_argument(
        "--steps", type=size_and_batch, nargs="+", help="crop and pairs; default 512x8 512x32 1024x8, on a CPU 256x4"
    )
    parser.add_argument("--load", type=int, default=512, help="crop of the loader alone")
    parser.add_argument("--data", default="", help="a data folder with train; default: noise, written for the run")
    parser.add_argument("--rounds", type=int, default=5, help="turns that every variant takes")
    parser.add_argument("--calls", type=int, help="calls a turn; default 10 on a GPU, 1 on a CPU")
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), help="kinds of work; default: all")
    parser.add_argument("--compiled", action="store_true", help="compiled forms on a CPU too: minutes for each")
    parser.add_argument("--half", action="store_true", help="bf16 on a CPU without matrix units for it too: very slow")
    parser.add_argument("--json", default="", help="write the rows there too")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.serve)
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    options.steps = options.steps or ([(512, 8), (512, 32), (1024, 8)] if on_gpu else [(256, 4)])
    options.calls = options.calls or (10 if on_gpu else 1)
    card = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    found = rates(device)
    rows = []
    sys.stdout.write(
        f"{card}, {os.cpu_count()} cores, torch {torch.__version__}, CPU {torch.backends.cpu.get_cpu_capability()}\n"
    )
    sys.stdout.write(
        ", ".join(f"{name} {value:.3g} {'GB' if name == 'copy' else 'TFLOP'}/s" for name, value in found.items()) + "\n"
    )
    sys.stdout.write(
        f"{'work':<16}{'variant':<30}{'ms':>10}{'ratio to first':>20}{'of floor':>9}{'peak MB':>9}{'difference':>11}\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        if not options.data and (not options.only or {"load", "files"} & set(options.only)):
            write_jpeg_pairs(Path(scratch), max(1024, options.load), 4 * options.steps[0][1])
        for group in plan(options, device, options.data or scratch):
            for row, variant in zip(
                compare(group, options.rounds, options.calls, default_workers()), group, strict=True
            ):
                sys.stdout.write(shown(row, variant, found) + "\n")
                sys.stdout.flush()
                rows.append(row)
    if options.json:
        text = json.dumps({"device": card, "torch": torch.__version__, "rates": found, "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
