"""classes.txt: the names of classes, what they become under swapped dates, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from change.common import bands, classes
from change.common.classes import (
    Classes,
    MaskClasses,
    choose_classes,
    parse_classes,
    read_classes,
    restore_classes,
    write_classes,
)
from change.common.errors import UserError
from models.config import MOST_CHANNELS, MOST_CLASSES

CASES = {
    "plain": ("new\nvanished\n", ("new", "vanished"), (0, 1, 2)),
    "opposites": ("new <-> vanished", ("new", "vanished"), (0, 2, 1)),
    "comments": ("# houses\n\n  new<->vanished \nroad\n", ("new", "vanished", "road"), (0, 2, 1, 3)),
    "from-to": (
        "water -> tree\nbuilding -> building\ntree->water\ntree -> building\n",
        ("water -> tree", "building -> building", "tree -> water", "tree -> building"),
        (0, 3, 2, 1, 4),
    ),
    "both arrows": ("a -> b <-> x\nb -> a\n", ("a -> b", "x", "b -> a"), (0, 2, 1, 3)),
    "one by one": ("a -> b <-> b -> a\nc", ("a -> b", "b -> a", "c"), (0, 2, 1, 3)),
}


@pytest.mark.parametrize(("text", "names", "opposites"), CASES.values(), ids=CASES)
def test_parse_and_write(tmp_path: Path, text: str, names: tuple[str, ...], opposites: tuple[int, ...]) -> None:
    """What is parsed is written in a form that is parsed to the same; swapping the dates twice changes nothing."""
    classes = parse_classes(text)
    assert classes == Classes(names, opposites)
    assert [opposites[opposite] for opposite in opposites] == [*range(len(names) + 1)]
    write_classes(tmp_path, classes)
    assert read_classes(tmp_path) == classes


def test_lines_and_encodings(tmp_path: Path) -> None:
    assert parse_classes(["new", "vanished"]) == parse_classes("new\nvanished")
    assert read_classes(tmp_path) is None
    (tmp_path / "classes.txt").write_bytes("forêt -> ville\r\nville -> forêt\r\n".encode("utf-16"))
    assert read_classes(tmp_path) == Classes(("forêt -> ville", "ville -> forêt"), (0, 2, 1))
    most = parse_classes(map(str, range(255)))
    assert len(most.names) == 255 and len(most.opposites) == 256


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "classes lists 0 classes: list 1 to 255"),
        ("\n".join(map(str, range(256))), "classes lists 256 classes"),
        ("new\n\nnew", "classes, line 3: class 'new' is listed twice"),
        ("new <-> new", "line 1: class 'new' is listed twice"),
        ("new <->", "line 1: '' lacks a name"),
        ("water ->", "line 1: 'water ->' lacks a name"),
        ("a <-> b <-> c", "line 1: 'a <-> b <-> c' has more than one <->"),
        ("a -> b -> c", "line 1: class 'a -> b -> c' has more than one ->"),
        ("new, vanished", "line 1: class 'new, vanished' holds a comma"),
        ("new\x07", "holds a comma or unprintable"),
        ("Unchanged\nnew", "line 1: Unchanged is not listed, because it is mask value 0"),
    ],
)
def test_refused(text: str, error: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_classes(text)
    assert error in str(refusal.value) and "\n" not in str(refusal.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("new\nnew\n")
    with pytest.raises(UserError, match=r"classes\.txt, line 2: class 'new' is listed twice"):
        read_classes(tmp_path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"classes\.txt is not text in UTF-8"):
        read_classes(tmp_path)
    path.write_text("new\n")
    with pytest.raises(UserError, match=r"classes\.txt lists other classes: choose another folder"):
        write_classes(tmp_path, parse_classes("vanished"))
    assert path.read_text() == "new\n"


def test_which_classes_the_masks_of_a_folder_hold(tmp_path: Path) -> None:
    """Those of classes.txt, also beside the folder of a split, or those of --classes."""
    root = tmp_path / "data"
    (root / "test").mkdir(parents=True)
    assert choose_classes(root, "") == choose_classes(root / "test", "") == MaskClasses()
    chosen = choose_classes(root, "new<->vanished, roof")
    assert chosen == MaskClasses(Classes(("new", "vanished", "roof"), (0, 2, 1, 3)))
    with pytest.raises(UserError, match=r"--classes any: .*data has no classes\.txt"):
        choose_classes(root, "any")
    write_classes(root, Classes(("a", "b"), (0, 1, 2)))
    assert choose_classes(root, "") == choose_classes(root / "test", "") == choose_classes(root, "a,b")
    assert choose_classes(root / "test", "any") == MaskClasses(Classes(("a", "b"), (0, 1, 2)), merged=True)
    assert choose_classes(root / "other", "") == MaskClasses()  # not a split
    with pytest.raises(UserError, match=r'--classes "b,a" gives other classes than classes\.txt of .* lists 2 classes'):
        choose_classes(root, "b,a")


def test_a_single_class_is_changed(tmp_path: Path) -> None:
    assert choose_classes(tmp_path, "house").merged


def test_shares_after_swaps() -> None:
    """Opposites get their mean; other classes and unchanged keep their share."""
    classes = parse_classes(["new <-> vanished", "recoloured"])
    assert classes.half_swapped([0.4, 0.3, 0.1, 0.2]) == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_classes_in_a_file() -> None:
    classes = parse_classes(["new<->vanished", "tree -> road", "road -> tree"])
    assert restore_classes(classes.as_dict()) == classes and restore_classes(None) is None
    with pytest.raises(ValueError, match="with the opposites"):
        restore_classes({"names": ["a"], "opposites": [0, 2]})


def test_data_and_networks_have_the_same_limits() -> None:
    """Neither package may import the other, so each has its own constants."""
    assert (classes.MOST, bands.MOST) == (MOST_CLASSES, MOST_CHANNELS)
