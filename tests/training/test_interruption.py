"""Signals are noted during a run; afterwards the host program has its own handlers again."""

from __future__ import annotations

import signal
import threading

from change.training.interruption import SIGNALS, StopSignal


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_the_first_signal_is_noted_and_handlers_come_back() -> None:
    before = handlers()
    with StopSignal() as stop:
        assert stop.number == 0 and handlers() != before
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one kills
    assert handlers() == before


def test_an_error_restores_the_handlers_too() -> None:
    before = handlers()
    try:
        with StopSignal():
            raise KeyError
    except KeyError:
        pass
    assert handlers() == before


def test_other_threads_set_no_handlers() -> None:
    """Python allows it in the main thread only."""
    before, entered = handlers(), []

    def enter() -> None:
        with StopSignal() as stop:
            entered.append(stop.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [0] and handlers() == before
