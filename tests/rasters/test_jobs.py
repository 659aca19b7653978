"""The pairs that a command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from change.common.errors import UserError
from change.rasters.jobs import find_jobs


def test_text_files_of_pairs(tmp_path: Path) -> None:
    """As spreadsheets write them, too."""
    (tmp_path / "pairs.csv").write_text("a.tif,b.tif,one\n\nc.tif,d.tif,\n", encoding="utf-8-sig")
    (tmp_path / "pairs.txt").write_text("a, b.tif\tc.tif\td e\n")
    found = {(j.before.name, j.after.name, j.folder.name) for j in find_jobs(tmp_path / "pairs.csv", None, tmp_path)}
    assert found == {("a.tif", "b.tif", "one"), ("c.tif", "d.tif", "c")}
    (job,) = find_jobs(tmp_path / "pairs.txt", None, tmp_path)
    assert (job.before.name, job.folder.name) == ("a, b.tif", "d e")
    for line in ("a.tif\tb.tif\t..\n", "a\0.tif\tb.tif\n", ".tif\tb.tif\t\n"):
        (tmp_path / "pairs.txt").write_text(line)
        with pytest.raises(UserError, match=r"line 1: .* cannot be the name of a folder"):
            find_jobs(tmp_path / "pairs.txt", None, tmp_path)
