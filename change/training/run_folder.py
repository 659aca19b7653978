"""What a training run leaves in its folder, beside the weights.

    NAME.pth            the best weights             NAME_epochN.pth   snapshots
    NAME.state.pth      all that --continue_run needs
    NAME.options.json   options and versions
    NAME.epochs.jsonl   one line an epoch
    metrics.txt         every validation of every run in the folder
    log.txt             what was said
    tensorboard/NAME/   curves and pictures

NAME is --best_name, so the passes of one experiment can share a folder.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from change.checkpoint import read_tensors
from change.common.errors import UserError, listed
from change.common.files import make_folder, write_whole
from change.common.logs import versions
from change.evaluation.metrics import SCORES
from change.options import TrainOptions

log = logging.getLogger(__name__)

STATE_FORMAT = "prx-change-run/1"
STATE = ("options", "data", "weights", "optimizer", "precision_name", "precision", "progress", "lineage", "images")


class LogFile(logging.FileHandler):
    """A file handler that lets a full disk end the run, where logging's own would go on with a traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called inside the `except` of a failed write: let it through."""
        raise


def find_state(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """The name and the saved state of the run in a folder. Raises UserError where there is none, or several."""
    states = sorted(folder.glob("*.state.pth"))
    names = [path.name.removesuffix(".state.pth") for path in states]
    if not names:
        raise UserError(f"--continue_run {folder}: no run's state (*.state.pth) lies there")
    if name and name not in names:
        raise UserError(f"--continue_run {folder}: no run {name} there, but {listed(names)}")
    if not name and len(names) > 1:
        raise UserError(f"--continue_run {folder}: runs {listed(names)} lie there; add --best_name to choose one")
    name = name or names[0]
    state = read_tensors(folder / f"{name}.state.pth")
    missing = [key for key in STATE if key not in state]
    if state.get("format") != STATE_FORMAT or missing:
        raise UserError(
            f"{folder / name}.state.pth is no state that this version can go on from "
            f"(format {state.get('format')!r}, without {listed(missing) or 'nothing'}): use the version that wrote it"
        )
    return name, state


class Run:
    """The files of one run. Made when all else is known to be right, for it is what touches the disk first."""

    def __init__(
        self,
        folder: Path,
        name: str,
        kept: logging.handlers.MemoryHandler,
        from_epoch: int = 0,
        writes: bool = True,
    ) -> None:
        """`from_epoch` above 0: the run goes on, what it wrote of later epochs is dropped.

        `writes`: False in all processes but one, for which nothing here touches the disk.
        """
        self.folder, self.name, self.writes = folder, name, writes
        self.best_path = folder / f"{name}.pth"
        self.state_path = folder / f"{name}.state.pth"
        self.epochs_path = folder / f"{name}.epochs.jsonl"
        self.board: SummaryWriter | None = None
        logging.getLogger().removeHandler(kept)
        if not writes:
            return
        make_folder(folder)
        file = LogFile(folder / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        kept.setTarget(file)
        kept.flush()
        logging.getLogger().addHandler(file)
        for left in folder.glob(f".{name}.*.part"):  # by a kill in the middle of a write
            left.unlink()
        self.epochs = [row for row in read_rows(self.epochs_path) if row["epoch"] <= from_epoch]

    @staticmethod
    def refuse_existing(folder: Path, name: str) -> None:
        """Raise UserError where a new run would overwrite another one."""
        there = [path.name for path in (folder / f"{name}.pth", folder / f"{name}.state.pth") if path.exists()]
        if there:
            raise UserError(
                f"{folder} holds a run named {name} ({listed(there)}): "
                f"go on with it by --continue_run {folder}, or choose another --save_path or --best_name"
            )

    def open_board(self, options: TrainOptions, step: int) -> None:
        """Write the options; open TensorBoard, where steps after `step` of an interrupted run are dropped."""
        if not self.writes:
            return
        text = json.dumps({"options": asdict(options), "versions": versions()}, indent=1)
        write_whole(self.folder / f"{self.name}.options.json", text.encode())
        self.board = SummaryWriter(str(self.folder / "tensorboard" / self.name), purge_step=step + 1)
        if step == 0:
            self.board.add_text("options", f"```\n{text}\n```", 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points to TensorBoard's curves."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def pictures(self, panels: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        """Add panels (H, W, 3) to TensorBoard."""
        if self.board is not None:
            for name, picture in panels.items():
                self.board.add_image(f"val/{name}", picture, step, dataformats="HWC")

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Write an epoch's line, and metrics.txt anew if it was validated."""
        if not self.writes:
            return
        self.epochs.append(row)
        write_whole(self.epochs_path, "".join(json.dumps(row) + "\n" for row in self.epochs).encode())
        if "val" in row:
            lines = [f"{'run':<8}{'epoch':>6}" + "".join(f"{name:>11}" for name in SCORES)]
            for path in sorted(self.folder.glob("*.epochs.jsonl")):
                for epoch in (row for row in read_rows(path) if "val" in row):
                    scores = (math.nan if epoch["val"][name] is None else epoch["val"][name] for name in SCORES)
                    run = path.name.removesuffix(".epochs.jsonl")
                    lines.append(f"{run:<8}{epoch['epoch']:>6}" + "".join(f"{score:>11.4f}" for score in scores))
            write_whole(self.folder / "metrics.txt", ("\n".join(lines) + "\n").encode())
        assert self.board is not None
        self.board.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
