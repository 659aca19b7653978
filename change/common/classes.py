"""Classes of change in masks: their names, and what each becomes if the two dates are swapped.

Such a mask is an 8-bit PNG: 0 is unchanged, 1 to K are classes. ROOT/classes.txt, beside the data, names them: one
class per line, in the order of the mask values 1, 2, ... Unchanged is not listed. Blank lines and lines that begin with
# are ignored. Two forms of lines say what a class becomes if the dates are swapped; other classes stay as they are:
    new <-> vanished    two classes, with two consecutive values, each of which becomes the other
    water -> tree       one class, which becomes "tree -> water", if that is listed too
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from change.common.errors import UserError, list_names
from change.common.files import write_whole
from change.common.names import SPLITS, decode_text

CLASSES = "classes.txt"
MOST = 255  # classes, because masks have 8 bits
SWAP, BECOMES = "<->", "->"
UNCHANGED = "unchanged"
DIRECTIONS = "new <-> vanished"  # the classes of masks that hold directions, and their values:
NEW, VANISHED = 1, 2
ANY = "any"  # the value of --classes that reads all classes as changed


@dataclass(frozen=True)
class Classes:
    """The classes of masks, whose values are 1 to K.

    Attributes:
        names: K names. Mask value v has the name `names[v - 1]`.
        opposites: K + 1 values. Mask value v becomes `opposites[v]` if the dates are swapped; v itself if it has no
            opposite. 0 stays 0.
    """

    names: tuple[str, ...]
    opposites: tuple[int, ...]

    def described(self) -> str:
        """Return the number and the names, as in "2 classes (new, vanished)"."""
        return f"{len(self.names)} classes ({list_names(self.names)})"

    def half_swapped(self, shares: Sequence[float]) -> tuple[float, ...]:
        """Return the shares of the K + 1 mask values after the dates of half of the pairs are swapped."""
        return tuple((shares[value] + shares[opposite]) / 2 for value, opposite in enumerate(self.opposites))

    def as_dict(self) -> dict[str, list[Any]]:
        """Return the fields as lists, for a file. `restore_classes` reads them."""
        return {"names": list(self.names), "opposites": list(self.opposites)}


class MaskClasses(NamedTuple):
    """The classes that masks hold, None for masks without, and whether all of them are read as changed."""

    classes: Classes | None = None
    merged: bool = False


NO_CLASSES = MaskClasses()


def parse_classes(text: str | Iterable[str], source: object = "classes") -> Classes:
    """Parse classes in the form of classes.txt, see above.

    Args:
        text: The content of the file, or its lines.
        source: What to call it in errors.

    Raises:
        UserError: For a name that is empty, listed twice, "unchanged", or holds a comma or unprintable characters; for
            a line with too many arrows; and if the number of classes is 0 or exceeds 255.
    """
    names: list[str] = []
    swapped: dict[int, int] = {}
    for number, line in enumerate(text.splitlines() if isinstance(text, str) else text, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"{source}, line {number}"
        sides = [parse_name(side, place) for side in line.split(SWAP)]
        if len(sides) > 2:
            raise UserError(f"{place}: {line.strip()!r} has more than one {SWAP}: write two classes per line")
        for name in sides:
            if name in names:
                raise UserError(f"{place}: class {name!r} is listed twice: keep one of them")
            names.append(name)
        if len(sides) == 2:
            swapped |= {len(names) - 1: len(names), len(names): len(names) - 1}
    if not 0 < len(names) <= MOST:
        raise UserError(f"{source} lists {len(names)} classes: list 1 to {MOST}, one per line")
    return Classes(tuple(names), find_opposites(names, swapped))


def parse_name(text: str, place: str) -> str:
    """Return a class name with single spaces, also around an arrow. Raises UserError as `parse_classes` does."""
    parts = [" ".join(part.split()) for part in text.split(BECOMES)]
    name = f" {BECOMES} ".join(parts)
    if not all(parts):
        raise UserError(f"{place}: {text.strip()!r} lacks a name: write a name on both sides of an arrow")
    if len(parts) > 2:
        raise UserError(f"{place}: class {name!r} has more than one {BECOMES}: name two land covers")
    if "," in name or not name.isprintable():
        raise UserError(f"{place}: class {name!r} holds a comma or unprintable characters: choose another name")
    if name.casefold() == UNCHANGED:
        raise UserError(f"{place}: {name} is not listed, because it is mask value 0: remove the line")
    return name


def find_opposites(names: Sequence[str], swapped: dict[int, int]) -> tuple[int, ...]:
    """Return what the values 0 to K become if the dates are swapped. `swapped` holds those that <-> determines."""
    opposites = list(range(len(names) + 1))
    for value, name in enumerate(names, start=1):
        reverse = f" {BECOMES} ".join(reversed(name.split(f" {BECOMES} ")))
        other = names.index(reverse) + 1 if reverse in names else value
        if value in swapped:
            opposites[value] = swapped[value]
        elif other not in swapped:
            opposites[value] = other
    return tuple(opposites)


def format_classes(classes: Classes) -> str:
    """Return the content of classes.txt. `parse_classes` returns the same classes for it."""
    automatic = find_opposites(classes.names, {})
    lines: list[str] = []
    for value, name in enumerate(classes.names, start=1):
        opposite = classes.opposites[value]
        if opposite < value and opposite != automatic[value]:  # the second of two
            lines[-1] += f" {SWAP} {name}"
        else:
            lines.append(name)
    text = "".join(f"{line}\n" for line in lines)
    assert parse_classes(text) == classes, f"classes.txt cannot express {classes}"
    return text


def read_classes(root: Path) -> Classes | None:
    """Read ROOT/classes.txt; None if there is no such file. Raises UserError as `parse_classes` does."""
    path = root / CLASSES
    if not path.is_file():
        return None
    return parse_classes(decode_text(path.read_bytes(), path), path)


def write_classes(root: Path, classes: Classes) -> None:
    """Write ROOT/classes.txt. Raises UserError if it exists and lists other classes, or cannot be written."""
    there = read_classes(root)
    if there is None:
        write_whole(root / CLASSES, format_classes(classes).encode())
    elif there != classes:
        raise UserError(f"{root / CLASSES} lists other classes: choose another folder, or remove it")


def restore_classes(stored: Mapping[str, Any] | None) -> Classes | None:
    """Make classes from the dict of a file. Raises KeyError, TypeError or ValueError for others."""
    if stored is None:
        return None
    names, opposites = tuple(str(name) for name in stored["names"]), tuple(int(value) for value in stored["opposites"])
    if len(opposites) != 1 + len(names) or not set(opposites) <= set(range(1 + len(names))):
        raise ValueError(f"the classes {names} with the opposites {opposites}")
    return Classes(names, opposites)


def find_classes(root: Path) -> Classes | None:
    """Read classes.txt of a data folder, or of the folder above if `root` is that of a split; None if there is none.

    Raises UserError as `parse_classes` does.
    """
    root = root.resolve()
    return read_classes(root) or (read_classes(root.parent) if root.name in SPLITS else None)


def choose_classes(root: Path, text: str) -> MaskClasses:
    """Return how the masks of a data folder are read.

    Args:
        root: the data folder, or that of a split.
        text: the value of --classes: "" for the classes of classes.txt, "any" to read all of them as changed, or the
            lines of classes.txt, separated by commas.

    A single class tells no more than changed from unchanged, so its masks are read like those of several classes with
    "any".

    Raises:
        UserError: "any" without a classes.txt, or classes other than those in classes.txt.
    """
    there = find_classes(root)
    if text.strip() == ANY:
        if there is None:
            raise UserError(f"--classes {ANY}: {root} has no {CLASSES}, which lists the classes of its masks: write it")
        return MaskClasses(there, merged=True)
    chosen = parse_classes(text.split(","), f'--classes "{text}"') if text else there
    if chosen is None:
        return NO_CLASSES
    if there is not None and chosen != there:
        raise UserError(
            f'--classes "{text}" gives other classes than {CLASSES} of {root}, which lists {there.described()}: '
            "leave it out, or correct the file"
        )
    return MaskClasses(chosen, merged=len(chosen.names) == 1)
