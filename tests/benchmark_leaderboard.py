"""Measure the networks of a leaderboard and write its speed.csv: `python -m tests.benchmark_leaderboard FOLDER`.

FOLDER holds the results of an experiment, see `change.experiments.leaderboard`. Parameters are those of prediction.
Multiply-adds are those of a pair of 256, before layers are merged. Seconds are the median time of a pair of 1024 in
float32, after they are merged; the networks take turns in one process.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from change.common.devices import hardware_name
from change.common.errors import OneLineParser, UserError, run_command
from change.common.files import write_whole
from change.experiments.leaderboard import SPEED, SPEED_COLUMNS, read_results
from change.prediction.folding import Fused
from models.config import NetworkConfig
from models.network import build_network
from tests.benchmark_networks import compare


def find_networks(folder: Path) -> dict[str, NetworkConfig]:
    """Return the networks of a leaderboard by name, without what only training uses.

    Raises UserError if a name stands for different networks.
    """
    found: dict[str, NetworkConfig] = {}
    for results in read_results(folder).values():
        for result in results:
            config = replace(NetworkConfig(**result.facts.config), refine=False)
            name = result.facts.network
            if found.setdefault(name, config) != config:
                raise UserError(f"{folder}: {name} is {found[name]} and {config}: give them different names")
    return found


def count_size(config: NetworkConfig, side: int = 256) -> tuple[int, int]:
    """Count the parameters, and the multiply-adds of a pair of images with sides of `side` pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config).eval()
    # Only this form of the attention consists of products that are counted on a CPU.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*torch.zeros(2, 1, 3, side, side))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


def main(arguments: list[str]) -> int:
    """Measure and write the file; return the exit code."""
    parser = OneLineParser(prog="python -m tests.benchmark_leaderboard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="results of an experiment")
    parser.add_argument("--size", type=int, default=1024, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each network (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: 2)")
    given = parser.parse_args(arguments)
    networks = find_networks(given.folder)
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        name: Fused(build_network(config)) for name, config in networks.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        seconds = compare(forms, size=given.size, rounds=given.rounds, clock=time.perf_counter)
    finally:
        torch.set_num_threads(threads)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPEED_COLUMNS)
    machine = hardware_name(torch.device("cpu"))
    for name, config in networks.items():
        writer.writerow((name, *count_size(config), f"{statistics.median(seconds[name]):.4f}", machine))
    write_whole(given.folder / SPEED, text.getvalue().encode())
    sys.stdout.write(text.getvalue())
    return 0


if __name__ == "__main__":
    run_command(main)
