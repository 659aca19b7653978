"""Ctrl-C and SIGTERM: they end a run after the current step, with its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was told to stop and has saved its state. `code` is the exit code of the process."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StopSignal:
    """A context that notes the first Ctrl-C or SIGTERM in `number`, so that the loop can save its state and stop.

    A second signal of the same kind ends the process at once. The previous handlers are restored at the end. Outside
    the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, and let the next one end the process."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)
