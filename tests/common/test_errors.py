"""Exit codes: the command's own, or 2 with one line for an error that the user can fix."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from change.common.errors import UserError, list_names, run_command
from tests.conftest import REPOSITORY

PAIR = [f"test_samples/{folder}/0_0000.jpg" for folder in "AB"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a value\nis wrong"), 2, "error: a value is wrong"),
        (OSError(28, "No space left on device", "out.png"), 2, "error: out.png: No space left on device"),
        (OSError(2, "No such file", b"curves"), 2, "error: curves: No such file"),
        (RuntimeError("DataLoader worker (pid 3) is killed"), 2, "error: a loader process died"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), 2, "error: out of memory"),
        (MemoryError(), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(caplog: pytest.LogCaptureFixture, error: BaseException, code: int, line: str) -> None:
    def command(_: list[str]) -> int:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(command)
    assert stop.value.code == code
    assert " ".join(caplog.messages).startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        ["train.py", "--root=none", "--save_path=none"],
        ["test.py", "--test_root=test_samples", "--checkpoint_path=checkpoints/buildings_r18.pth", "--save_path=none"],
        ["-m", "change", "predict", *PAIR, "-o", "none"],
    ],
    ids=["train", "test", "predict"],
)
def test_ctrl_c_while_importing(program: list[str]) -> None:
    """There is no traceback. Python reports each import on stderr, so the signal comes in the middle of torch's."""
    command = [sys.executable, "-X", "importtime", *program]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while "torch" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in said and "Interrupt" not in said


@pytest.mark.parametrize(
    ("error", "debug", "shown"),
    [(OSError("gone"), "", False), (OSError("gone"), "1", True), (ValueError("a bug"), "", True)],
)
def test_tracebacks_of_threads(monkeypatch: pytest.MonkeyPatch, error: Exception, debug: str, shown: bool) -> None:
    """Those of an OSError, such as TensorBoard's, are not shown; afterwards the host program has its own hook again."""
    found: list[BaseException | None] = []

    def hook(failure: threading.ExceptHookArgs) -> None:
        found.append(failure.exc_value)

    def fail() -> None:
        raise error

    def command(_: list[str]) -> int:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setenv("PRX_DEBUG", debug)
    with pytest.raises(SystemExit):
        run_command(command)
    assert found == ([error] if shown else [])
    assert threading.excepthook is hook


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_: list[str]) -> int:
        raise UserError("a value is wrong")

    monkeypatch.setenv("PRX_DEBUG", "1")
    with pytest.raises(UserError, match="a value is wrong"):
        run_command(command)


def test_other_errors_keep_their_traceback() -> None:
    def command(_: list[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(command)


def test_listed() -> None:
    assert list_names([]) == ""
    assert list_names("abc") == "a, b, c"
    assert list_names("abcde") == "a, b, c and 2 more"
