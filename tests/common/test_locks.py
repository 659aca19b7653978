"""A folder has one writer at a time: among processes, after a kill, and without traces."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from change.common.errors import UserError
from change.common.locks import hold_folder
from tests.conftest import REPOSITORY

HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from change.common.locks import hold_folder
with hold_folder(Path(sys.argv[1]), "--save_path", beside=sys.argv[2] == "True"):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))  # as a loader process
    child.start()
    print(child.pid, flush=True)
    sys.stdin.read()
    child.kill()
"""


def hold_elsewhere(folder: Path, beside: bool) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds a folder until its stdin is closed; return it, and the id of its child."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(beside)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("beside", [False, True])
def test_one_writer(tmp_path: Path, beside: bool) -> None:
    """The second is refused; after the first has ended, or was killed, the folder is free and clean."""
    folder = tmp_path / "a" / "run"
    first, _ = hold_elsewhere(folder, beside)
    message = f"^{folder} is in use by another run: wait until it has ended, or choose another -o$"
    with pytest.raises(UserError, match=message), hold_folder(folder, "-o", beside):
        pass
    first.communicate("")
    assert not list(tmp_path.iterdir())
    killed, child = hold_elsewhere(folder, beside)
    killed.kill()
    killed.wait()  # not `communicate`, which would wait for the child too
    try:
        os.kill(child, 0)  # the child of the killed process still runs
        with hold_folder(folder, "-o", beside):
            assert folder.exists() != beside
    finally:
        os.kill(child, signal.SIGKILL)
    assert [path.name for path in (tmp_path / "a").rglob("*")] in ([], ["run"])


def test_what_was_written_stays(tmp_path: Path) -> None:
    """Folders that were made and are empty are removed, others are not."""
    (tmp_path / "there").mkdir()
    with hold_folder(tmp_path / "there", "-o"), hold_folder(tmp_path / "a" / "b", "-o"):
        (tmp_path / "a" / "mine.txt").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "mine.txt", "there"]


def test_a_folder_that_was_replaced(tmp_path: Path) -> None:
    """If it is removed and another run uses the name, the lock of that run stays."""
    folder = tmp_path / "run"
    with hold_folder(folder, "-o"):
        (folder / ".lock").unlink()
        folder.rmdir()
        other, _ = hold_elsewhere(folder, beside=False)
    assert (folder / ".lock").exists()
    other.communicate("")


def take_in_turn(folder: Path, seconds: float, counted: list[int]) -> None:
    """Take and release the folder again and again; check that nobody else is in it meanwhile."""
    end, inside = time.monotonic() + seconds, folder.with_name("inside")
    while time.monotonic() < end:
        try:
            with hold_folder(folder, "-o", beside=True):
                inside.touch(exist_ok=False)
                inside.unlink()
                counted.append(1)
        except UserError:
            pass


def count_turns(folder: Path, seconds: float) -> None:
    """Exit with 0 if the folder was taken at least once."""
    counted: list[int] = []
    take_in_turn(folder, seconds, counted)
    sys.exit(0 if counted else 1)


def test_the_lock_file_can_be_removed_at_any_time(tmp_path: Path) -> None:
    """No two processes get in together, although each removes the file that the other may have opened."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_turns, args=(tmp_path / "out", 1.0)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
