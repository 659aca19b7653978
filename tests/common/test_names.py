"""Files by stem, and lists of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from change.common.errors import UserError
from change.common.names import files_by_stem, natural_order, parse_list, read_list

SUFFIXES = (".png", ".tif")


def test_files_by_stem(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.b.tif", "c.jpg", ".d.png", "e"):
        (tmp_path / name).touch()
    assert {stem: path.name for stem, path in files_by_stem(tmp_path, SUFFIXES).items()} == {
        "a.b": "a.b.tif",
        "b": "b.PNG",
    }
    (tmp_path / "b.tif").touch()
    with pytest.raises(UserError, match=r"b\.PNG and b\.tif share a stem"):
        files_by_stem(tmp_path, SUFFIXES)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").touch()
    with pytest.raises(UserError, match=r"'a\\nb\.png' is not printable text"):
        files_by_stem(tmp_path, SUFFIXES)


@pytest.mark.parametrize(("drop_folders", "first"), [(False, "A/1"), (True, "1")])
def test_lists(drop_folders: bool, first: str) -> None:
    text = "A/1.png\r\n\n 2.TIF \nB/3\n4.jpg\n5.b\n"
    assert parse_list(text, SUFFIXES, "LIST", drop_folders) == [first, "2", "B/3", "4.jpg", "5.b"]


def test_duplicate_names_and_empty_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"LIST has duplicate names: 2, 1; keep one of each$"):
        parse_list("2\n1\n3\n1.png\n2\n1.tif", SUFFIXES, "LIST")
    path = tmp_path / "list.txt"
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"list\.txt is empty"):
        read_list(path, SUFFIXES)
    with pytest.raises(UserError, match=r"no list .*none\.txt"):
        read_list(tmp_path / "none.txt", SUFFIXES)


def test_natural_order() -> None:
    assert sorted(["a10", "a2", "b1", "a2b10", "a2b9"], key=natural_order) == ["a2", "a2b9", "a2b10", "a10", "b1"]
