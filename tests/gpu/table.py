"""The table of the GPU session: `python -m tests.gpu.table OUT DEADLINE`, started by tests/gpu/session.py.

It measures the variants of tests/benchmark.py in groups, the most informative first. Unlike there, a process serves one
variant after the other, so that Python, torch and the device start once. The processes of compiled variants all compile
at the start, before anything is timed. In each group the variants take turns. A variant that fails, e.g. by running
out of memory, gets a row with its error. OUT/table.json and OUT/table.txt are written after every group.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from change.common.devices import choose_device
from change.common.errors import UserError, run_command
from change.common.files import write_whole
from change.data.loaders import default_workers
from change.training.precision import Precision, algorithms
from tests.benchmark import Served, memory_mark, write_jpeg_pairs
from tests.benchmark_rounds import HEADER, Variant, add_share_of_floor, format_row, measure_rates
from tests.gpu.settings import Session, device_name, load_session, read_group

REPOSITORY = Path(__file__).resolve().parents[2]
TURN = 0.3  # seconds that a turn should take
MOST_CALLS = {"infer": 30, "step": 30, "files": 8}  # per turn
TOGETHER = 2**22  # pixels of a batch up to which the variants of a group are built at the same time
COMPILED = ("step256x32", "files256x32", "infer1024", "infer256", "step512x8")  # groups with a compiled variant
COMPILE_SHARE = 0.4  # of the seconds, for the variants that are compiled
GROUP_SHARE = 0.25  # of the seconds, for a group that hangs


# --- the processes that serve variants -----------------------------------------------------------------------------


def free(device: torch.device) -> None:
    """Give memory that is not in use back to the device, for the other processes."""
    memory_mark(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def serve() -> int:
    """Answer each line of the input: build a variant, or time a number of calls."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served: Served | None = None
    contexts = contextlib.ExitStack()
    device = torch.device("cpu")
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any
        try:
            if isinstance(order, dict):
                served = None
                contexts.close()  # restores the settings of torch
                torch._dynamo.reset()
                variant = Variant(**order)
                device = choose_device(variant.device)
                free(device)
                if variant.form == "ours" and variant.kind != "infer":  # as in train.py
                    contexts.enter_context(algorithms(False, Precision(variant.amp, device)))
                served = Served(variant, device)
                answer = served.answer
            else:
                assert served is not None
                answer = {"turn": served.turn(order)}
        except Exception as problem:
            traceback.print_exc()
            answer = {"error": f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]}
        free(device)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


class Server:
    """A process that serves variants."""

    def __init__(self, log: Path, threads: int) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "4", **os.environ}
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.table", "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=REPOSITORY,
                env=environment,
            )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Collect the answers, and an error once the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(json.dumps({"error": f"its process ended with code {self.process.wait()}"}))

    def order(self, what: dict[str, Any] | int) -> None:
        """Send a variant, or a number of calls; `answer` waits for the result."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()

    def answer(self, deadline: float) -> dict[str, Any]:
        """Wait for the answer until the deadline, by time.monotonic; the process is ended if it is late.

        Raises UserError if the answer is late or an error.
        """
        try:
            found: dict[str, Any] = json.loads(self.lines.get(timeout=max(0.01, deadline - time.monotonic())))
        except queue.Empty:
            self.end()
            raise UserError("not ready in time") from None
        if "error" in found:
            raise UserError(found["error"])
        return found

    def usable(self) -> bool:
        """Return whether the process can take another order."""
        return self.process.poll() is None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


# --- groups --------------------------------------------------------------------------------------------------------


def make_group(name: str, session: Session, device: torch.device, data: str) -> list[Variant]:
    """Return the variants of a group, the reference first."""
    kind, size, batch = read_group(name)
    on_gpu = device.type == "cuda"
    half, training = ("fp16", "bf16") if on_gpu else ("off", "off")
    base = Variant(kind=kind, form="textbook", size=size, batch=batch, device=device_name(device), data=data)
    ours = replace(base, form="ours")
    if kind == "files":
        ours = replace(ours, amp=training)
        found = [replace(base, amp=half), ours, replace(ours, cached=True), replace(ours, on_device=True)]
        if session.compiled and name in COMPILED:
            found.append(replace(ours, on_device=True, compiled=True))
        return [*found, replace(ours, kind="step")]
    found = [base, replace(base, amp=half), ours, replace(ours, amp=half)]
    if kind == "step" and on_gpu:
        found.append(replace(ours, amp=training))
    if session.compiled and name in COMPILED:
        found.append(replace(ours, amp=training if kind == "step" else half, compiled=True))
    return list(dict.fromkeys(found))


class Table:
    """The rows so far, the servers, and the deadline, by time.monotonic."""

    def __init__(self, session: Session, device: torch.device, deadline: float, data: str) -> None:
        self.session, self.device, self.deadline = session, device, deadline
        self.group_deadline = deadline
        self.rates = measure_rates(device)
        self.rows: list[dict[str, Any]] = []
        self.lines = [HEADER + f"{'TFLOP/s':>9}{'built s':>9}"]
        self.skipped: list[str] = []
        self.groups = {name: make_group(name, session, device, data) for name in session.groups}
        self.eager: list[Server] = []
        self.compiled: dict[Variant, Server] = {}

    def new_server(self) -> Server:
        """Start a process."""
        return Server(self.session.out / "table_servers.log.txt", default_workers())

    def measure(self) -> None:
        """Measure the groups in turn until the time is up; a group that is not likely to fit is skipped."""
        began = time.monotonic()
        costs: list[float] = []
        compiled = [variant for group in self.groups.values() for variant in group if variant.compiled]
        self.compiled = {variant: self.new_server() for variant in compiled}
        self.start_servers(next(iter(self.groups.values())))
        for variant, server in self.compiled.items():
            server.order(asdict(variant))
        compile_until = began + COMPILE_SHARE * (self.deadline - began)
        while time.monotonic() < compile_until and any(server.lines.empty() for server in self.compiled.values()):
            time.sleep(0.1)
        share = max(GROUP_SHARE, 1 / len(self.groups))
        for name, group in self.groups.items():
            start = time.monotonic()
            if costs and start + min(costs) > self.deadline:
                self.skipped.append(name)
            else:
                self.group_deadline = min(self.deadline, start + share * (self.deadline - began))
                self.measure_group(group)
                costs.append(time.monotonic() - start)
            self.save()

    def start_servers(self, group: list[Variant]) -> None:
        """Start the processes that the eager variants of a group need, and replace those that have ended."""
        for index in range(sum(not variant.compiled for variant in group)):
            if index == len(self.eager):
                self.eager.append(self.new_server())
            elif not self.eager[index].usable():
                self.eager[index] = self.new_server()

    def ready(self, server: Server, deadline: float) -> dict[str, Any]:
        """Return the answer of a server that builds a variant; after an error, the error."""
        try:
            return server.answer(deadline)
        except UserError as error:
            return {"error": str(error)}

    def build(self, group: list[Variant]) -> dict[Variant, dict[str, Any]]:
        """Build the eager variants of a group, and return the answers of all; large ones are built in turn."""
        answers = {v: self.ready(self.compiled[v], self.group_deadline) for v in group if v.compiled}
        eager = [variant for variant in group if not variant.compiled]
        together = max(v.size**2 * v.batch for v in group) <= TOGETHER
        self.start_servers(group)
        for index, variant in enumerate(eager):
            self.eager[index].order(asdict(variant))
            if not together:
                answers[variant] = self.ready(self.eager[index], self.group_deadline)
        if together:
            answers |= {v: self.ready(self.eager[index], self.group_deadline) for index, v in enumerate(eager)}
        return answers

    def measure_group(self, group: list[Variant]) -> None:
        """Time the variants of a group in turns, and add their rows."""
        answers = self.build(group)
        eager = [variant for variant in group if not variant.compiled]
        servers = {**self.compiled, **dict(zip(eager, self.eager, strict=False))}
        seconds: dict[Variant, list[float]] = {variant: [] for variant in group}
        rounds = self.session.rounds
        if group[0].kind == "files":  # its reference is slow
            rounds = min(rounds, 3)
        for _ in range(rounds):
            for variant in group:
                if "error" in answers[variant] or time.monotonic() > self.group_deadline:
                    continue
                calls = min(MOST_CALLS[variant.kind], max(1, round(TURN / answers[variant]["seconds"])))
                servers[variant].order(calls)
                turn = self.ready(servers[variant], self.group_deadline)
                if "error" in turn:
                    answers[variant] = turn
                else:
                    seconds[variant].append(statistics.fmean(turn["turn"]))
        reference = next((v for v in group if "error" not in answers[v] and seconds[v]), None)
        for variant in group:
            self.add_row(variant, answers, seconds, reference)

    def add_row(
        self,
        variant: Variant,
        answers: dict[Variant, dict[str, Any]],
        seconds: dict[Variant, list[float]],
        reference: Variant | None,
    ) -> None:
        """Add the row of a variant, or that of its error; `reference` is the first variant that worked."""
        answer, own = answers[variant], seconds[variant]
        row: dict[str, Any] = {"work": variant.work, "variant": variant.name}
        if "error" in answer or not own or reference is None:
            row["error"] = answer.get("error", "no time was left")
            self.lines.append(f"{variant.work:<16}{variant.name:<30}{row['error'][:70]:>10}")
        else:
            ratios = [one / other for one, other in zip(seconds[reference], own, strict=False)]
            row |= {"seconds": statistics.median(own), "rounds": len(own), "ratio": statistics.median(ratios)}
            row |= {"lowest": min(ratios), "highest": max(ratios)}
            row |= {"megabytes": answer["bytes"] / 1e6, "built": answer["built"]}
            if "outcome" in answer and "outcome" in answers[reference]:
                first, this = (np.array(answers[v]["outcome"]) for v in (reference, variant))
                row["difference"] = float(np.abs(first - this).max() / np.abs(first).max())
            add_share_of_floor(row, variant, self.rates)
            rate = f"{row['TFLOP/s']:9.2f}" if "TFLOP/s" in row else f"{'':>9}"
            self.lines.append(f"{format_row(row, variant)}{rate}{row['built']:9.1f}")
        self.rows.append(row)
        sys.stdout.write(self.lines[-1] + "\n")
        sys.stdout.flush()

    def save(self) -> None:
        """Write the rows and the lines so far."""
        content = {"torch": torch.__version__, "rates": self.rates, "skipped": self.skipped, "rows": self.rows}
        write_whole(self.session.out / "table.json", json.dumps(content, indent=1).encode())
        shown = [f"{name} {value:.3g} {'GB' if name == 'copy' else 'TFLOP'}/s" for name, value in self.rates.items()]
        lines = [f"measured rates: {', '.join(shown)}", *self.lines]
        if self.skipped:
            lines.append(f"skipped, the time was up: {' '.join(self.skipped)}")
        write_whole(self.session.out / "table.txt", ("\n".join(lines) + "\n").encode())


def main(arguments: list[str]) -> int:
    """Measure the table until a deadline, by time.monotonic; return 0 even if variants fail."""
    if arguments == ["--serve"]:
        return serve()
    session, deadline = load_session(Path(arguments[0])), float(arguments[1])
    with tempfile.TemporaryDirectory() as noise:
        data = str(session.data)
        if not (session.data / "train").is_dir():
            sizes = [read_group(name) for name in session.groups]
            write_jpeg_pairs(Path(noise), max(512, *(s for _, s, _ in sizes)), 4 * max(b for _, _, b in sizes))
            data = noise
        table = Table(session, choose_device(session.device), deadline, data)
        try:
            table.measure()
        finally:
            table.save()
            for server in [*table.eager, *table.compiled.values()]:
                server.end()
    return 0


if __name__ == "__main__":
    run_command(main)
