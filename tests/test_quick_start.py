"""The quick start with the default checkpoint, as a new user runs it; and the checkpoints that come with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint
from change.common.images import image_hash, read_image
from change.data.masks import read_mask
from tests.conftest import REPOSITORY
from tests.scripts import command_of, perform, run_script
from tests.synthetic.test_render import otsu_f1

SAMPLES = REPOSITORY / "test_samples"
SCENE_PASSES = ["base", "refine", "refine+cross"]
CHECKPOINT, LAND, SCENES = (REPOSITORY / "checkpoints" / f"{n}_r18.pth" for n in ("buildings", "land", "prx_change"))


@pytest.mark.slow
def test_quick_start(tmp_path: Path) -> None:
    """In a real process, from inside test_script: it finds the changes; Otsu's threshold on differences does not."""
    values = {"save_path": tmp_path / "qs", "device": "cpu"}
    result = run_script("test_script/quick_start.sh", REPOSITORY / "test_script", **values)
    assert result.returncode == 0, result.stderr
    assert "The network is PRX-Change with ResNet-18, checkpoints/buildings_r18.pth." in result.stdout
    metrics = json.loads((tmp_path / "qs" / "metrics.json").read_text())
    assert metrics["scores"]["f1"] >= 0.85
    assert metrics["trained_on"] == []
    stems = {path.stem for path in (SAMPLES / "A").iterdir()}
    assert len(stems) == 3
    report = tmp_path / "qs" / "report.html"
    assert f"open {report} in a browser" in result.stdout
    assert all(stem in report.read_text(encoding="utf-8") for stem in stems)
    for folder in ("pred", "iou_map", "panels"):
        assert {path.stem for path in (tmp_path / "qs" / folder).iterdir()} == stems
    triples = [
        (read_image(pair.before), read_image(pair.after), read_mask(pair.mask, binary=False))
        for pair in find_split(SAMPLES, "").pairs
        if pair.mask
    ]
    before, after, mask = (np.concatenate(parts) for parts in zip(*triples, strict=True))
    assert before.shape[1:] == (1024, 3)
    assert otsu_f1(before, after, mask) <= 0.3


@pytest.mark.slow
def test_quick_start_on_pairs_without_labels(tmp_path: Path) -> None:
    for sub in ("A", "B"):
        (tmp_path / "mine" / sub).mkdir(parents=True)
        picture = next((SAMPLES / sub).iterdir())
        shutil.copy(picture, tmp_path / "mine" / sub)
    values = {"test_root": tmp_path / "mine", "save_path": tmp_path / "out", "testsize": 64, "device": "cpu"}
    perform(command_of("test_script/quick_start.sh", tmp_path, **values), tmp_path)
    assert (tmp_path / "out" / "panels").is_dir() and not (tmp_path / "out" / "iou_map").exists()


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        (SCENES, SCENE_PASSES),
        (CHECKPOINT, [*SCENE_PASSES, "refine+cross"]),
        (LAND, [*SCENE_PASSES, "refine+cross", "refine+cross"]),
    ],
)
def test_checkpoints_know_what_they_have_seen(path: Path, passes: list[str]) -> None:
    """They name their passes, none of which saw the test samples; they are small, and hold no paths of a machine."""
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size < 18e6
    assert [record.name for record in checkpoint.lineage] == passes
    assert checkpoint.knows_its_images()
    pairs = find_split(SAMPLES, "").pairs
    shown = {image_hash(read_image(path)) for pair in pairs for path in (pair.before, pair.after)}
    assert not shown & checkpoint.trained_on()
    assert not any("/" in str(value) for record in checkpoint.lineage for value in record.options.values())
