"""The folder of a training run.

    NAME.pth            the best weights             NAME_epochN.pth   snapshots
    NAME.state.pth      everything that --continue_run needs, see change/training/run_state.py
    NAME.options.json   options and versions
    NAME.epochs.jsonl   one line per epoch
    metrics.txt         every validation of every run in the folder, in percent
    log.txt             the log
    tensorboard/NAME/   curves and pictures

NAME is --best_name, so the passes of one experiment can share a folder. The trainer writes the *.pth files, this module
the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from change.common import distributed
from change.common.errors import UserError, list_names
from change.common.files import make_folder, write_whole
from change.common.locks import hold_folder
from change.common.logs import versions
from change.evaluation.metrics import SCORES
from change.evaluation.table import percent
from change.training.run_state import read_state


class LogFile(logging.FileHandler):
    """A log file whose failed writes end the run; the handler of `logging` would print a traceback per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Re-raise the error of a failed write: `logging` calls this in an `except` clause."""
        raise


@contextlib.contextmanager
def hold_run(given: Mapping[str, Any]) -> Iterator[None]:
    """Keep other processes from writing to the folder that the options on the command line name.

    Call it before the folder is read. Raises UserError if another run writes there. A missing option, or a missing
    folder of a run that is to be continued, is reported later.
    """
    continued = given.get("continue_run")
    folder = continued or given.get("save_path")
    with contextlib.ExitStack() as stack:
        if folder and distributed.rank() == 0 and (not continued or Path(folder).is_dir()):
            stack.enter_context(hold_folder(Path(folder), "--save_path"))
        distributed.wait()  # the others write nothing, but they must not go on without the first
        yield


def find_run(folder: Path, name: str) -> str:
    """Find the run to continue in a folder and return its name; an empty `name` stands for the only run.

    Raises UserError if there is no such run, and for an empty `name` if there are several.
    """
    names = [path.name.removesuffix(".state.pth") for path in sorted(folder.glob("*.state.pth"))]
    if not names:
        raise UserError(f"--continue_run {folder}: there is no run to continue (*.state.pth)")
    if name and name not in names:
        raise UserError(f"--continue_run {folder}: there is no run {name}; choose from {list_names(names)}")
    if not name and len(names) > 1:
        raise UserError(
            f"--continue_run {folder}: there are several runs, {list_names(names)}; choose one with --best_name"
        )
    return name or names[0]


def refuse_existing(folder: Path, name: str) -> None:
    """Raise UserError if a new run would overwrite another one.

    The state of a run that ended before its first step was saved, such as one with a damaged image, is no obstacle.
    """
    found = [path.name for path in (folder / f"{name}.pth", folder / f"{name}.state.pth") if path.exists()]
    if found and not has_only_begun(folder, name):
        raise UserError(
            f"{folder} holds a run named {name} ({list_names(found)}): continue it with --continue_run {folder}, or "
            "choose another --save_path or --best_name"
        )


def has_only_begun(folder: Path, name: str) -> bool:
    """Return whether a run has left nothing but the state that it wrote before its first step."""
    state = folder / f"{name}.state.pth"
    if (folder / f"{name}.pth").exists() or not state.exists():
        return False
    try:
        return read_state(state).progress.steps == 0
    except UserError:
        return False


class Run:
    """The files of one run. It is created after everything else has been checked, because it writes to the disk."""

    def __init__(
        self,
        folder: Path,
        name: str,
        kept: logging.handlers.MemoryHandler,
        from_epoch: int = 0,
        writes: bool = True,
    ) -> None:
        """Open the folder and its log.

        Args:
            folder: the folder of the run, made if it does not exist.
            name: the name of the run.
            kept: the log so far, as returned by `start_logging`.
            from_epoch: epochs done; lines about later ones, from before an interruption, are dropped.
            writes: whether this process writes; all but one never touch the disk.
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
        file = LogFile(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        kept.setTarget(file)
        kept.flush()
        logging.getLogger().addHandler(file)
        for leftover in folder.glob(f".{name}.*.part"):  # from a process that was killed while it wrote
            leftover.unlink()
        self.epochs = [row for row in read_rows(self.epochs_path) if row["epoch"] <= from_epoch]

    def open_board(self, options: Mapping[str, Any], step: int) -> None:
        """Write the options and open TensorBoard; curves after `step`, from before an interruption, are dropped."""
        if not self.writes:
            return
        text = json.dumps({"options": dict(options), "versions": versions()}, indent=1)
        write_whole(self.folder / f"{self.name}.options.json", text.encode())
        self.board = SummaryWriter(str(self.folder / "tensorboard" / self.name), purge_step=step + 1)
        if step == 0:
            self.board.add_text("options", f"```\n{text}\n```", 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points to the curves of TensorBoard."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Add a text in Markdown to TensorBoard."""
        if self.board is not None:
            self.board.add_text(name, text, step)

    def pictures(self, panels: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        """Add panels (H, W, 3) to TensorBoard."""
        if self.board is not None:
            for name, picture in panels.items():
                self.board.add_image(f"val/{name}", picture, step, dataformats="HWC")

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Write the line of an epoch, and metrics.txt if it was validated."""
        if not self.writes:
            return
        self.epochs.append(row)
        write_whole(self.epochs_path, "".join(json.dumps(row) + "\n" for row in self.epochs).encode())
        if "val" in row:
            write_whole(self.folder / "metrics.txt", metrics_table(self.folder).encode())
        assert self.board is not None
        self.board.flush()


def metrics_table(folder: Path) -> str:
    """Return the text of metrics.txt: the scores of every validation of every run in a folder, in percent."""
    lines = [f"{'run':<8}{'epoch':>6}" + "".join(f"{name:>11}" for name in SCORES)]
    for path in sorted(folder.glob("*.epochs.jsonl")):
        run = path.name.removesuffix(".epochs.jsonl")
        for row in read_rows(path):
            if "val" in row:
                scores = [percent(row["val"][name]) for name in SCORES]
                lines.append(f"{run:<8}{row['epoch']:>6}" + "".join(f"{score:>11}" for score in scores))
    return "\n".join(lines) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines. A missing file gives an empty list."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
