"""Make the page of an experiment's results: `python -m change leaderboard FOLDER > docs/leaderboard.md`.

The folder holds DATA/NETWORK_SEED.csv, one per run, which `python -m change experiment FILE.toml --results FOLDER`
writes. It may hold speed.csv too, which `python -m tests.benchmark_leaderboard` writes. The page depends on these files
only, so the same files always give the same page.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from change.common.errors import OneLineParser, UserError
from change.evaluation.bootstrap import Intervals, bootstrap_runs, pool, scores
from change.evaluation.compare import compare, find_units
from change.experiments.run_result import Facts, RunResult, read_result

SPEED = "speed.csv"
SPEED_COLUMNS = ("network", "parameters", "macs", "seconds", "machine")
Row = list[str]

# Facts that hold for all runs on a data set, or else get a column: their heading and their text.
SHARED: dict[str, Callable[[Facts], str]] = {
    "encoder": lambda facts: f"{facts.config['backbone']}, width {facts.config['width']}",
    "first weights": lambda facts: facts.pretrained,
    "recipe": lambda facts: facts.recipe,
    "crops": lambda facts: f"{facts.crops:,} of {facts.cropsize}",
    "device": lambda facts: f"{facts.device}, {facts.precision}",
}
# Facts that the seeds of a network share.
OF_A_NETWORK = ("split", "crops", "cropsize", "recipe", "pretrained", "config")

INTRODUCTION = """# Leaderboard

```bash
python -m change experiment change/experiments/{name}.toml --results docs/results/{name}
python -m tests.benchmark_leaderboard docs/results/{name}
python -m change leaderboard docs/results/{name} > docs/{name}.md
```

The last command makes this page. [Networks to compare with](networks.md#leaderboard) says how to add a network or a
data set. Every score is of the changed class, in percent, and the mean over the seeds. Intervals are 95% intervals over
groups of images and seeds. *Apart* is the F1 on images that are not train images and do not border one. *Boundary F1*
allows a distance of 2 pixels. Multiply-adds (MACs) are those of a pair of 256 x 256, seconds those of a pair of 1024 x
1024. Unknown values are left empty.
"""

PAIRS = """### Differences on {data}

F1 of the row minus F1 of the column, in points, with its 95% interval, as `python -m change compare` computes it.
Differences whose interval excludes 0 are bold. With three seeds such an interval contains the true difference in about
90 of 100 cases, with five in 93. So some of the {pairs} differences can be bold by chance.
"""


@dataclass(frozen=True)
class Entry:
    """A network on a data set: its runs, one per seed, and its scores, 0 to 1 or NaN."""

    network: str
    results: tuple[RunResult, ...]
    f1: float
    intervals: Intervals
    apart: float
    average_precision: float
    boundary_f1: float

    @property
    def facts(self) -> Facts:
        """The facts about the run of the first seed."""
        return self.results[0].facts


# --- read ----------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> dict[str, list[RunResult]]:
    """Read all results of an experiment, by data set. Raises UserError if there is none, or one is damaged."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: python -m change experiment FILE.toml --results {folder} writes it")
    found: dict[str, list[RunResult]] = {}
    for path in sorted(folder.glob("*/*.csv")):
        result = read_result(path)
        found.setdefault(result.facts.data, []).append(result)
    if not found:
        raise UserError(f"{folder} holds no DATA/NETWORK_SEED.csv: python -m change experiment --results writes them")
    return found


def read_speed(folder: Path) -> dict[str, dict[str, str]]:
    """Read speed.csv: its rows by network, none if it is missing. Raises UserError if it is damaged."""
    path = folder / SPEED
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    try:
        if tuple(reader.fieldnames or ()) != SPEED_COLUMNS:
            raise ValueError(f"the columns are not {', '.join(SPEED_COLUMNS)}")
        for row in rows:
            int(row["parameters"]), int(row["macs"]), float(row["seconds"] or 0)
            if row["machine"] is None:
                raise ValueError(f"the row of {row[SPEED_COLUMNS[0]]} is not complete")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}: python -m tests.benchmark_leaderboard writes it anew") from error
    return {row["network"]: row for row in rows}


def make_entries(results: Sequence[RunResult]) -> list[Entry]:
    """Score the networks on a data set, the best first. Raises UserError if their runs cannot be compared."""
    grouped, units = find_units([result.run for result in results])
    known = [result.apart for result in results if result.apart is not None]
    apart = known[0] if known and known[0].any() else np.zeros(len(grouped.images), np.bool_)
    by_network: dict[str, list[RunResult]] = {}
    for result in sorted(results, key=lambda each: each.facts.seed):
        by_network.setdefault(result.facts.network, []).append(result)
    entries = []
    for network, runs in by_network.items():
        for other in runs[1:]:
            check_same_training(runs[0], other)
        counts = np.stack([result.run.counts for result in runs])
        entries.append(
            Entry(
                network,
                tuple(runs),
                f1=float(scores(counts.sum(1))["f1"].mean()),
                intervals=bootstrap_runs(np.stack([pool(each, units) for each in counts])),
                apart=float(scores(counts[:, apart].sum(1))["f1"].mean()),
                average_precision=mean(result.facts.average_precision for result in runs),
                boundary_f1=mean(result.facts.boundary_f1 for result in runs),
            )
        )
    return sorted(entries, key=lambda entry: (math.isnan(entry.f1), -entry.f1, entry.network))


def check_same_training(result: RunResult, other: RunResult) -> None:
    """Raise UserError if two seeds of a network differ in more than their seed."""
    for name in OF_A_NETWORK:
        ours, theirs = getattr(result.facts, name), getattr(other.facts, name)
        if ours != theirs:
            raise UserError(
                f"{result.run.folder} and {other.run.folder} differ in {name} ({ours} and {theirs}): delete one, and "
                "run it again"
            )


def mean(values: Any) -> float:
    """Return the mean of values of which some may be None, which gives NaN."""
    every = [math.nan if value is None else value for value in values]
    return math.fsum(every) / len(every)


# --- the page ------------------------------------------------------------------------------------------------------


def make_page(folder: Path) -> str:
    """Return the page, in Markdown, for the folder of an experiment's results. Raises UserError if it is damaged."""
    results, speed = read_results(folder), read_speed(folder)
    parts = [INTRODUCTION.format(name=folder.resolve().name)]
    parts.append("".join(f"- [{data}](#{anchor(data)})\n" for data in results))
    for data, runs in results.items():
        entries = make_entries(runs)
        parts += [f"## {data}\n", describe_data(entries, speed), score_table(entries, speed)]
        if len(entries) > 1:
            parts += difference_parts(data, entries)
    return "\n".join(parts)


def describe_data(entries: Sequence[Entry], speed: Mapping[str, Mapping[str, str]]) -> str:
    """Return the sentences about a data set: its images, and what is the same for all networks."""
    every = [result for entry in entries for result in entry.results]
    first = every[0]
    grouped, units = find_units([result.run for result in every])
    kind = "groups of connected tiles" if any(grouped.groups) else "images, because there are no groups"
    known = [result.apart for result in every if result.apart is not None]
    apart = f", {known[0].sum()} of them apart from train" if known else ""
    lines = [f"Scored: {len(units)} images of {first.facts.split}{apart}. Intervals: {len(set(units))} {kind}."]
    same = [f"{name}: {show(first.facts)}" for name, show in SHARED.items() if not varies(entries, show)]
    lines.append(f"All networks share: {'; '.join(same)}." if same else "")
    codes = sorted({f"{result.facts.code} (torch {result.facts.torch})" for result in every})
    lines.append(f"Code: {', '.join(codes)}.")
    if machines := {speed[entry.network]["machine"] for entry in entries if entry.network in speed}:
        lines.append(f"Seconds: on {'; '.join(sorted(machines))}.")
    return "\n".join(line for line in lines if line) + "\n"


def varies(entries: Sequence[Entry], show: Callable[[Facts], str]) -> bool:
    """Return whether a fact differs between runs."""
    return len({show(result.facts) for entry in entries for result in entry.results}) > 1


def score_table(entries: Sequence[Entry], speed: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of the networks on a data set."""
    differing = {name: show for name, show in SHARED.items() if varies(entries, show)}
    heading = ["network", "seeds", "F1", "95% interval", "apart", "average precision", "boundary F1"]
    rows = [[*heading, "parameters, million", "MACs, billion", "seconds", *differing]]
    for entry in entries:
        low, high = entry.intervals.low["f1"], entry.intervals.high["f1"]
        interval = "" if math.isnan(low) else f"{percent(low)} to {percent(high)}"
        own = speed.get(entry.network, {})
        rows.append(
            [
                entry.network,
                ", ".join(str(result.facts.seed) for result in entry.results),
                percent(entry.f1),
                interval,
                *map(percent, (entry.apart, entry.average_precision, entry.boundary_f1)),
                f"{int(own['parameters']) / 1e6:.2f}" if own else "",
                f"{int(own['macs']) / 1e9:.2f}" if own else "",
                f"{float(own['seconds']):.2f}" if own.get("seconds") else "",
                *(" / ".join(dict.fromkeys(show(r.facts) for r in entry.results)) for show in differing.values()),
            ]
        )
    return table(rows)


def difference_parts(data: str, entries: Sequence[Entry]) -> list[str]:
    """Return the heading, the matrix of differences, and what limits them."""
    found: dict[tuple[str, str], str] = {}
    warnings: dict[str, None] = {}
    for better, worse in combinations(entries, 2):
        result = compare([r.run for r in worse.results], [r.run for r in better.results])
        found[better.network, worse.network] = difference_cell(result["scores"]["f1"])
        warnings |= dict.fromkeys(result["warnings"])
    names = [entry.network for entry in entries]
    rows = [["", *names[1:]]]
    rows += [[f"**{name}**", *(found.get((name, other), "") for other in names[1:])] for name in names[:-1]]
    text = PAIRS.format(data=data, pairs=len(found))
    return [text, table(rows), *(["".join(f"- {warning}\n" for warning in warnings)] if warnings else [])]


def difference_cell(score: Mapping[str, float | bool | None]) -> str:
    """Return a difference with its interval, in points; it is bold if it is significant, empty if undefined."""
    if score["difference"] is None:
        return ""
    text = f"{100 * score['difference']:+.2f}"
    if score["low"] is not None and score["high"] is not None:
        text += f" ({100 * score['low']:+.2f} to {100 * score['high']:+.2f})"
    return f"**{text}**" if score["significant"] else text


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table; the first row is its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def percent(value: float) -> str:
    """Return a score, 0 to 1, in percent; NaN gives an empty text."""
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change leaderboard`; return the exit code."""
    parser = OneLineParser(
        prog="python -m change leaderboard", description="Print the page of an experiment's results, in Markdown."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder that experiment --results wrote")
    sys.stdout.write(make_page(parser.parse_args(arguments).folder))
    return 0
