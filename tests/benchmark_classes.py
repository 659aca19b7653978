"""Do all three passes learn classes? `python -m tests.benchmark_classes OUT` trains on drawn pairs and prints scores.

OUT gets the data and the run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from change.checkpoint import load_checkpoint
from change.common.errors import OneLineParser
from change.evaluation.table import percent
from tests.class_pairs import write_class_set
from tests.conftest import REPOSITORY, surroundings, train_arguments

# The options of all passes, and those of each.
SHARED: dict[str, object] = {
    "recipe": "scratch",
    "width": 32,
    "cropsize": 32,
    "train_batchsize": 8,
    "warmup": 0,
    "scale": "1 1",
    "color_setting": "0 0 0 0",
    "ema": 0.95,
    "swap": True,
    "val_epoch": 5,
}
PASSES: dict[str, dict[str, object]] = {
    "1": {"epoch": 40},
    "2": {"epoch": 10, "refine": True},
    "3": {"epoch": 10, "refine": True, "cross": True},
}


def main(arguments: list[str]) -> int:
    """Draw 64 train and 16 val pairs of 64 x 64 pixels, train three passes, and print the mean F1 of each on val."""
    parser = OneLineParser(prog="python -m tests.benchmark_classes", description="Train three passes on drawn classes.")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder for the data and the run")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the training (default: 0)")
    given = parser.parse_args(arguments)
    out: Path = given.out
    data = write_class_set(out / "data", 64, 16)
    for name, own in PASSES.items():
        start = {"resume": True, "checkpoint_path": out / f"{int(name) - 1}.pth"} if name != "1" else {}
        options = train_arguments(data, out, **SHARED, **own, **start, best_name=name, seed=given.seed)
        began = time.perf_counter()
        command = [sys.executable, str(REPOSITORY / "train.py"), *options]
        subprocess.run(command, check=True, env=surroundings(), stderr=subprocess.DEVNULL)
        scores = load_checkpoint(out / f"{name}.pth").lineage[-1].scores
        values = f"F1 of any change {percent(scores['f1'])}, mean F1 of classes {percent(scores['mean_f1'])}"
        sys.stdout.write(f"pass {name}: {values}, {time.perf_counter() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
