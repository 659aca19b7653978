"""Names of splits, files by stem, lists of names, and the order of names."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePath

from change.common.errors import UserError, list_names

SPLITS = ("train", "val", "test")


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Find the files of a folder by stem, sorted by name; hidden files are left out.

    Args:
        folder: An existing folder.
        suffixes: The suffixes that count, in lower case and with the dot. Those of the files may be in upper case.

    Raises:
        UserError: If two files share a stem, or a name is not printable text.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(f"{folder}: {files[path.stem].name} and {path.name} share a stem; keep one of them")
        if not path.name.isprintable():
            raise UserError(f"{folder}: the name {path.name!r} is not printable text; rename the file")
        files[path.stem] = path
    return files


def decode_text(data: bytes, source: object) -> str:
    """Decode text that a user wrote: UTF-8, or UTF-16 with a byte order mark, as editors and spreadsheets save it.

    `source` is the name of the text in errors. Raises UserError for other encodings.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not text in UTF-8: save it with that encoding") from error
    if text.count("\0") > len(text) / 4:  # UTF-16 without a mark
        raise UserError(f"{source} is not text in UTF-8: save it with that encoding")
    return text


def read_list(path: Path, suffixes: Collection[str], stems: Collection[str] = ()) -> list[str]:
    """Read the stems from a list of files, as `parse_list` does.

    Raises:
        UserError: If the file is missing, empty or not in UTF-8, or names a stem twice.
    """
    if not path.is_file():
        raise UserError(f"no list {path}: it names the pairs of a split, one per line")
    names = parse_list(decode_text(path.read_bytes(), path), suffixes, path, stems=stems)
    if not names:
        raise UserError(f"{path} is empty: it names the pairs of a split, one per line")
    return names


def parse_list(
    text: str, suffixes: Collection[str], source: object, drop_folders: bool = False, stems: Collection[str] = ()
) -> list[str]:
    """Parse a list of files: one name per line, with or without a suffix.

    Args:
        text: The content of the list. Blank lines, comments that begin with #, and white space around names are
            ignored.
        suffixes: The suffixes that are removed, in lower case and with the dot.
        source: What to call the list in errors.
        drop_folders: Whether folders are removed too, from names with a suffix ("A/1.png" gives "1", not "A/1").
        stems: The stems of the files that exist. One of them is taken as it is: "1.tif" if there is a file 1.tif.png.

    Returns:
        The stems, in the order of the list.

    Raises:
        UserError: If a stem occurs twice.
    """
    names: list[str] = []
    for line in text.splitlines():
        name = line.strip()
        path = PurePath(name)
        if drop_folders and path.name in stems:
            name = path.name
        elif name not in stems and path.suffix.lower() in suffixes:
            name = path.stem if drop_folders else name.removesuffix(path.suffix)
        if name in stems or (name and not name.startswith("#")):
            names.append(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source} has duplicate names: {list_names(twice)}; keep one of each")
    return names


def natural_order(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts numbers by value: train_2 before train_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall("([^0-9]*)([0-9]*)", name)]
