"""The section of the report about classes, in a real browser if one is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from change.common.classes import parse_classes
from change.evaluation.class_scores import ClassCounts
from change.evaluation.report import write_report
from tests.evaluation.test_report import browser as browser
from tests.evaluation.test_report import opened, result, row

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_classes_have_a_section(browser: Browser, tmp_path: Path) -> None:
    """Scores in the order of the classes, whatever their names, then the means, then the confusion matrix."""
    classes = parse_classes(["9", "<b>", "1"])
    counts = ClassCounts(np.array([[5000, 1, 2, 0], [3, 40, 0, 0], [0, 0, 0, 0], [4, 0, 0, 6]]))
    write_report(tmp_path / "r.html", {**result(), "classes": counts.as_dict(classes)}, [row("a", 9, 1, 1)], [])
    page, wrong = opened(browser, tmp_path / "r.html")
    rows = page.locator("#classes tr").all_inner_texts()
    found = [line.split("\t") for line in rows]
    assert found[0] == ["Class", "Pixels", "Predicted", "Precision", "Recall", "F1", "IoU"]
    assert found[1] == ["9", "43", "41", "97.56", "93.02", "95.24", "90.91"]
    assert found[2] == ["<b>", "0", "2", "0.00", "\N{EN DASH}", "0.00", "0.00"]
    assert [line[0] for line in found[3:5]] == ["1", "mean over classes"]
    assert found[5:7] == [["", "unchanged", "9", "<b>", "1"], ["unchanged", "5,000", "1", "2", "0"]]
    assert wrong == []
