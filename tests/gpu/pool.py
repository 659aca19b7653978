"""The training runs of the GPU session: `python -m tests.gpu.pool OUT DEADLINE`, started by tests/gpu/session.py.

A few processes (tests/gpu/worker.py) take the runs from the list, one after the other. Results are saved while a
run goes on: NAME.log.txt, its validations in val.csv and its line in runs.csv. At its end it leaves NAME.pth, the kept
weights in 8 bits. A run that is stopped at the deadline leaves NAME.last.pth too, the weights of its last saved state.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from change.change_dataloader import find_split
from change.checkpoint import Checkpoint, PassRecord, pass_name
from change.common.command_line import from_flat
from change.common.devices import count_cores
from change.common.errors import run_command
from change.common.files import make_folder, write_whole
from change.options.train import TrainOptions
from change.prediction import pack
from change.training.run_state import read_state
from tests.gpu.settings import Session, TrainingRun, load_session, to_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
STOPPING = 15.0  # seconds before the deadline at which runs are told to stop and save, or a quarter of the time if less
POLL = 0.5  # seconds between two looks at the runs
SAVE_EVERY = 5.0  # seconds between two copies of logs and scores
# Options on which the speed of a run depends; runs in which these agree are expected to be equally fast.
SPEED = (
    "root",
    "backbone",
    "width",
    "refine",
    "cross",
    "model",
    "cropsize",
    "train_batchsize",
    "amp",
    "compile",
    "cache",
)
TITLES = ("name", "state", "epochs", "crops", "seconds", "crops_per_s", "best_f1", "last_f1", "note")


@dataclass
class Job:
    """A run of the list and what is known of it.

    Attributes:
        run: its name and options.
        folder: its run folder, which is not kept.
        arguments: the arguments of train.py.
        pairs: number of pairs in its train split.
        state: waiting, running, done, stopped, failed or skipped.
        note: the error, or why it was skipped.
        began: when it was started, by time.monotonic.
        seconds: how long it took.
        first, last: the time, by time.monotonic, and the number of epochs done, when the end of the first and of the
            latest epoch was noticed.
    """

    run: TrainingRun
    folder: Path
    arguments: list[str]
    pairs: int
    state: str = "waiting"
    note: str = ""
    began: float = 0.0
    seconds: float = 0.0
    first: tuple[float, int] = (0.0, 0)
    last: tuple[float, int] = (0.0, 0)

    def look(self) -> None:
        """Note the epochs done so far."""
        done = len(self.rows())
        if done > self.last[1]:
            self.last = (time.monotonic(), done)
            self.first = self.first if self.first[1] else self.last

    def epochs_per_second(self) -> float:
        """Return the speed after the first epoch, which includes the start; 0 if it is not known."""
        epochs, seconds = self.last[1] - self.first[1], self.last[0] - self.first[0]
        if epochs > 0:
            return epochs / max(seconds, 1e-3)
        return len(self.rows()) / self.seconds if self.seconds else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of the epochs so far."""
        path = self.folder / f"{self.run.name}.epochs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def speed_key(self) -> tuple[Any, ...]:
        """Return the options on which the speed depends."""
        return tuple(self.run.options.get(name) for name in SPEED)

    def epochs(self) -> int:
        """Return the number of epochs in the run's options."""
        return int(self.run.options.get("epoch", 800))


class Process:
    """A process of tests/gpu/worker.py."""

    def __init__(self, log: Path, threads: int) -> None:
        own = {"TQDM_MININTERVAL": "3600", "TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": str(threads)}
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=REPOSITORY,
                env={**os.environ, **own},
            )
        self.answers: queue.Queue[list[Any]] = queue.Queue()
        self.job: Job | None = None
        self.broken = False  # it has ended or will end
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Collect the answers, and one that says that the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put([None, f"the process ended with code {self.process.wait()}"])

    def start(self, job: Job) -> None:
        """Start a run."""
        assert self.process.stdin is not None
        self.job, job.state, job.began = job, "running", time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # `listen` reports that the process has ended
            self.process.stdin.write(json.dumps(job.arguments) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Tell the run to save its state and to stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def make_jobs(session: Session) -> list[Job]:
    """Make the jobs of a session, with the options that the session adds."""
    defaults: dict[str, Any] = {
        "root": session.data,
        "save_minutes": 1,
        "save_freq": 0,
        "workers": max(1, min(8, count_cores() // session.parallel - 1)),
    }
    jobs = []
    for run in session.runs:
        folder = session.scratch / run.name
        own = {"save_path": folder, "best_name": run.name, "device": session.device}
        options = {**defaults, **run.options, **own}
        lists = Path(options["list"]) / "train.txt" if options.get("list") else None
        pairs = len(find_split(Path(options["root"]), "train", lists).pairs)
        jobs.append(Job(run, folder, to_arguments(options), pairs))
    return jobs


@dataclass
class Pool:
    """The jobs, the processes that work on them, and the deadline, by time.monotonic."""

    session: Session
    jobs: list[Job]
    deadline: float
    processes: list[Process] = field(default_factory=list)
    saved_at: float = 0.0

    def __post_init__(self) -> None:
        stopping = min(STOPPING, (self.deadline - time.monotonic()) / 4)
        self.stop_at = self.deadline - stopping
        self.kill_at = self.deadline - stopping / 3  # after that, weights are packed

    def hurry(self, number: int, frame: FrameType | None) -> None:
        """Stop the runs now; the handler of a signal."""
        self.stop_at = min(self.stop_at, time.monotonic())
        self.kill_at = min(self.kill_at, time.monotonic() + STOPPING)

    def fit(self) -> None:
        """Run the jobs until all are done or the deadline is near."""
        threads = max(1, min(4, count_cores() // self.session.parallel))
        logs = [self.session.out / f"worker{i}.log.txt" for i in range(min(self.session.parallel, len(self.jobs)))]
        self.processes = [Process(log, threads) for log in logs]
        while time.monotonic() < self.stop_at:
            for index, process in enumerate(self.processes):
                if self.collect(process) and (job := self.next_job()):
                    if process.broken:
                        process = self.processes[index] = Process(logs[index], threads)
                    process.start(job)
                if process.job:
                    process.job.look()
            if not any(process.job for process in self.processes):
                break
            self.save()
            time.sleep(POLL)
        self.stop()

    def next_job(self) -> Job | None:
        """Return the next job that fits into the time left, and mark those before it that do not."""
        for job in self.jobs:
            if job.state != "waiting":
                continue
            speed = self.expected_speed(job)
            left = self.stop_at - time.monotonic()
            if not speed or job.epochs() / speed <= left:
                return job
            seconds = job.epochs() / speed
            job.state, job.note = "skipped", f"needs about {seconds:.0f} s, {left:.0f} s are left"
        return None

    def expected_speed(self, job: Job) -> float:
        """Return the epochs per second of the fastest run like `job`; 0 if none has got far enough."""
        alike = [other for other in self.jobs if other.speed_key() == job.speed_key()]
        return max(other.epochs_per_second() for other in alike)

    def collect(self, process: Process) -> bool:
        """Note the end of a process's job; return whether the process is idle."""
        job = process.job
        if job is None:
            return True
        with contextlib.suppress(queue.Empty):
            code, error = process.answers.get_nowait()
            job.look()
            job.seconds = time.monotonic() - job.began
            job.note = error
            job.state = {0: "done", 128 + signal.SIGTERM: "stopped"}.get(code, "failed")
            process.job, process.broken = None, code not in (0, 2)
            sys.stdout.write(f"run {job.run.name}: {job.state} after {job.seconds:.0f} s {error}\n")
            sys.stdout.flush()
            self.save(final=job)
        return process.job is None

    def stop(self) -> None:
        """Stop the runs that are left; kill those that do not stop in time. Then save everything."""
        for process in self.processes:
            if process.job:
                process.stop()
        while time.monotonic() < self.kill_at and any(process.job for process in self.processes):
            time.sleep(0.1)
            for process in self.processes:
                self.collect(process)
        for process in self.processes:
            if job := process.job:
                job.state, job.seconds = "stopped", time.monotonic() - job.began
                job.note = "did not stop in time: the weights are those of its last saved state"
            process.process.kill()
            if job:
                self.save(final=job)
        for job in self.jobs:
            if job.state == "waiting":
                job.state, job.note = "skipped", "no time was left"
        self.save(force=True)

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, final: Job | None = None, force: bool = False) -> None:
        """Save the results so far, if that is due, and the weights of `final`, which has ended."""
        if not (final or force) and time.monotonic() - self.saved_at < SAVE_EVERY:
            return
        self.saved_at = time.monotonic()
        for job in self.jobs:
            log = job.folder / "log.txt"
            if log.is_file() and job.state != "waiting":
                write_whole(self.session.out / f"{job.run.name}.log.txt", log.read_bytes())
        if final:
            try:
                save_weights(final, self.session.out)
            except Exception as error:  # an incomplete file, a full disk: the other runs go on
                final.note = f"{final.note}; weights not saved: {error}".lstrip("; ")
        self.save_tables()

    def save_tables(self) -> None:
        """Write runs.csv and val.csv."""
        runs: list[list[Any]] = [list(TITLES)]
        values: list[list[Any]] = []
        header: list[str] = []
        for job in self.jobs:
            rows = job.rows() if job.state != "waiting" else []
            scores = [(row["epoch"], row["loss"], row["val"]) for row in rows if row.get("val")]
            header = header or [name for _, _, val in scores[:1] for name in val]
            values += [[job.run.name, epoch, f"{loss:.5f}", *val.values()] for epoch, loss, val in scores]
            f1 = [val["f1"] or 0.0 for _, _, val in scores]
            seconds = job.seconds or (time.monotonic() - job.began if job.began else 0.0)
            crops = len(rows) * job.pairs
            speed = f"{crops / seconds:.0f}" if seconds else ""
            best, last = (f"{max(f1):.4f}", f"{f1[-1]:.4f}") if f1 else ("", "")
            runs.append([job.run.name, job.state, len(rows), crops, round(seconds), speed, best, last, job.note])
        write_csv(self.session.out / "runs.csv", runs)
        write_csv(self.session.out / "val.csv", [["name", "epoch", "loss", *header], *values])


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    """Write rows as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue().encode())


def save_weights(job: Job, out: Path) -> None:
    """Pack the kept weights of a run, and, if it has not reached its end, those of its last saved state."""
    kept, state = job.folder / f"{job.run.name}.pth", job.folder / f"{job.run.name}.state.pth"
    if kept.is_file():
        pack.main([str(kept), str(out / kept.name)])
    if job.state != "done" and state.is_file():
        whole = job.folder / "last.whole.pth"
        last_weights(state).save(whole)
        pack.main([str(whole), str(out / f"{job.run.name}.last.pth")])
        whole.unlink()


def last_weights(path: Path) -> Checkpoint:
    """Make a checkpoint of the weights of a saved state: the averaged ones if the run has an average."""
    state = read_state(path)
    options = from_flat(TrainOptions, state.options)
    config = options.network.config()
    record = PassRecord(pass_name(config), images=state.images, options=state.options, epoch=state.progress.epoch)
    return Checkpoint(
        config,
        state.average or state.weights,
        [*state.lineage, record],
        mean=state.mean,
        std=state.std,
        threshold=state.threshold,
    )


def main(arguments: list[str]) -> int:
    """Train until a deadline, by time.monotonic; return 0 even if runs fail."""
    session, deadline = load_session(Path(arguments[0])), float(arguments[1])
    torch.set_num_threads(1)
    make_folder(session.scratch)
    pool = Pool(session, make_jobs(session), deadline)
    signal.signal(signal.SIGTERM, pool.hurry)
    pool.fit()
    return 0


if __name__ == "__main__":
    run_command(main)
