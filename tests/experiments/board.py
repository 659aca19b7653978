"""Made-up results of an experiment: small CSVs as `experiment --results` writes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.experiments.run_result import COLUMNS

CONFIG = {"backbone": "efficientnet_lite0", "cross": False, "refine": False, "model": "prx", "within": False}
FACTS: dict[str, Any] = {
    "split": "val",
    "crops": 12960,
    "cropsize": 256,
    "recipe": "scratch",
    "pretrained": "imagenet",
    "config": {**CONFIG, "width": 32, "patch": 4},
    "device": "cpu",
    "precision": "bf16",
    "seconds": 61.5,
    "code": "1234567",
    "torch": "2.9.0",
    "average_precision": 0.5,
    "boundary_f1": 0.25,
    "protocol": {"name": "full", "threshold": 0.5, "device": "cpu"},
    "fingerprint": "f",
    "trained_on": [],
}


def draw_counts(recall: float, seed: int, images: int = 80) -> NDArray[np.int64]:
    """Draw counts of images of 4096 pixels; the number of changed pixels does not depend on recall and seed."""
    true = np.random.default_rng(99).integers(50, 400, images)
    rng = np.random.default_rng(seed)
    tp, fp = rng.binomial(true, recall), rng.integers(0, 60, images)
    return np.stack((tp, fp, true - tp, 4096 - true - fp), axis=1)


def write_board_run(
    folder: Path, data: str, network: str, seed: int, counts: NDArray[np.int64], grouped: bool = True, **facts: Any
) -> Path:
    """Write one CSV. Two images make a group, and every fourth image meets train; `facts` replace those of FACTS."""
    path = folder / data / f"{network}_{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {json.dumps({'data': data, 'network': network, 'seed': seed, **FACTS, **facts})}\n")
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, row in enumerate(counts.tolist()):
            writer.writerow((f"tile_{i:03}", *((i // 2, i % 4 == 0) if grouped else ("", "")), *row))
    return path
