"""Files and folders: complete or absent, and what was there before stays if writing fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from change.common.files import write_folder


def test_an_interrupted_exchange_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the two renames, when the old folder is already out of the way."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    replace = Path.replace

    def interrupt(source: Path, target: Path) -> Path:
        if source.suffix == ".part":
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, lambda aside: (aside / "new.txt").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["old.txt"]
