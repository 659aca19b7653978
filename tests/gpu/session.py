"""One session on a GPU: `python -m tests.benchmark --gpu-session MINUTES --out FOLDER --data FOLDER`.

Its parts are checks (tests/gpu/checks.py), the table (tests/gpu/table.py) and training (tests/gpu/pool.py). Each is a
process with a share of the minutes; what a part does not use goes to the next ones. A part that fails or is late is
killed and reported, and the next one starts. All files are written as the results come. The summary is printed last.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from change.change_dataloader import find_split
from change.common.devices import choose_device
from change.common.errors import OneLineParser, UserError
from change.common.files import make_folder, write_whole
from change.common.logs import versions
from tests.gpu.settings import CPU_GROUPS, GPU_GROUPS, PARTS, Session, read_group, read_runs

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = {"checks": "tests.gpu.checks", "table": "tests.gpu.table", "train": "tests.gpu.pool"}
SHARES = {"checks": 10.0, "table": 30.0, "train": 60.0}
GRACE = 5.0  # seconds that a part may be late
STOPPING = 25.0  # seconds that a part has to end if the session is told to stop
LONGEST_SUMMARY = 11500  # characters


def make_parser() -> OneLineParser:
    """Make the parser of the command line."""
    parser = OneLineParser(prog="python -m tests.benchmark", description="Checks, table and training on a GPU.")
    parser.add_argument("--gpu-session", type=float, required=True, metavar="MINUTES", help="length of the session")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results; it must be empty or new")
    parser.add_argument("--data", type=Path, help="data folder with train and val (default for the table: noise)")
    parser.add_argument("--runs", type=Path, help="TOML file of training runs (default: EfficientNet-Lite0, 8 seeds)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts in their order (default: all)")
    parser.add_argument(
        "--shares", nargs=3, type=float, default=list(SHARES.values()), help="percent per part (default: 10 30 60)"
    )
    parser.add_argument("--parallel", type=int, help="training processes at a time (default: 2 on a GPU, else 1)")
    parser.add_argument("--groups", nargs="+", help=f"groups of the table (default on a GPU: {' '.join(GPU_GROUPS)})")
    parser.add_argument("--checks", nargs="+", default=[], help="only checks whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant of the table (default: 5)")
    parser.add_argument("--eager", action="store_true", help="leave compiled variants out of the table")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or the number of a GPU (default: auto)")
    parser.add_argument("--scratch", type=Path, help="folder for files that are not kept (default: a temporary one)")
    return parser


def describe() -> str:
    """Return the usage of the command on one line."""
    return " ".join(make_parser().format_usage().removeprefix("usage: ").split())


def read_session(options: Any, scratch: Path) -> Session:
    """Check the options and make the session. Raises UserError for what would fail later."""
    on_gpu = choose_device(options.device).type == "cuda"
    groups = options.groups or (GPU_GROUPS if on_gpu else CPU_GROUPS)
    for name in groups:
        read_group(name)
    if options.gpu_session <= 0 or options.rounds < 1 or (options.parallel or 1) < 1 or min(options.shares) <= 0:
        raise UserError("--gpu-session, --rounds, --parallel and --shares: give numbers above 0")
    if options.out.is_dir() and any(options.out.iterdir()):
        raise UserError(f"--out {options.out} is not empty: choose a new folder")
    runs = []
    if "train" in options.parts:
        if options.data is None:
            raise UserError("--data is missing: the folder to train on, with train and val")
        for split in ("train", "val"):
            find_split(options.data, split)
        runs = read_runs(options.runs, options.data)
    data = scratch / "data"
    make_folder(data)
    if options.data:  # the cache of decoded images is then written to the scratch folder
        for path in options.data.resolve().iterdir():
            (data / path.name).symlink_to(path)
    return Session(
        out=options.out.resolve(),
        scratch=scratch,
        device=options.device,
        data=data,
        runs=runs,
        parallel=options.parallel or (2 if on_gpu else 1),
        groups=list(dict.fromkeys(groups)),
        rounds=options.rounds,
        compiled=on_gpu and not options.eager,
        checks=options.checks,
    )


# --- parts ---------------------------------------------------------------------------------------------------------


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(part: str, session: Session, seconds: float) -> str:
    """Run a part; it is told to end after `seconds`, and is killed a little later. Returns how it went."""
    began = time.monotonic()
    log = session.out / f"{part}.log.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", MODULES[part], str(session.out), str(began + seconds)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=file, cwd=REPOSITORY, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            process.terminate()  # training then saves what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
            raise
        finally:
            stop_group(process)
    took = f"{time.monotonic() - began:.0f} s of {seconds:.0f} s"
    if code == 0:
        return f"ended after {took}"
    if code is None:
        return f"KILLED at its deadline after {took}"
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return f"FAILED with code {code} after {took}: {lines[-1][:200]}"


def run_parts(parts: list[str], shares: dict[str, float], session: Session, deadline: float) -> Iterator[str]:
    """Run the parts in turn; yield a line about each."""
    for index, part in enumerate(parts):
        left = deadline - time.monotonic() - GRACE
        seconds = left * shares[part] / sum(shares[other] for other in parts[index:])
        if seconds < 1:
            yield f"{part}: not started, no time was left"
            continue
        sys.stdout.write(f"--- {part}, {seconds:.0f} s\n")
        sys.stdout.flush()
        yield f"{part}: {run_part(part, session, seconds)}"


# --- the summary ---------------------------------------------------------------------------------------------------


def check_lines(out: Path) -> Iterator[str]:
    """Yield a line per check: the figures that failed, or the three that are closest to their bounds."""
    if not (out / "checks.json").is_file():
        return
    for name, result in json.loads((out / "checks.json").read_text()).items():
        if result is None:
            yield f"{name}: NOT RUN"
            continue
        figures = result["figures"]
        closest = sorted(figures, key=lambda f: -f["value"] / (f["bound"] or 1))[:3]
        shown = [f for f in figures if not f["passed"]] or closest
        text = "; ".join(f"{f['name']} {f['value']:.2g} (bound {f['bound']:.2g})" for f in shown)
        yield f"{name}: {'passed' if result['passed'] else 'FAILED'}, {text[:400]} {result['error'][:200]}".rstrip()


def run_lines(out: Path) -> Iterator[str]:
    """Yield a line per training run."""
    if not (out / "runs.csv").is_file():
        return
    widths = (24, 8, 7, 8, 8, 12, 8, 8, 0)
    with (out / "runs.csv").open(newline="") as file:
        for row in csv.reader(file):
            yield "".join(f"{cell[:60]:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def make_summary(session: Session, states: list[str], began: float) -> str:
    """Return the summary: device, parts, checks, table and runs, from the files that are there."""
    out = session.out
    found, card = versions(), "CPU"
    with contextlib.suppress(RuntimeError, UserError):  # the device may have failed
        device = choose_device(session.device)
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else card
    table = (out / "table.txt").read_text().splitlines() if (out / "table.txt").is_file() else []
    lines = [
        f"=== SUMMARY: {card}, {os.cpu_count()} cores, torch {found['torch']}, code {found['code']}, "
        f"{time.monotonic() - began:.0f} s",
        *states,
        "--- checks",
        *check_lines(out),
        "--- table",
        *table,
        "--- training",
        *run_lines(out),
    ]
    text = "\n".join(lines) + "\n"
    write_whole(out / "summary.txt", text.encode())
    if len(text) > LONGEST_SUMMARY:
        text = re.sub(" {3,}", "  ", text)
    if len(text) > LONGEST_SUMMARY:
        half = LONGEST_SUMMARY // 2
        text = f"{text[:half]}\n[shortened: see summary.txt]\n{text[-half:]}"
    return text


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """End the session as Ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Run a session and print its summary; return 0 even if parts fail."""
    began = time.monotonic()
    options = make_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch, ignore_cleanup_errors=True) as scratch:
        session = read_session(options, Path(scratch).resolve())
        make_folder(session.out)
        session.save()
        signal.signal(signal.SIGTERM, raise_interrupt)
        states: list[str] = []
        shares = dict(zip(PARTS, options.shares, strict=True))
        try:
            parts = list(dict.fromkeys(options.parts))
            for state in run_parts(parts, shares, session, began + 60 * options.gpu_session):
                states.append(state)
                make_summary(session, states, began)
        except KeyboardInterrupt:
            states.append("the session was told to stop")
        sys.stdout.write(make_summary(session, states, began))
        sys.stdout.flush()
    return 0
