"""The line of an epoch, and the estimate of the time to go, with a clock of the test."""

from __future__ import annotations

import logging

import pytest
import torch

from change.common.devices import hardware_name
from change.training import pace
from change.training.pace import Pace, format_duration

ROW = {"epoch": 4, "loss": 0.5, "loss_classification": 0.375, "loss_refinement": 0.125, "lr": 2e-4}


class Clock:
    """Replaces the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_the_time_to_go(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """10 epochs of 20 steps, a validation after every third epoch and after the last; a slow start is left out."""
    caplog.set_level(logging.INFO)
    device = torch.device("cpu")
    run = Pace(10, 20, 3, device)
    clock.now += 1000  # until the first losses are read
    run.measure(0, 10)
    assert run.seconds_left(0, 10) is None and caplog.text == ""
    clock.now += 30
    run.measure(0, 20)
    assert run.seconds_left(0, 20) == 180 * 3
    expected = f"about 9 min to go without validations, measured over 10 steps on {hardware_name(device)}"
    assert caplog.messages == [expected]
    clock.now += 120
    run.measure(3, 60)
    with run.validation():
        clock.now += 50
    assert run.seconds_left(3, 60) == 140 * 3 + 3 * 50  # validations after epochs 6, 9 and 10
    run.report({**ROW, "pairs_per_second": 8.25}, 80)
    losses = "loss 0.5000, loss classification 0.3750, loss refinement 0.1250"
    left = format_duration(120 * 150 / 70 + 150)
    assert caplog.messages[1:] == [f"epoch 4/10: {losses}, lr 2.00e-04, 8.2 pairs/s, {left} to go"]


def test_validations_count_once_one_was_measured(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """4 epochs of 2 steps: the losses are first read at the end of an epoch, so a validation precedes the estimate."""
    caplog.set_level(logging.INFO)
    run = Pace(4, 2, 1, torch.device("cpu"))
    run.measure(0, 2)
    with run.validation():
        clock.now += 20
    clock.now += 10
    run.measure(1, 4)
    assert caplog.messages[0].startswith(f"about {20 + 3 * 20} s to go, measured over 2 steps on ")


def test_lines_of_fast_epochs_are_in_the_file_only(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The console shows one line in ten seconds. The last epoch has no time to go."""
    caplog.set_level(logging.INFO)
    run = Pace(5, 1, 5, torch.device("cpu"))
    for epoch in range(1, 6):
        clock.now += 4
        run.measure(epoch - 1, epoch)
        run.report({**ROW, "epoch": epoch, "pairs_per_second": 1}, epoch)
    lines = [record for record in caplog.records if record.getMessage().startswith("epoch")]
    assert [getattr(record, "only_in_file", None) for record in lines] == [False, True, True, False, True]
    assert [record.getMessage().endswith(" to go") for record in lines] == [False, True, True, True, False]
    assert lines[3].getMessage().endswith(", 4 s to go")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (5340, "89 min"), (12000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
