"""Fixtures of the tests in this folder."""

from __future__ import annotations

import logging

import pytest

import change.data.prepare


@pytest.fixture
def prepare_logs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Leave the logging of `prepare` to pytest."""
    monkeypatch.setattr(change.data.prepare, "start_logging", lambda: None)
    caplog.set_level(logging.INFO)
