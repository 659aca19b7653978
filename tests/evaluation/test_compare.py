"""`python -m change compare`: scores, warnings and errors."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from change.common.errors import UserError
from change.evaluation.bootstrap import paired_difference, pool
from change.evaluation.compare import COUNTS, read_run
from tests.conftest import run_verb

pytestmark = pytest.mark.slow


def run_compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_verb("compare", *arguments)


def draw_images(recall: float, count: int = 60, seed: int = 0) -> NDArray[np.int64]:
    """Draw counts of images of 4096 pixels; the number of changed pixels does not depend on recall and seed."""
    true = np.random.default_rng(99).integers(50, 400, count)
    rng = np.random.default_rng(seed)
    tp, fp = rng.binomial(true, recall), rng.integers(0, 60, count)
    return np.stack((tp, fp, true - tp, 4096 - true - fp), axis=1)


def write_run(
    folder: Path,
    counts: NDArray[np.int64],
    groups: list[str] | None = None,
    fingerprint: str | None = None,
    trained_on: list[str] | None = None,
    bands: list[str] | None = None,
    **protocol: object,
) -> Path:
    """Write the files of a run of test.py, as far as they are read; files of early versions have no groups."""
    folder.mkdir()
    rows: list[dict[str, object]] = [
        {"image": f"tile_{i:03}", "predicted_share": "0.1", **dict(zip(COUNTS, row, strict=True))}
        for i, row in enumerate(counts.tolist())
    ]
    for row, group in zip(rows, groups or [], strict=False):
        row["group"] = group
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data: dict[str, object] = {"split": "val", **({"fingerprint": fingerprint} if fingerprint else {})}
    if bands:
        data["bands"] = bands
    metrics = {
        "trained_on": trained_on or [],
        "protocol": {"threshold": 0.5, "device": "cpu", **protocol},
        "data": data,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_finds_a_difference_and_writes_it(tmp_path: Path) -> None:
    """Groups of four tiles and three seeds on one side give what the function gives."""
    a, b = [draw_images(0.6, seed=s) for s in (1, 2, 3)], draw_images(0.7, seed=4)
    groups = [f"place {i // 4}" for i in range(60)]
    folders = [write_run(tmp_path / f"a{i}", counts, groups, device="cuda:0") for i, counts in enumerate(a)]
    other = write_run(tmp_path / "b", b)
    result = run_compare(",".join(map(str, folders)), other, "--json", tmp_path / "out" / "compare.json")
    assert result.returncode == 0, result.stderr
    assert "60 images, 15 groups resampled 10000 times" in result.stdout
    assert "15 are too few" in result.stdout and "single run on a side" in result.stdout
    assert result.stdout.count("warning: ") == 2 and result.stderr == ""
    expected = paired_difference(np.stack([pool(counts, groups) for counts in a]), pool(b, groups)[None])
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(written["scores"]) == ["f1", "iou", "precision", "recall"]
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    for name, score in written["scores"].items():
        sides = (expected.a, expected.b, expected.difference, expected.low, expected.high)
        assert [score[key] for key in ("a", "b", "difference", "low", "high")] == [side[name] for side in sides]
        assert score["significant"] is None  # 15 groups are too few to tell
        assert f"{100 * score['difference']:+.2f}" in lines[name]
    assert "significant" not in result.stdout
    assert expected.significant("recall") and written["scores"]["recall"]["difference"] > 0.08
    assert (written["unit"], written["units"], written["too_few"], written["images"]) == ("groups", 15, True, 60)
    assert len(written["warnings"]) == 2 and written["a"] == [str(folder) for folder in folders]


@pytest.mark.parametrize(("units", "told"), [(30, True), (29, False)])
def test_a_verdict_needs_enough_units(tmp_path: Path, units: int, told: bool) -> None:
    """With 30 units or more, each difference is called significant or not, as its interval says."""
    a, b = draw_images(0.6, units), draw_images(0.9, units, seed=4)
    folders = [write_run(tmp_path / "a", a), write_run(tmp_path / "b", b)]
    result = run_compare(*folders, "--json", tmp_path / "compare.json")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "compare.json").read_text())
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    for name, score in written["scores"].items():
        apart = score["low"] > 0 or score["high"] < 0
        assert score["significant"] == (apart if told else None)
        assert lines[name].endswith(", significant") == (told and apart)
        assert lines[name].endswith(", not significant") == (told and not apart)
    assert (f"{units} are too few units" in result.stdout) == (not told)


def test_folds_are_one_run(tmp_path: Path) -> None:
    """Two folds per side score as the whole does; folds must not share images or be tested differently."""
    groups = [f"place {i // 4}" for i in range(60)]
    for side, recall in (("a", 0.6), ("b", 0.7)):
        counts = draw_images(recall, seed=len(groups))
        write_run(tmp_path / side, counts, groups, fingerprint="whole")
        for fold, (start, stop) in enumerate(((32, 60), (0, 32))):
            path = write_run(tmp_path / f"{side}{fold}", counts, groups, fingerprint=str(fold))
            rows = (path / "images.csv").read_text().splitlines(keepends=True)
            (path / "images.csv").write_text("".join([rows[0], *rows[1 + start : 1 + stop]]))
    a, b = (f"{tmp_path / side}0+{tmp_path / side}1" for side in "ab")
    result = run_compare(a, b, "--json", tmp_path / "folds.json")
    assert result.returncode == 0, result.stderr
    assert run_compare(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "whole.json").returncode == 0
    folds, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("folds", "whole"))
    assert folds["scores"] == whole["scores"] and folds["units"] == whole["units"] == 15
    assert "folds must not share images, but these share tile_032" in refused(f"{tmp_path / 'a'}0+{tmp_path / 'a'}", b)
    assert run_compare(a, f"{tmp_path / 'b'}1+{tmp_path / 'b'}0").returncode == 0
    path = write_run(tmp_path / "other", draw_images(0.6), threshold=0.4)
    assert "tested differently: threshold" in refused(f"{tmp_path / 'a'}0+{path}", b)


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    """Images without a group are units of their own, even if their name is that of a group."""
    groups = ["tile_001", "tile_001", *[""] * 58]
    run = write_run(tmp_path / "a", draw_images(0.6), groups)
    result = run_compare(run, run, "--json", tmp_path / "compare.json")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "compare.json").read_text())
    assert (written["units"], written["too_few"]) == (59, False)
    assert all(not score["significant"] and score["low"] == 0 == score["high"] for score in written["scores"].values())
    plain = write_run(tmp_path / "b", draw_images(0.6))
    without = run_compare(plain, plain).stdout
    assert "60 images, 60 images resampled" in without and "no run names groups" in without
    assert "no run names groups" not in result.stdout


def test_a_score_that_is_undefined(tmp_path: Path) -> None:
    counts = np.tile([0, 0, 0, 4096], (40, 1))
    a, b = (write_run(tmp_path / name, counts) for name in "ab")
    result = run_compare(a, b, "--json", tmp_path / "compare.json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "compare.json").read_text())["scores"]["f1"]["difference"] is None


def test_warnings(tmp_path: Path) -> None:
    groups = [str(i // 2) for i in range(60)]
    a = write_run(tmp_path / "a", draw_images(0.6), groups, trained_on=["tile_003"], name="whole", device="cpu")
    b = write_run(tmp_path / "b", draw_images(0.7), [*groups[:59], "x"], threshold=0.45, tta="d4", device="mps")
    result = run_compare(a, b)
    assert result.returncode == 0, result.stderr
    assert f"NOT A TEST SCORE: {a} has images that were trained on: tile_003" in result.stdout
    assert "tested differently: threshold (0.5 and 0.45), name (whole and None), tta (None and d4)" in result.stdout
    assert f"{b} has other groups than {a}; those of {a} are used" in result.stdout
    assert "device" not in result.stdout


def refused(*arguments: object) -> str:
    """Run a comparison that must fail, and return its error."""
    result = run_compare(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    counts = draw_images(0.6)
    a = write_run(tmp_path / "a", counts, fingerprint="1")
    fewer = write_run(tmp_path / "fewer", counts[:-2])
    assert "only one has tile_058, tile_059" in refused(a, fewer)
    assert "only one has tile_058, tile_059" in refused(f"{a},{fewer}", a)
    relabelled, larger = counts.copy(), counts.copy()
    relabelled[7] += (1, -1, 0, 0)
    larger[8, 3] += 100
    for name, other, tile in (("relabelled", relabelled, "tile_007"), ("larger", larger, "tile_008")):
        assert f"differ in the changed pixels or the size of {tile};" in refused(
            a, write_run(tmp_path / name, other, fingerprint="2")
        )
    assert "data.fingerprint differs" in refused(a, write_run(tmp_path / "b", counts, fingerprint="2"))
    assert run_compare(a, write_run(tmp_path / "old", counts)).returncode == 0
    red = write_run(tmp_path / "red", counts, fingerprint="3", bands=["red"])
    both = write_run(tmp_path / "both", counts, fingerprint="4", bands=["red", "nir"])
    assert run_compare(red, both).returncode == 0  # other pixels, as they should be
    assert "data.fingerprint differs" in refused(red, write_run(tmp_path / "other", counts, None, "5", [], ["red"]))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.json", None, "no file"),
        ("images.csv", None, "no file"),
        ("metrics.json", '{"protocol": ', "is not what test.py writes"),
        ("metrics.json", "[]", "is not what test.py writes"),
        ("metrics.json", '{"protocol": {}}', "is not what test.py writes"),
        ("images.csv", "image,predicted_share\n1,0.5\n", "tested without labels"),
        ("images.csv", "name,tp,fp,fn,tn\n1,1,2,3,4\n", "is not what test.py writes"),
        ("images.csv", "image,tp,fp,fn\n1,1,2,3\n", "is not what test.py writes"),
        ("images.csv", "image,tp,fp,fn,tn\n1,1,2,3,x\n", "is not what test.py writes"),
        ("images.csv", "image,tp,fp,fn,tn\n1,1,2,3\n", "is not what test.py writes"),
        ("images.csv", f"image,tp,fp,fn,tn\n1,1,2,3,{10**30}\n", "is not what test.py writes"),
        ("images.csv", "image,tp,fp,fn,tn\n1,1,2,3,4\n1,1,2,3,4\n", "or one image twice"),
        ("images.csv", "image,tp,fp,fn,tn\n", "no image"),
        ("images.csv", "\x00\xff", "is not what test.py writes"),
    ],
)
def test_damaged_runs(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    folder = write_run(tmp_path / "run", draw_images(0.6))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as error:
        read_run(folder)
    assert said in str(error.value) and str(folder / file) in str(error.value)


def test_wrong_arguments(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", draw_images(0.6))
    assert "no file" in refused(a, tmp_path / "nothing")
    assert "RUN_B" in refused(a)
