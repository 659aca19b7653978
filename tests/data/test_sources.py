"""What tiles were cut from: recorded by prepare, taken into the lineage, and looked up by test.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest

from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint
from change.common.errors import UserError
from change.common.images import image_hash, read_image
from change.data import prepare
from change.data.sources import hashes_of_sources, read_sources, sources_of, write_sources
from change.experiments.buildings_data import add_pairs
from tests.conftest import run_program, train_arguments, write_pairs
from tests.evaluation.programs import read_csv

FOLDERS = ("--before", "A", "--after", "B", "--label", "label")


def hashes(folder: Path, stem: str) -> tuple[str, str]:
    """Return the hashes of the images of a pair, as a split reads them."""
    before, after = (image_hash(read_image(next((folder / date).glob(f"{stem}.*")))) for date in "AB")
    return before, after


def cut(source: Path, root: Path, tile: int = 64) -> Path:
    """Cut a data set into tiles."""
    lists = ["--list_path", str(root / "lists")]
    assert prepare.main(["mine", str(source), str(root), *FOLDERS, "--tile", str(tile), *lists]) == 0
    return root


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Write three train pairs, one of them with a palette, and two val pairs, of 128 x 96 pixels."""
    write_pairs(tmp_path / "whole" / "train", 3, 128, 96, seed=1)
    write_pairs(tmp_path / "whole" / "val", 2, 128, 96, seed=2)
    path = tmp_path / "whole" / "train" / "A" / "1.png"
    with PIL.Image.open(path) as image:
        image.quantize(64).save(path)
    return tmp_path / "whole"


def test_prepare_records_what_tiles_were_cut_from(whole: Path, tmp_path: Path) -> None:
    """Also if it is run again, and for a folder that joins tiles under other names."""
    root = cut(whole, tmp_path / "tiles")
    for _ in range(2):
        found = read_sources(root / "train")
        assert len(found) == 12 and found["1_32_64"] == hashes(whole / "train", "1")
        assert sources_of(find_split(root, "train")) == found
        expected = {digest for stem in "012" for digest in hashes(whole / "train", stem)}
        assert set(hashes_of_sources(find_split(root, "train"))) == expected
        cut(whole, root)
    add_pairs(tmp_path / "joined", root / "train", "x")
    add_pairs(tmp_path / "joined", write_pairs(tmp_path / "others", 1, seed=3), "y")
    assert sources_of(find_split(tmp_path / "joined", "")) == {f"x_{stem}": pair for stem, pair in found.items()}


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    assert read_sources(tmp_path) == {}
    write_sources(tmp_path, {"a": ("1", "2")})
    write_sources(tmp_path, {"b": ("3", "4")})
    assert read_sources(tmp_path) == {"a": ("1", "2"), "b": ("3", "4")}
    for content in ("{", "[]", '{"a": 1}', '{"a": ["1"]}'):
        (tmp_path / "sources.json").write_text(content)
        with pytest.raises(UserError, match=r"sources\.json is damaged"):
            read_sources(tmp_path)


@pytest.mark.slow
def test_images_are_followed_through_tiles(whole: Path, tmp_path: Path) -> None:
    """A whole image whose tiles were trained on is named, and so are its tiles of another size."""
    tiles = cut(whole, tmp_path / "tiles")
    result = run_program("train.py", *train_arguments(tiles, tmp_path / "run", epoch=1))
    assert result.returncode == 0, result.stderr
    (record,) = load_checkpoint(tmp_path / "run" / "1.pth").lineage
    assert len(record.images) == 24 and len(record.sources) == 6
    both = tmp_path / "both"
    shutil.copytree(whole / "val", both)
    for kind in ("A", "B", "label"):
        shutil.copy(whole / "train" / kind / "2.png", both / kind / "seen.png")
    others = cut(whole, tmp_path / "others", tile=96)
    for root, seen, count in (
        (both, ["seen"], 3),
        (whole / "train", ["0", "1", "2"], 3),
        (others / "train", ["0_0_0", "0_0_32", "1_0_0", "1_0_32", "2_0_0", "2_0_32"], 6),
        (others / "val", [], 4),
    ):
        out = tmp_path / "out" / root.parent.name / root.name
        weights = f"--checkpoint_path={tmp_path / 'run' / '1.pth'}"
        result = run_program("test.py", f"--test_root={root}", weights, f"--save_path={out}", "--device=cpu")
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["trained_on"] == seen and metrics["trained_on_unknown"] == count - len(seen)
        column = {row["image"]: row["trained_on"] for row in read_csv(out / "images.csv")}
        assert column == {name: "True" if name in seen else "unknown" for name in column}
        assert ("NOT A TEST SCORE" in result.stdout) == bool(seen)
        assert ("trained on these pairs: unknown; no training image has the same" in result.stdout) != bool(seen)
