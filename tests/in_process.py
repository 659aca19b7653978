"""Run a program of this repository inside the test process, and leave that process as it was.

Starting Python and importing torch takes seconds, which a test that only needs a program's outcome can save.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

import cv2
import numpy as np
import PIL.Image
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
HIDDEN_WARNINGS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def run_in_process(
    file: Path, arguments: list[str], cwd: Path | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a Python file as the main program and return its exit code, stdout and stderr.

    Args:
        file: The file to run.
        arguments: What follows the file on the command line.
        cwd: The folder to run in; the current one if None.
        timeout: Seconds after which subprocess.TimeoutExpired is raised.
    """
    command = [sys.executable, str(file), *arguments]

    def give_up(number: int, frame: FrameType | None) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    with process_restored(), captured_output() as (stdout, stderr), older_objects_left_alone():
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        sys.argv = [str(file), *arguments]
        if cwd is not None:
            os.chdir(cwd)
        try:
            code = exit_code(file)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()  # ends loader processes and writers of files that are still referred to in cycles
        return subprocess.CompletedProcess(command, code, read_back(stdout), read_back(stderr))


def exit_code(file: Path) -> int:
    """Run a file as the main program and return the exit code that its process would have."""
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except subprocess.TimeoutExpired:
        raise
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def read_back(file: TextIO) -> str:
    """Return all that was written to a file, with line ends as subprocess translates them."""
    file.flush()
    file.seek(0)
    return file.read().replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def captured_output() -> Iterator[tuple[TextIO, TextIO]]:
    """Send stdout and stderr to two files, also what C code and child processes write."""
    with contextlib.ExitStack() as stack:
        files = []
        for number, redirect in ((1, contextlib.redirect_stdout), (2, contextlib.redirect_stderr)):
            file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline=""))
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(file.fileno(), number)
            stack.enter_context(redirect(file))
            files.append(file)
        yield files[0], files[1]


@contextlib.contextmanager
def older_objects_left_alone() -> Iterator[None]:
    """Let the garbage collector only look at the objects of the program.

    Those of the tests and libraries are millions, which takes seconds, and a cycle of the program's needs none of them.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Give a program the state of a fresh process, and put back afterwards whatever it changed."""
    parts = (loggers_restored, warnings_restored, torch_restored, random_numbers_restored, surroundings_restored)
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(part())
        yield


def all_loggers() -> list[logging.Logger]:
    """Return the root logger and every named one."""
    root = logging.getLogger()
    return [root, *(logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger))]


@contextlib.contextmanager
def loggers_restored() -> Iterator[None]:
    """Start with a root logger without handlers; restore every logger and close the handlers that were added."""
    before = {logger: (logger.level, logger.propagate, logger.disabled, logger.handlers[:]) for logger in all_loggers()}
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in all_loggers():
            level, propagate, disabled, handlers = before.get(logger, (logging.NOTSET, True, False, []))
            for handler in logger.handlers:
                if handler not in handlers:
                    handler.close()
            if logger.level != level:  # setting it clears the caches of all loggers
                logger.setLevel(level)
            logger.propagate, logger.disabled, logger.handlers[:] = propagate, disabled, handlers


@contextlib.contextmanager
def warnings_restored() -> Iterator[None]:
    """Start with Python's default filters, and with warnings on stderr."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in HIDDEN_WARNINGS:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
        logging.captureWarnings(False)


@contextlib.contextmanager
def torch_restored() -> Iterator[None]:
    """Restore what torch, OpenCV and Pillow keep for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, flags = torch.backends.cudnn, ("benchmark", "deterministic", "allow_tf32")
    values = [getattr(cudnn, flag) for flag in flags]
    dtype, threads, cv_threads = torch.get_default_dtype(), torch.get_num_threads(), cv2.getNumThreads()
    matmul, pixels, grad = torch.get_float32_matmul_precision(), PIL.Image.MAX_IMAGE_PIXELS, torch.is_grad_enabled()
    torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 gives other processes
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warn)
        for flag, value in zip(flags, values, strict=True):
            setattr(cudnn, flag, value)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
        torch.set_float32_matmul_precision(matmul)
        torch.set_grad_enabled(grad)
        PIL.Image.MAX_IMAGE_PIXELS = pixels
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()


@contextlib.contextmanager
def random_numbers_restored() -> Iterator[None]:
    """Restore the random number generators of torch, NumPy and Python."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextlib.contextmanager
def surroundings_restored() -> Iterator[None]:
    """Restore signal handlers, environment variables, the current folder, sys.argv and sys.path."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    variables, folder, arguments, places = dict(os.environ), Path.cwd(), sys.argv, sys.path[:]
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in set(os.environ) - set(variables):
            del os.environ[name]
        os.environ.update(variables)
        os.chdir(folder)
        sys.argv, sys.path[:] = arguments, places
