"""Run a program in several processes, as torchrun does, but import torch once: `python tests/forked.py N FILE ...`.

torchrun starts Python N + 1 times, and each time importing torch takes seconds. Here, the processes are forks of one
process, which has imported what our programs need. If one fails, the others are told to end, as torchrun does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_for_all(processes: set[int]) -> int:
    """Wait until all processes have ended; return 1 if one of them failed, else 0."""
    code = 0
    while processes:
        process, status = os.wait()
        processes.remove(process)
        if status and not code:
            code = 1
            for other in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGTERM)
    return code


def main(arguments: list[str]) -> int:
    """Start the processes and wait for them; return the exit code. In each process, run the file and do not return."""
    count, file = int(arguments[0]), arguments[1]
    sys.path[0] = str(REPOSITORY)
    for name in ("train", "test"):
        importlib.import_module(name)
    group = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = set()
    for rank in range(count):
        process = os.fork()
        if process == 0:
            values = {**group, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in values.items()})
            sys.argv = arguments[1:]
            sys.path[0] = str(Path(file).parent)
            runpy.run_path(file, run_name="__main__")
            sys.exit()
        processes.add(process)
    return wait_for_all(processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
