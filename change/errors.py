"""Errors a user can mend, and how a command ends on them: one line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """What is wrong, with which file or value, and what to do about it, in one line."""


def listed(names: Iterable[object], most: int = 3) -> str:
    """Name the first few and count the rest: "a, b, c and 4 more"."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def run_command(command: Callable[[list[str]], int]) -> None:
    """Run `command` on the arguments of this process and exit with its code; a user's error is one line and 2."""
    try:
        code = command(sys.argv[1:])
    except UserError as error:
        code = fail(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        code = fail(f"{place}{error.strerror or error}")
    sys.exit(code)


def fail(message: str) -> int:
    """Print one line to stderr, whatever `message` holds; return the exit code."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return EXIT_USER_ERROR
