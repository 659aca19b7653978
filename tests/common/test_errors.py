"""Exit codes: the command's own, or 2 with one line for an error that the user can fix."""

from __future__ import annotations

import pytest

from change.common.errors import UserError, list_names, run_command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a value\nis wrong"), 2, "error: a value is wrong"),
        (OSError(28, "No space left on device", "out.png"), 2, "error: out.png: No space left on device"),
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
