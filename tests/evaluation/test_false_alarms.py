"""`python -m change alarms`: false alarms on an image and its copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from change.common.errors import UserError
from change.common.images import Image, read_image
from change.evaluation.false_alarms import find_images, main, measure, unchanged_pair
from change.prediction.detector import ChangeDetector
from tests.conftest import write_pairs


class Difference:
    """Calls a pixel changed if its red differs. Stands for a detector with a known answer."""

    def predict(self, before: Image, after: Image, *, name: str = "") -> NDArray[np.bool_]:
        return np.asarray(before[..., 0] != after[..., 0])


def test_copies_are_shifted_by_the_given_distance() -> None:
    y, x = np.mgrid[:80, :100].astype(np.uint8)
    image, seen = np.dstack([y, x, 0 * x]), set()
    for seed in range(300):
        before, after = unchanged_pair(image, 2, 5, False, np.random.default_rng(seed))
        assert before.shape == after.shape == (70, 90, 3) and before[0, 0].tolist() == [5, 5, 0]
        moved = np.unique((after.astype(int) - before)[..., :2].reshape(-1, 2), axis=0)
        assert len(moved) == 1
        seen.add((int(moved[0, 0]), int(moved[0, 1])))
    assert seen == {(a, b) for a in range(-2, 3) for b in range(-2, 3) if max(abs(a), abs(b)) == 2}
    before, after = unchanged_pair(image, 0, 5, True, np.random.default_rng(1))
    assert not np.array_equal(before, after)


def test_shares(tmp_path: Path) -> None:
    """An image equals its copy unless the copy is shifted or recoloured; another seed draws other copies."""
    root = write_pairs(tmp_path / "set", 2, 60, 50)
    files = find_images(root)
    assert [path.parent.name for path in files] == ["A", "A", "B", "B"]
    result = measure(Difference(), files, 2, 0.5, 0)  # type: ignore[arg-type]
    assert result["images"] == 4 and result["pixels"] == 4 * 46 * 56
    assert result["same_colours"][0] == 0 < result["same_colours"][1] <= 1
    assert max(result["other_colours"]) > 0.9  # a colour cast or haze changes nearly every pixel
    assert result["worst"]["share"] >= max(result["same_colours"] + result["other_colours"])
    assert result == measure(Difference(), files, 2, 0.5, 0)  # type: ignore[arg-type]
    assert result != measure(Difference(), files, 2, 0.5, 1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shares_are_those_of_the_detector(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pairs(tmp_path / "set", 1, 72, 64)
    out = tmp_path / "alarms.json"
    arguments = [str(root / "A"), "--shift=1", "--threshold=0.4", f"--checkpoint_path={checkpoint}"]
    assert main([*arguments, f"--json={out}"]) == 0
    result = json.loads(out.read_text())
    image = read_image(find_images(root / "A")[0])[1:-1, 1:-1]
    probability = ChangeDetector(checkpoint).predict(image, image)
    assert result["same_colours"][0] == pytest.approx(np.mean(probability > 0.4))
    assert result["threshold"] == 0.4 and result["checkpoint"]["path"] == str(checkpoint)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "pixels called changed in 1 images and their copies, threshold 0.4"
    assert [line.split()[0] for line in shown[2:4]] == ["0", "1"]
    assert float(shown[2].split()[2].rstrip("%")) == pytest.approx(100 * result["same_colours"][0], abs=0.001)


def test_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    root = write_pairs(tmp_path / "set", 1, 40, 40)
    for arguments, message in (
        ([tmp_path / "none"], "no folder .*none: check the path"),
        ([tmp_path / "empty"], "no images in .*empty: give a folder"),
        ([root, "--shift=-1"], "--shift -1: choose 0 to 64"),
        ([root, "--threshold=1"], "--threshold 1: choose"),
        ([root, "--shift=5"], "is 40x40: too small for a shift of 5 pixels"),
        ([root, f"--checkpoint_path={tmp_path / 'no.pth'}"], "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(argument) for argument in arguments])
