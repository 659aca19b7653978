"""The rounds of the benchmark: variants, their processes that take turns, and the rows of the table."""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from change.common.devices import cpu_has_bf16
from change.common.errors import UserError

GFLOP = {256: 12.7, 512: 53.9, 1024: 263.9}  # forward pass of one pair, with X-Cross
KEPT = 0.5  # share of activations that the compiled training step with less memory keeps
HEADER = f"{'work':<16}{'variant':<30}{'ms':>10}{'ratio to first':>20}{'of floor':>9}{'peak MB':>9}{'difference':>11}"


def gflop(size: int) -> float:
    """Return the GFLOP of the forward pass of a pair of images with sides of `size` pixels.

    Sizes that are not in `GFLOP` are estimated: most parts grow with the area, attention with its square.
    """
    if size in GFLOP:
        return GFLOP[size]
    return (size / 256) ** 2 * 12.5 + (size / 256) ** 4 * 0.25


@dataclass(frozen=True)
class Variant:
    """One way to do a piece of work.

    Attributes:
        kind: infer, step, load, files or count.
        form: textbook or ours.
        size: side of the images or crops in pixels.
        batch: number of pairs per call.
        amp: off (float32), bf16 or fp16.
        compiled: whether torch.compile is used.
        cached: whether the cache of decoded images is used.
        on_device: whether batches are made on the device from pairs in its memory.
        kept: share of the activations that are kept for the backward pass.
        device: name of the device in torch.
        data: data folder with a train split.
    """

    kind: str
    form: str
    size: int
    batch: int = 1
    amp: str = "off"
    compiled: bool = False
    cached: bool = False
    on_device: bool = False
    kept: float = 1.0
    device: str = "cpu"
    data: str = ""

    @property
    def name(self) -> str:
        """The name in the table."""
        parts = [self.form]
        if self.kind in ("infer", "step", "files"):
            parts.append("float32" if self.amp == "off" else self.amp)
        if self.compiled:
            parts.append("compiled")
        if self.kept < 1:
            parts.append(f"keeps {self.kept}")
        if self.cached:
            parts.append("cache")
        if self.on_device:
            parts.append("on device")
        return " ".join(parts)

    @property
    def work(self) -> str:
        """The piece of work, which is the same for variants that are compared."""
        return f"{self.kind} {self.size}" + (f" x {self.batch}" if self.batch > 1 else "")


class Worker:
    """The process of a variant."""

    def __init__(self, variant: Variant, threads: int) -> None:
        self.variant = variant
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmark", "--serve", json.dumps(variant.__dict__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.seconds: list[float] = []  # per call, the mean of each round
        self.answer: dict[str, Any] = {}  # the first line that it writes: outcome, memory and time to build

    def read(self) -> Any:
        """Read a line that the process writes. Raises UserError if it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of {self.variant.work}, {self.variant.name}, ended: see its message above")
        return json.loads(line)

    def round(self, calls: int) -> None:
        """Time one round of `calls` calls."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        self.seconds.append(statistics.fmean(self.read()))

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def measure_rates(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Measure the machine with a clock that gives seconds.

    Returns:
        TFLOP/s of matrix products by type ("float32", "bf16", "fp16"), the best of several sizes, and GB/s of copies
        ("copy").
    """

    def best(run: Callable[[], Any], tries: int = 7) -> float:
        found = []
        for _ in range(tries):
            began = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(clock() - began)
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
        # Convolutions can be faster than matrix products, because another library computes them.
        image, kernel = torch.randn(2, 128, 128, 128, device=device), torch.randn(128, 128, 3, 3, device=device)
        image, kernel = (x.to(memory_format=torch.channels_last) for x in (image, kernel))
        arithmetic = 2 * 2 * 128 * 128 * 9 * 128 * 128
        convolved = arithmetic / best(lambda: torch.conv2d(image, kernel, padding=1)) / 1e12
        found["float32"] = max(found["float32"], convolved)
        big = torch.randn(2**26, device=device)
        other = torch.empty_like(big)
        found["copy"] = 2 * big.numel() * 4 / best(lambda: other.copy_(big)) / 1e9
    return found


def compare(variants: list[Variant], *, rounds: int, calls: int, threads: int) -> list[dict[str, Any]]:
    """Time variants of the same work in turns.

    Args:
        variants: the first one is the reference.
        rounds: number of turns of each variant.
        calls: number of timed calls per turn; loaders make at least 8.
        threads: number of threads of each process.

    Returns:
        One row of the table per variant.
    """
    workers = [Worker(variant, threads) for variant in variants]
    try:
        for worker in workers:
            worker.answer = worker.read()
        for _ in range(rounds):
            for worker in workers:
                worker.round(max(calls, 8) if worker.variant.kind == "load" else calls)
    finally:
        for worker in workers:
            worker.end()
    reference = workers[0]
    rows = []
    for worker in workers:
        ratios = [one / own for one, own in zip(reference.seconds, worker.seconds, strict=True)]
        row: dict[str, Any] = {
            "work": worker.variant.work,
            "variant": worker.variant.name,
            "seconds": statistics.median(worker.seconds),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "megabytes": worker.answer["bytes"] / 1e6,
            "built": worker.answer["built"],
        }
        if "outcome" in worker.answer:
            one, own = (np.array(w.answer["outcome"]) for w in (reference, worker))
            row["difference"] = float(np.abs(one - own).max() / np.abs(one).max())
        rows.append(row)
    return rows


def add_share_of_floor(row: dict[str, Any], variant: Variant, rates: dict[str, float]) -> None:
    """Add the TFLOP/s of a variant to its row, and their share of what the machine reaches."""
    passes = {"infer": 1, "step": 3}.get(variant.kind)
    rate = rates.get("float32" if variant.amp == "off" else variant.amp)
    if passes and rate:
        row["TFLOP/s"] = passes * variant.batch * gflop(variant.size) / 1e3 / row["seconds"]
        row["of floor"] = row["TFLOP/s"] / rate


def format_row(row: dict[str, Any], variant: Variant) -> str:
    """Format a row as a line of the table."""
    share = f"{100 * row['of floor']:8.0f}%" if "of floor" in row else f"{'':>9}"
    difference = f"{row['difference']:11.1e}" if "difference" in row else f"{'':>11}"
    memory = f"{row['megabytes']:9.0f}" if variant.kind in ("infer", "step") else f"{'':>9}"
    spread = f"{row['ratio']:7.2f} ({row['lowest']:.2f}-{row['highest']:.2f})"
    return f"{row['work']:<16}{row['variant']:<30}{1e3 * row['seconds']:10.1f}{spread:>20}{share}{memory}{difference}"


def plan_groups(options: argparse.Namespace, device: torch.device, data: str) -> list[list[Variant]]:
    """Choose the groups of variants to compare; the first of each is the reference."""
    on_gpu = device.type == "cuda"
    half = "fp16" if on_gpu else "bf16"
    # The fastest form: half precision if the hardware has it, compiled if that is worth its minutes.
    fast = half if on_gpu or cpu_has_bf16() else "off"
    compiled = on_gpu or options.compiled
    precisions = ("off", half) if fast == half or options.half else ("off",)

    def variants(kind: str, size: int, batch: int) -> list[Variant]:
        found = [
            Variant(kind=kind, form=form, size=size, batch=batch, amp=amp)
            for form in ("textbook", "ours")
            for amp in precisions
        ]
        if compiled:
            best = replace(found[-1], compiled=True)
            found.append(best)
            if kind == "step":
                found.append(replace(best, kept=KEPT))
        return found

    groups = [variants("infer", size, 1) for size in options.sizes]
    groups += [variants("step", size, batch) for size, batch in options.steps]
    size, batch = options.steps[0]
    for kind, crop in (("load", options.load), ("files", size)):
        textbook = Variant(kind=kind, form="textbook", size=crop, batch=batch, amp=fast)
        ours = replace(textbook, form="ours", compiled=compiled and kind == "files")
        groups.append([textbook, ours, replace(ours, cached=True), replace(ours, on_device=True, compiled=compiled)])
    groups[-1].append(Variant(kind="step", form="ours", size=size, batch=batch, amp=fast, compiled=compiled))
    groups.append([Variant(kind="count", form=form, size=max(options.sizes)) for form in ("textbook", "ours")])
    return [
        [replace(variant, device=str(device), data=data) for variant in group]
        for group in groups
        if not options.only or group[0].kind in options.only
    ]
