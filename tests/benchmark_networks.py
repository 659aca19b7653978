"""Time prediction by a network against ResNet-18 with X-Cross: `python -m tests.benchmark_networks --backbone NAME`.

Both networks are rebuilt for prediction and take turns in one process. The table gives the median time, and the
median, lowest and highest ratio over the rounds.

The floor of EfficientNet-Lite0, width 32, for a pair of 1024
--------------------------------------------------------------
Arithmetic, and memory traffic in float32 if each convolution reads its input once and writes its output once:

    pointwise convolutions      27.6 GFLOP   1.20 GB
    depthwise convolutions       2.9 GFLOP   1.02 GB
    stem                         0.9 GFLOP   0.09 GB
    decoder                      6.0 GFLOP   0.13 GB
    X-Cross, patch 8 (or 4)      7.2 GFLOP   0.07 GB (37.0 GFLOP, 0.14 GB)

In total 44.6 GFLOP and 2.5 GB with patch 8, against 259 GFLOP and 1.5 GB of ResNet-18 with X-Cross. The floor is the
larger of arithmetic / matrix rate and bytes / copy rate. With 175 GFLOP/s and 11.4 GB/s, as measured once on one core
with AVX-512, these are 0.25 s and 0.22 s, nearly equal: pointwise layers wait for the processor, depthwise layers for
the memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from change.common.devices import cpu_has_bf16
from change.common.errors import OneLineParser, run_command
from change.prediction.compiling import Compiled
from change.prediction.folding import Fused
from models.config import PATCHES, NetworkConfig
from models.decoder import FusionStage
from models.network import build_network
from models.xcross import CrossAttention
from tests.benchmark_rounds import measure_rates

REFERENCE = NetworkConfig(cross=True)


def count_work(config: NetworkConfig, size: int) -> tuple[float, float]:
    """Count the arithmetic and the memory traffic of a prediction.

    Args:
        config: the network.
        size: side of both images in pixels, a multiple of 32.

    Returns:
        GFLOP (a multiply-add counts as 2), and GB in float32 if each layer reads and writes its maps once.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)  # so that the same weights are 0 by chance at every size
        network = Fused(build_network(config), portable=True)
    work: Counter[str] = Counter()

    def add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, CrossAttention):
            images, tokens, channels = inputs[0].shape
            work["flop"] += 4 * images * tokens**2 * channels
            return
        if isinstance(module, FusionStage):  # its product over three maps, which calls no layer
            cells, channels = out[:, 0].numel(), module.out_channels
            work["flop"] += 2 * cells * 3 * channels**2
            work["bytes"] += 4 * cells * 4 * channels
            return
        work["bytes"] += 4 * (inputs[0].numel() + out.numel())
        if isinstance(module, nn.ConvTranspose2d):
            work["flop"] += 2 * inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            positions = out.numel() // len(module.weight)
            work["flop"] += 2 * positions * int((module.weight != 0).sum())  # not the zeros that fix the padding

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MaxPool2d, CrossAttention, FusionStage)):
            module.register_forward_hook(add)
    with torch.inference_mode():
        network(*torch.zeros(2, 1, 3, size, size))
    return work["flop"] / 1e9, work["bytes"] / 1e9


def compare(
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]], *, size: int, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time forms of networks in turns on one pair of noise. Returns the seconds of each call of each form."""
    pair = torch.randn(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for count in range(-2, rounds):  # two rounds to compile and to warm up
            for name, form in forms.items():
                began = clock()
                form(*pair)
                if count >= 0:
                    seconds[name].append(clock() - began)
    return seconds


def make_forms(config: NetworkConfig, options: argparse.Namespace) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Build the forms of a network that are to be measured, by name: the number format, and eager or compiled."""
    torch.manual_seed(0)
    network = build_network(config)
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        if dtype == torch.float32 or cpu_has_bf16():
            forms[name] = Fused(network, dtype)
            if options.compiled:
                forms[f"{name} compiled"] = Compiled(Fused(network, dtype))
    return forms


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(prog="python -m tests.benchmark_networks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="efficientnet_lite0", help="encoder (default: efficientnet_lite0)")
    parser.add_argument("--width", type=int, default=0, help="channels at stride 4 (default: the encoder's own)")
    parser.add_argument("--no-cross", action="store_true", help="leave out X-Cross")
    parser.add_argument("--patch", type=int, default=4, choices=PATCHES, help="patches of X-Cross (default: 4)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides of the pairs in pixels")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each form (default: 9)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads")
    parser.add_argument("--compiled", action="store_true", help="also compile, which takes a minute per form and size")
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure processor time, which other programs hardly change; one thread"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Measure and print the table; return the exit code."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(1 if options.cpu_time else options.threads)
    config = NetworkConfig(
        options.backbone,
        cross=not options.no_cross,
        width=options.width,
        patch=4 if options.no_cross else options.patch,
    )
    clock = time.process_time if options.cpu_time else time.perf_counter
    rates = measure_rates(torch.device("cpu"), clock)
    sys.stdout.write(", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) + " (TFLOP/s; copy in GB/s)\n")
    ours, theirs = make_forms(config, options), make_forms(REFERENCE, options)
    for size in options.sizes:
        gflop, gigabytes = count_work(config, size)
        sys.stdout.write(f"{size}: {gflop:.1f} GFLOP, {gigabytes:.2f} GB in float32\n")
        for name, form in ours.items():
            found = compare({"reference": theirs[name], "ours": form}, size=size, rounds=options.rounds, clock=clock)
            ratios = [own / other for own, other in zip(found["ours"], found["reference"], strict=True)]
            median, half = statistics.median(found["ours"]), name.startswith("bf16")
            rate = rates["bf16" if half else "float32"] * 1e3
            floor = max(gflop / rate, gigabytes / (2 if half else 1) / rates["copy"])
            sys.stdout.write(
                f"  {name:<18}{1e3 * median:8.0f} ms (least {1e3 * min(found['ours']):.0f}), ratio "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), of minima "
                f"{min(found['ours']) / min(found['reference']):.2f}, of floor {100 * floor / median:.0f}%\n"
            )
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    run_command(main)
