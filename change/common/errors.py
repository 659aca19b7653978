"""Errors for users: one line, exit code 2, no traceback."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_CTRL_C = 130

# Parts of torch's error messages, and what to do about them.
OUT_OF_MEMORY = {
    "DataLoader worker": "a loader process died, probably for lack of memory: use fewer --workers",
    "CUDA out of memory": "the GPU is out of memory: choose a smaller batch size, --cropsize or --tile",
    "MPS backend out of memory": "the GPU is out of memory: choose a smaller batch size, --cropsize or --tile",
    "DefaultCPUAllocator": "out of memory: choose a smaller batch size, --cropsize, --testsize or --tile",
}


class UserError(Exception):
    """An error that the user can fix: what is wrong, which file or value, and what to do, in one line."""


def import_optional(name: str, command: str) -> Any:
    """Import an optional module. Raises UserError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.partition('.')[0]} is needed for this ({error}): {command}") from error


def list_names(names: Iterable[object], most: int = 3) -> str:
    """List the first few names and count the rest: "a, b, c and 4 more"."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def check_first(parse: Callable[[list[str]], object]) -> None:
    """Parse the arguments of this process before the imports that take seconds, and report a wrong one at once.

    Until `run_command` begins, Ctrl-C ends this process without a traceback, unless the process ignores it. Processes
    that torchrun started leave their arguments to `run_command`.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "RANK" in os.environ:
        return
    try:
        parse(sys.argv[1:])
    except UserError as error:
        if os.environ.get("PRX_DEBUG") == "1":
            raise
        sys.exit(fail(str(error)))


def run_command(command: Callable[[list[str]], int]) -> None:
    """Run `command` with the arguments of this process and exit with its code.

    A UserError, an OSError and running out of memory are reported in one line, with exit code 2. The environment
    variable PRX_DEBUG=1 shows their traceback instead. Characters that the output's encoding lacks are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python itself does for stderr
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with threads_without_tracebacks():
            code = command(sys.argv[1:])
    except KeyboardInterrupt:
        code = EXIT_CTRL_C
    except Exception as error:
        message = message_for_users(error)
        if not message or os.environ.get("PRX_DEBUG") == "1":
            raise
        code = fail(message)
    sys.exit(code)


@contextlib.contextmanager
def threads_without_tracebacks() -> Iterator[None]:
    """Suppress the tracebacks of OSErrors in threads for the duration of a `with` block.

    TensorBoard's writer thread does not catch such an error. It is raised again in the main thread, which reports it.
    """
    before = threading.excepthook

    def show(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError) or os.environ.get("PRX_DEBUG") == "1":
            before(failure)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


def message_for_users(error: Exception) -> str:
    """Return the line that reports an error; empty for an error that users cannot fix."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        place = f"{name}: " if name else ""
        return f"{place}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY["DefaultCPUAllocator"]
    if isinstance(error, RuntimeError):
        return next((remedy for sign, remedy in OUT_OF_MEMORY.items() if sign in str(error)), "")
    return ""


def fail(message: str) -> int:
    """Report `message` as one line, on stderr and in the log file if there is one; return the exit code."""
    line = "error: " + " ".join(message.split())
    if logging.getLogger().handlers:
        # The disk may be full: the console handler comes first, so the line is shown.
        with contextlib.suppress(OSError):
            logging.getLogger().error(line)
    else:
        sys.stderr.write(line + "\n")
    return EXIT_USER_ERROR


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Report the error and exit."""
        fail(f"{message}; --help lists the options")
        sys.exit(EXIT_USER_ERROR)
