"""The training data for directions: classes in every mask, and data sets that stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from change.common.classes import NEW, VANISHED, parse_classes, read_classes
from change.common.errors import UserError
from change.experiments import direction_data
from tests.experiments.test_finetune import write_data

pytestmark = pytest.mark.slow


def read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(path))


def test_folder(tmp_path: Path) -> None:
    """Changes of LEVIR-CD are new ones, its files are untouched, and scenes are added."""
    levir = write_data(tmp_path / "levir", 512)
    labels = sorted(levir.rglob("label/*"))
    before = [path.read_bytes() for path in labels]
    arguments = [str(tmp_path / "all"), f"--levir={levir}", "--count=2"]
    assert direction_data.main(arguments) == 0
    assert [path.read_bytes() for path in labels] == before
    assert read_classes(tmp_path / "all") == parse_classes("new <-> vanished")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["classes.txt", "train", "val"]
    for split in ("train", "val"):
        for label in (levir / split / "label").iterdir():
            made = [*(tmp_path / "all" / split / "label").glob(f"levir_{label.stem}*.png")]
            assert len(made) == 1
            assert np.array_equal(read(made[0]), (read(label) > 127) * NEW)
    scenes = [read(path) for path in (tmp_path / "all" / "train" / "label").glob("scene_*.png")]
    assert len(scenes) == 2 and {0, NEW} <= set(np.unique(scenes)) <= {0, NEW, VANISHED}
    written = (tmp_path / "all").stat().st_mtime_ns
    assert direction_data.main(arguments) == 0
    assert (tmp_path / "all").stat().st_mtime_ns == written


def test_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for arguments, said in (
        ([str(tmp_path / "all"), "--levir=nowhere"], "no folder nowhere/train/label: set --levir to LEVIR-CD"),
        ([str(tmp_path / "all"), "--levir=nowhere", "--count=-1"], "--count -1: choose 0 or more"),
        ([str(tmp_path / "file"), "--levir=nowhere"], "file is not a folder: choose another one"),
    ):
        with pytest.raises(UserError, match=said):
            direction_data.main(arguments)
    assert not (tmp_path / "all").exists()
