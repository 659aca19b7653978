"""Errors for users: one line, exit code 2, no traceback."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterable
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


def needed(name: str, command: str) -> Any:
    """Import an optional module. Raises UserError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.partition('.')[0]} is needed for this ({error}): {command}") from error


def listed(names: Iterable[object], most: int = 3) -> str:
    """List the first few names and count the rest: "a, b, c and 4 more"."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def run_command(command: Callable[[list[str]], int]) -> None:
    """Run `command` with the arguments of this process and exit with its code.

    A UserError, an OSError and running out of memory are reported in one line, with exit code 2.
    """
    try:
        code = command(sys.argv[1:])
    except UserError as error:
        code = fail(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        code = fail(f"{place}{error.strerror or error}")
    except RuntimeError as error:
        remedy = next((remedy for sign, remedy in OUT_OF_MEMORY.items() if sign in str(error)), None)
        if remedy is None:
            raise
        code = fail(remedy)
    except KeyboardInterrupt:
        code = EXIT_CTRL_C
    sys.exit(code)


def fail(message: str) -> int:
    """Report `message` as one line, on stderr and in the log file if there is one; return the exit code."""
    line = "error: " + " ".join(message.split())
    if logging.getLogger().handlers:
        with contextlib.suppress(
            OSError
        ):  # the disk may be full: the console handler comes first, so the line is shown
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
