"""The mean of several networks: `python -m change average CHECKPOINT CHECKPOINT ... -o OUT`.

The mean of checkpoints that were fine-tuned from a common start often scores better than each of them. Runs with
different initial weights cannot be averaged.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", ICML 2022.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from change.common.errors import OneLineParser, UserError
from change.common.logs import start_logging

if TYPE_CHECKING:
    from change.checkpoint import Checkpoint

# What all networks must share: attributes of a checkpoint, and their names for users.
SHARED = {
    "config": "network",
    "mean": "normalisation",
    "std": "normalisation",
    "bands": "bands",
    "classes": "classes",
    "threshold": "threshold",
}

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Parse, load, write; return the exit code."""
    parser = OneLineParser(prog="python -m change average", description="Average the weights of several checkpoints.")
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", type=Path, nargs="+", help="two or more checkpoints of the same network"
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="file to write")
    given = parser.parse_args(arguments)
    if len(given.checkpoints) < 2:
        raise UserError(f"{given.checkpoints[0]} is the only checkpoint: give two or more")
    if given.out.exists():
        raise UserError(f"{given.out} already exists: choose another name, or remove it")
    from change.checkpoint import load_checkpoint  # here, because importing torch takes seconds

    start_logging()
    average([load_checkpoint(path) for path in given.checkpoints]).save(given.out)
    log.info("%s: the mean of %d checkpoints", given.out, len(given.checkpoints))
    return 0


def average(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Average the weights and running statistics of networks. Integer buffers, which only count steps, are taken from
    the last checkpoint.

    The lineage joins those of all checkpoints, that of the last one at the end. The resolution is the last one's.

    Raises:
        UserError: The networks differ in their configuration, normalisation, classes, threshold or the names of their
            weights.
    """
    last = checkpoints[-1]
    for other in checkpoints[:-1]:
        differing = [name for key, name in SHARED.items() if getattr(other, key) != getattr(last, key)]
        if other.weights.keys() != last.weights.keys():
            differing.append("names of the weights")
        if differing:
            raise UserError(f"{other.path} and {last.path} differ in their {differing[0]}: average runs of one network")
    weights = {}
    for name, tensor in last.weights.items():
        weights[name] = tensor
        if tensor.is_floating_point():
            total = tensor.double()
            for each in checkpoints[:-1]:
                total = total + each.weights[name]
            weights[name] = (total / len(checkpoints)).to(tensor.dtype)
    others = [record for each in checkpoints[:-1] for record in each.lineage if record not in last.lineage]
    lineage = [record for number, record in enumerate(others) if record not in others[:number]] + list(last.lineage)
    return replace(last, weights=weights, lineage=lineage, val_threshold=None)
