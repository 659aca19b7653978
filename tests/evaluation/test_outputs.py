"""Where test.py writes if no folder is given: a folder that names the data set, and never that of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from change.common.errors import UserError
from change.evaluation import outputs
from change.evaluation.outputs import default_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(outputs, "home_folder", lambda: tmp_path / "home")
    return tmp_path / "home" / "results"


def test_data_sets_have_folders_of_their_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder(tmp_path / "A" / "test") == home / "A-test"
    assert default_folder(tmp_path / "B" / "x" / ".." / "test") == home / "B-test"
    (tmp_path / "A" / "test").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "A" / "test")
    assert default_folder(Path()) == home / "A-test"
    assert default_folder(Path("/")) == home


def test_scores_of_other_pairs_are_not_overwritten(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pairs again are no fault, however their folder is written; metrics.json may be an older one."""
    folder = home / "A-test"
    folder.mkdir(parents=True)
    mine, other = tmp_path / "mine" / "A" / "test", tmp_path / "other" / "A" / "test"
    (folder / "metrics.json").write_text(json.dumps({"data": {"folder": str(mine)}}))
    assert default_folder(mine) == folder
    with pytest.raises(UserError, match=rf"^{folder} holds the scores of other pairs, in {mine}: .*--save_path$"):
        default_folder(other)
    monkeypatch.chdir(mine.parents[2])
    (folder / "metrics.json").write_text(json.dumps({"data": {"folder": "mine/A/test"}}))
    assert default_folder(mine) == folder
    (folder / "metrics.json").write_text("{}")
    assert default_folder(other) == folder
