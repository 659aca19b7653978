"""Fine-tune a checkpoint on labelled pairs: `python -m change finetune DATA`.

It trains one pass and writes best.pth to the folder of the run. After an interruption, run the same command again to
continue. Options that are not given on the command line come from a TOML file, by default finetune.toml.

If DATA has no val split, pairs of train are set aside, and their names are written to the lists split/train.txt and
split/val.txt in the folder of the run.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from change.change_dataloader import AFTER, BEFORE, LABEL, SUFFIXES
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import PACKAGE, home_folder, make_folder, shipped_file, write_whole
from change.common.names import files_by_stem, read_list
from change.data.splitting import split_off_val
from change.experiments.programs import find_program, program_command, run, verb_command
from change.experiments.settings import Options, Value, build, parse_options, read_toml, refuse_own

BEST = "best"  # --best_name of the run
DEFAULT = PACKAGE / "experiments" / "finetune.toml"

# Options of train.py that fine-tuning sets itself, and what to use instead.
OWN = {
    "root": "DATA names the data set",
    "best_name": f"it is always {BEST}",
    "resume": "fine-tuning always starts from weights: choose them with checkpoint_path",
    "continue_run": "a run that has begun in the folder that save_path names is continued",
}


@dataclass(frozen=True)
class FineTuning:
    """The settings of a fine-tuning. Paths are relative to the repository."""

    start: str  # checkpoint to start from
    train: Options  # options of train.py
    save_path: str = ""  # folder of the run; default: results/finetuned/NAME of the data set
    crops: int = 0  # crops to train on, rounded up to whole epochs, if epoch is not given
    val: float = 0.2  # share of the pairs that is set aside if the data has no val split
    pack: bool = False  # whether to write packed.pth beside best.pth
    one_process: Options = field(default_factory=dict)  # more options of train.py if it runs in one process

    def __post_init__(self) -> None:
        if not self.start:
            raise UserError("start is empty: name a checkpoint")
        if self.crops < 0:
            raise UserError(f"crops {self.crops}: choose 1 or more, or leave it out and set epoch in [train]")
        if not 0 < self.val < 1:
            raise UserError(f"val {self.val}: choose a share above 0 and below 1")
        if bool(self.crops) == ("epoch" in self.train):
            raise UserError("choose either crops or epoch in [train]")
        elsewhere = {"checkpoint_path": "use start", "save_path": "set it outside of [train]"}
        for options in (self.train, self.one_process):
            refuse_own(options, {**OWN, **elsewhere})

    def train_options(self, data: Path, given: Mapping[str, Value], nproc: str) -> Options:
        """Return the options of train.py for a run. Options in `given` override those of the settings.

        A continued run is given its options again, because train.py compares them with those in the saved state. Only
        those of `options_of_a_new_run` are left out.

        Raises:
            UserError: If the checkpoint that comes with the program is missing.
        """
        folder = self.folder(data, given)
        has_begun = (folder / f"{BEST}.state.pth").is_file()
        options: Options = {"root": str(data), **self.train}
        if not has_begun:
            options |= self.options_of_a_new_run(data, given, nproc)
        options |= {**given, "best_name": BEST}
        if "epoch" in options and "warmup" in self.train and "warmup" not in given:
            options["warmup"] = min(int(self.train["warmup"]), int(options["epoch"]) - 1)  # must be less than epoch
        options.pop("save_path", None)
        if has_begun:
            return {**options, "continue_run": str(folder)}
        return {**options, "save_path": str(folder)}

    def options_of_a_new_run(self, data: Path, given: Mapping[str, Value], nproc: str) -> Options:
        """Return the options of the start, and those that depend on the pairs and on the number of processes."""
        options: Options = {"resume": True}
        if nproc == "1":
            options |= self.one_process
        if self.crops and "epoch" not in given:
            pairs = count_pairs(data, str(given.get("list", "")))
            epochs = math.ceil(self.crops / pairs) if pairs else 1
            options |= {"epoch": epochs, "val_epoch": math.ceil(epochs / 3)}
        start = given.get("checkpoint_path") or shipped_file(self.start)
        options["checkpoint_path"] = str(start)
        if "cross" not in {**options, **self.train, **given} and has_cross(Path(str(start))):
            options["cross"] = True
        return options

    def folder(self, data: Path, given: Mapping[str, Value]) -> Path:
        """Return the folder of the run."""
        if "save_path" in given:
            return Path(str(given["save_path"]))
        if self.save_path:
            return home_folder() / self.save_path
        name = data.name if data.name not in ("", "..") else data.resolve().name
        return home_folder() / "results" / "finetuned" / name


def has_cross(path: Path) -> bool:
    """Return whether the network of a checkpoint has X-Cross, False if it cannot be read; train.py reports why."""
    from change.checkpoint import load_checkpoint  # imports torch, which takes seconds

    try:
        return load_checkpoint(path).config.cross
    except UserError:
        return False


def count_pairs(data: Path, lists: str) -> int:
    """Count the pairs that train.py will train on. Returns 0 if they are faulty; train.py reports why.

    Args:
        data: Data set with train/A, or with A and list/train.txt.
        lists: Folder of train.txt, or "".
    """
    before = data / "train" / "A"
    try:
        if before.is_dir() and not lists:
            return len(files_by_stem(before, SUFFIXES))
        folder = before if before.is_dir() else data / "A"
        stems = files_by_stem(folder, SUFFIXES) if folder.is_dir() else {}
        return len(read_list(Path(lists or data / "list") / "train.txt", SUFFIXES, stems))
    except UserError:
        return 0


def folder_without_val(data: Path, lists: str) -> Path | None:
    """Return the folder of A, B and label whose pairs must be split, or None if there is a val split.

    Args:
        data: The data set.
        lists: The folder of lists on the command line, or "".
    """
    if lists or (data / "val").is_dir() or (data / "list").is_dir():
        return None
    return next((folder for folder in (data / "train", data) if (folder / BEFORE).is_dir()), None)


def set_pairs_aside(folder: Path, lists: Path, share: float) -> str:
    """Write train.txt and val.txt for the pairs in `folder`, unless they exist; return what was done, in words.

    Raises UserError if a pair lacks a file, or as `split_off_val` does.
    """
    files = {sub: files_by_stem(folder / sub, SUFFIXES) for sub in (BEFORE, AFTER, LABEL) if (folder / sub).is_dir()}
    if (lists / "val.txt").is_file():
        listed = {
            name for split in ("train", "val") for name in read_list(lists / f"{split}.txt", SUFFIXES, files[BEFORE])
        }
        others = [name for name in files[BEFORE] if name not in listed]
        left_out = f"; left out, because neither list names them: {list_names(others)}" if others else ""
        return f"The lists of an earlier call are used: {lists / 'val.txt'}{left_out}"
    lacking = [f"{sub}/{name}" for sub in (AFTER, LABEL) for name in files[BEFORE] if name not in files.get(sub, {})]
    if lacking:
        raise UserError(f"{folder}: no file for {list_names(lacking)}: every pair needs a file in A, B and label")
    complete = [("train", name, {sub: files[sub][name] for sub in files}) for name in files[BEFORE]]
    parts = split_off_val(complete, share)
    make_folder(lists)
    for name, names in (("train", parts.train), ("val", parts.val)):  # val last: if it exists, both do
        write_whole(lists / f"{name}.txt", "".join(f"{stem}\n" for stem in names).encode())
    return f"{parts.summary}; listed in {lists / 'val.txt'}"


def build_parser() -> OneLineParser:
    """Return the parser of the options that are not options of train.py."""
    parser = OneLineParser(
        prog="python -m change finetune",
        description="Fine-tune a checkpoint on labelled pairs. Any option of train.py can be added.",
        allow_abbrev=False,
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of A, B and label, or of train and val")
    parser.add_argument("--settings", metavar="FILE", type=Path, default=DEFAULT, help="TOML file with other values")
    parser.add_argument("--nproc", default="1", help="training processes, or gpu: one for each GPU (default: 1)")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the commands instead of running them; the lists of a new val split are still written",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change finetune`; return the exit code."""
    parsed, rest = build_parser().parse_known_args(list(arguments))
    tuning = build(FineTuning, read_toml(parsed.settings), str(parsed.settings))
    given = parse_options(rest)
    refuse_own(given, OWN)
    find_program("train.py")  # before anything is written
    data, folder = parsed.data, tuning.folder(parsed.data, given)
    whole = folder_without_val(data, str(given.get("list", "")))
    if whole:
        data, given = whole, {**given, "list": str(folder / "split")}
        sys.stderr.write(f"{parsed.data} has no val split. {set_pairs_aside(whole, folder / 'split', tuning.val)}\n")
    options = tuning.train_options(data, {"save_path": str(folder), **given}, parsed.nproc)
    if code := run(program_command("train.py", options, parsed.nproc), parsed.dry_run):
        return code
    weights = folder / f"{BEST}.pth"
    if tuning.pack:
        packed = folder / "packed.pth"
        if not parsed.dry_run:
            packed.unlink(missing_ok=True)
        if code := run(verb_command("pack", weights, packed), parsed.dry_run):
            return code
        weights = packed
    if not parsed.dry_run:
        command = shlex.join(["python", "-m", "change", "predict", "--checkpoint_path", str(weights)])
        sys.stderr.write(f"to use the weights: {command} BEFORE AFTER -o OUT\n")
    return 0
