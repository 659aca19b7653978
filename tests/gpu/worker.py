"""A process that does training runs one after the other: `python -m tests.gpu.worker`, started by tests/gpu/pool.py.

The device starts and its libraries build their kernels once per process, not once per run. Each line of the input is a
list of arguments of train.py, as JSON. After each run a line with its exit code and its error, if any, is written.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback

import torch

import train
from change.common.errors import UserError


def run(arguments: list[str]) -> tuple[int, str]:
    """Train; return the exit code and the error. Errors that a user cannot fix are raised."""
    try:
        return train.main(arguments), ""
    except UserError as error:
        return 2, str(error)
    except SystemExit as stop:  # the parser has reported the argument
        return 2, f"train.py ended with code {stop.code}"


def main() -> int:
    """Train until the input ends; return 1 after an error that may have left the device unusable."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool decides when to stop
    for line in sys.stdin:
        failed = False
        try:
            code, error = run(json.loads(line))
        except Exception as problem:
            traceback.print_exc()
            code, error, failed = 1, f"{type(problem).__name__}: {problem}".partition("\n")[0], True
        answers.write(json.dumps([code, error]) + "\n")
        answers.flush()
        if failed:
            return 1
        for handler in logging.getLogger().handlers[:]:  # the log file of the run
            logging.getLogger().removeHandler(handler)
            handler.close()
        gc.collect()  # ends the loader's processes
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
