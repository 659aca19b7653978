"""Files by stem, lists of names, and the order of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePath

from change.common.errors import UserError, list_names


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


def read_list(path: Path, suffixes: Collection[str]) -> list[str]:
    """Read the stems from a list of files, as `parse_list` does.

    Raises:
        UserError: If the file is missing or empty, or names a stem twice.
    """
    if not path.is_file():
        raise UserError(f"no list {path}: it names the pairs of a split, one per line")
    # A name in another encoding is replaced here, and later reported as having no file.
    names = parse_list(path.read_text(encoding="utf-8-sig", errors="replace"), suffixes, path)
    if not names:
        raise UserError(f"{path} is empty: it names the pairs of a split, one per line")
    return names


def parse_list(text: str, suffixes: Collection[str], source: object, drop_folders: bool = False) -> list[str]:
    """Parse a list of files: one name per line, with or without a suffix.

    Args:
        text: The content of the list. Blank lines and white space around names are ignored.
        suffixes: The suffixes that are removed, in lower case and with the dot.
        source: What to call the list in errors.
        drop_folders: Whether folders are removed too, from names with a suffix ("A/1.png" gives "1", not "A/1").

    Returns:
        The stems, in the order of the list.

    Raises:
        UserError: If a stem occurs twice.
    """
    names: list[str] = []
    for line in text.splitlines():
        name = line.strip()
        path = PurePath(name)
        if path.suffix.lower() in suffixes:
            name = path.stem if drop_folders else name.removesuffix(path.suffix)
        if name:
            names.append(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source} has duplicate names: {list_names(twice)}; keep one of each")
    return names


def natural_order(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts numbers by value: train_2 before train_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall("([^0-9]*)([0-9]*)", name)]
