"""The page of an experiment's results: its tables against other computations, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from change.common.errors import UserError
from change.evaluation.bootstrap import bootstrap_runs, paired_difference, pool
from change.experiments.leaderboard import SPEED, SPEED_COLUMNS, main, make_page
from tests import benchmark_leaderboard
from tests.conftest import REPOSITORY
from tests.experiments.board import FACTS, draw_counts, write_board_run

RECALLS = {"bit": 0.6, "prx": 0.7, "unet": 0.69}
GROUPS = [str(i // 2) for i in range(80)]
FOLDERS = sorted({path.parents[1] for path in (REPOSITORY / "docs" / "results").glob("*/*/*.csv")})


def write_board(folder: Path, data: str = "CLCD") -> dict[str, list[NDArray[np.int64]]]:
    """Write three seeds of three networks, and return their counts."""
    counts = {name: [draw_counts(recall, 10 * len(name) + s) for s in range(3)] for name, recall in RECALLS.items()}
    for name, runs in counts.items():
        for seed, each in enumerate(runs):
            config = {**FACTS["config"], "model": name}
            write_board_run(folder, data, name, seed, each, config=config, average_precision=0.5 + seed / 10)
    return counts


def tables(page: str) -> list[list[list[str]]]:
    """Return the cells of every table of a page, without the line below the heading."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if rows]


def f1(counts: NDArray[np.int64]) -> float:
    """Return F1 in percent from counts (N, 4)."""
    tp, fp, fn, _ = counts.sum(0).tolist()
    return float(200 * tp / (2 * tp + fp + fn))


def test_tables(tmp_path: Path) -> None:
    """The best network comes first; scores are means over seeds; differences are those of `paired_difference`."""
    counts = write_board(tmp_path / "board")
    scores, differences = tables(make_page(tmp_path / "board"))
    means = {name: float(np.mean([f1(each) for each in runs])) for name, runs in counts.items()}
    order = sorted(means, key=lambda name: -means[name])
    assert [row[0] for row in scores[1:]] == order and order[-1] == "bit"
    apart = np.arange(80) % 4 != 0
    pooled = {name: np.stack([pool(each, GROUPS) for each in runs]) for name, runs in counts.items()}
    for name, seeds, *cells in scores[1:]:
        intervals = bootstrap_runs(pooled[name])
        low, high = 100 * intervals.low["f1"], 100 * intervals.high["f1"]
        apart_mean = np.mean([f1(each[apart]) for each in counts[name]])
        expected = [f"{means[name]:.2f}", f"{low:.2f} to {high:.2f}", f"{apart_mean:.2f}", "60.00", "25.00"]
        assert seeds == "0, 1, 2" and cells == [*expected, "", "", ""]
    assert differences[0] == ["", *order[1:]] and [row[0] for row in differences[1:]] == [f"**{n}**" for n in order[:2]]
    for i, row in enumerate(differences[1:]):
        for j, cell in enumerate(row[1:], start=1):
            if j <= i:
                assert cell == ""
                continue
            found = paired_difference(pooled[order[j]], pooled[order[i]])
            numbers = [100 * side["f1"] for side in (found.difference, found.low, found.high)]
            text = "{:+.2f} ({:+.2f} to {:+.2f})".format(*numbers)
            assert cell == (f"**{text}**" if found.significant("f1") else text)
    assert "**" in differences[1][-1] and "**" not in differences[1][1]


def test_what_differs_gets_a_column(tmp_path: Path) -> None:
    """What all runs share is in a sentence; crops and devices that differ are in the table."""
    write_board(tmp_path)
    page = make_page(tmp_path)
    assert "Scored: 80 images of val, 60 of them apart from train. Intervals: 40 groups of connected tiles." in page
    shared = "All networks share: encoder: efficientnet_lite0, width 32; first weights: imagenet; recipe: scratch; "
    assert f"{shared}crops: 12,960 of 256; device: cpu, bf16." in page and "Code: 1234567 (torch 2.9.0)." in page
    write_board_run(tmp_path, "CLCD", "stage1", 0, draw_counts(0.5, 5), crops=4320)
    write_board_run(tmp_path, "CLCD", "stage1", 1, draw_counts(0.5, 6), crops=4320, device="cuda")
    page = make_page(tmp_path)
    table = tables(page)[0]
    assert f"{shared[:-2]}." in page and table[0][-2:] == ["crops", "device"]
    assert table[1][-2:] == ["12,960 of 256", "cpu, bf16"]
    assert table[-1][-2:] == ["4,320 of 256", "cpu, bf16 / cuda, bf16"] and table[-1][1] == "0, 1"


def test_what_is_not_known(tmp_path: Path) -> None:
    """Without groups, and with scores that are undefined. What limits the differences is listed once."""
    for name, false in (("bit", 0), ("prx", 9), ("unet", 9)):  # no pixel is truly changed
        counts = np.tile([0, false, 0, 4096 - false], (40, 1))
        write_board_run(tmp_path, "CLCD", name, 0, counts, grouped=False, average_precision=None, trained_on=["a"])
    page = make_page(tmp_path)
    scores, differences = tables(page)
    assert "Scored: 40 images of val. Intervals: 40 images, because there are no groups." in page
    assert [row[0] for row in scores[1:]] == ["prx", "unet", "bit"]
    assert [row[2] for row in scores[1:]] == ["0.00", "0.00", ""] and scores[3][3:7] == ["", "", "", "25.00"]
    assert differences[1][2] == "" and differences[1][1].startswith("+0.00")
    for warning in ("- single run on a side", "- no run names groups", "NOT A TEST SCORE: CLCD/bit_0.csv"):
        assert page.count(warning) == 1


def test_several_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its tables; one network has no differences."""
    write_board(tmp_path)
    write_board_run(tmp_path, "MS-HS-BCD", "bit", 0, draw_counts(0.5, 5))
    page = make_page(tmp_path)
    assert "- [CLCD](#clcd)\n- [MS-HS-BCD](#ms-hs-bcd)\n" in page and len(tables(page)) == 3
    assert main([str(tmp_path)]) == 0 and capsys.readouterr().out == page


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    """The program writes one row per network, from which the page takes parameters, multiply-adds and seconds."""
    write_board_run(tmp_path, "CLCD", "prx", 0, draw_counts(0.5, 5), config={**FACTS["config"], "refine": True})
    write_board_run(tmp_path, "CLCD", "bit", 0, draw_counts(0.5, 5), config={**FACTS["config"], "model": "bit"})
    assert benchmark_leaderboard.main([str(tmp_path), "--size=64", "--rounds=1", "--threads=1"]) == 0
    page = make_page(tmp_path)
    sizes = {row[0]: row[7:9] for row in tables(page)[0][1:]}
    assert sizes == {"prx": ["3.64", "1.17"], "bit": ["3.72", "1.48"]}  # as in docs/networks.md
    assert all(float(row[9]) >= 0 for row in tables(page)[0][1:]) and "Seconds: on " in page
    (tmp_path / SPEED).write_text(f"{','.join(SPEED_COLUMNS)}\nprx,3000000,2000000000,,this\n")
    assert {row[0]: row[7:10] for row in tables(make_page(tmp_path))[0][1:]}["prx"] == ["3.00", "2.00", ""]
    for text in ("network,seconds\nprx,1\n", f"{','.join(SPEED_COLUMNS)}\nprx,x,1,1,this\n"):
        (tmp_path / SPEED).write_text(text)
        with pytest.raises(UserError, match=r"speed\.csv: .*: python -m tests.benchmark_leaderboard writes it anew"):
            make_page(tmp_path)


def test_one_name_for_two_networks(tmp_path: Path) -> None:
    write_board_run(tmp_path, "CLCD", "prx", 0, draw_counts(0.5, 5))
    write_board_run(tmp_path, "other", "prx", 0, draw_counts(0.5, 5), config={**FACTS["config"], "model": "bit"})
    with pytest.raises(UserError, match="give them different names"):
        benchmark_leaderboard.main([str(tmp_path)])


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*/none: python -m change experiment FILE\.toml --results"):
        make_page(tmp_path / "none")
    with pytest.raises(UserError, match="holds no DATA/NETWORK_SEED"):
        make_page(tmp_path)
    write_board(tmp_path)
    other = write_board_run(tmp_path, "CLCD", "bit", 7, draw_counts(0.5, 5), crops=1)
    with pytest.raises(UserError, match=r"bit_0\.csv and CLCD/bit_7\.csv differ in crops \(12960 and 1\): delete one"):
        make_page(tmp_path)
    other.unlink()
    write_board_run(tmp_path, "CLCD", "new", 0, draw_counts(0.5, 5, images=79))
    with pytest.raises(UserError, match="have different images: only one has tile_079"):
        make_page(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_pages(folder: Path) -> None:
    """docs/NAME.md is the page of docs/results/NAME."""
    assert (REPOSITORY / "docs" / f"{folder.name}.md").read_text() == make_page(folder)
