"""The files of a download: a folder, a zip file or a folder of zip files, walked and read as one tree."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Protocol
from zipfile import BadZipFile, ZipFile, ZipInfo

from change.common.errors import UserError
from change.common.files import write_whole

ZIP_ERRORS = (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError)  # what zipfile raises for damage

Folder = tuple[str, ...]  # the parts of a folder's path, in lower case


class Content(Protocol):
    """Content of a file in the layout for training: a `File` of a download, or a mask made from several files."""

    @property
    def name(self) -> str:
        """The file's name, without folders."""

    def read(self) -> bytes:
        """Return the content."""

    def same(self, target: Path) -> bool:
        """Tell whether the file `target` has the same content."""

    def put(self, target: Path) -> str:
        """Make the file `target`; return how, in a word or two."""


@dataclass(frozen=True)
class File:
    """A file of a download: on disk, or an entry of the zip file `path`."""

    path: Path
    entry: tuple[ZipFile, ZipInfo] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.entry[1].filename}" if self.entry else str(self.path)

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return PureWindowsPath(self.entry[1].filename).name if self.entry else self.path.name

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.entry[1].file_size if self.entry else self.path.stat().st_size

    def read(self) -> bytes:
        """Read the content. Raises UserError for a damaged entry."""
        if self.entry is None:
            return self.path.read_bytes()
        try:
            return self.entry[0].read(self.entry[1])
        except ZIP_ERRORS as error:
            raise UserError(f"{self} cannot be read ({error}): download it again, or unpack it yourself") from error

    def same(self, target: Path) -> bool:
        """Tell whether the file `target` has the same content."""
        if self.entry is None:
            return target.samefile(self.path) or filecmp.cmp(self.path, target, shallow=False)
        return target.stat().st_size == self.size and zlib.crc32(target.read_bytes()) == self.entry[1].CRC

    def put(self, target: Path) -> str:
        """Make `target` as a hard link or a copy; return "linked", "copied" or "from zip"."""
        if self.entry is None:
            with contextlib.suppress(OSError):  # on another file system, or if not permitted: copy
                os.link(self.path.resolve(), target)
                return "linked"
        write_whole(target, self.read())
        return "from zip" if self.entry else "copied"


def walk(source: Path, meaning: set[str], zips: contextlib.ExitStack) -> Iterator[tuple[Folder, File]]:
    """Yield all files of a folder or zip file, each with its folder: first those on disk, then those in zip files.

    Args:
        source: A folder, which may contain zip files, or a zip file.
        meaning: Names that make a zip file count as a folder, such as "train" for train.zip.
        zips: The stack that closes the zip files.

    Raises:
        UserError: For the same reasons as `open_zip`.
        OSError: If a folder cannot be read.
    """

    def give_up(error: OSError) -> None:
        raise error

    archives: list[tuple[Folder, Path]] = []
    folders: Iterable[tuple[str, list[str], list[str]]] = ()
    if source.is_dir():
        folders = os.walk(source, onerror=give_up, followlinks=True)
    else:
        archives.append(((), source))
    for folder, inside, names in folders:
        inside[:] = sorted(name for name in inside if not is_hidden(name))
        parts = Path(folder).relative_to(source).parts
        for path in (Path(folder, name) for name in sorted(names) if not is_hidden(name)):
            if path.suffix.lower() == ".zip":
                archives.append((parts, path))
            else:
                yield normalise_folder(parts), File(path)
    for parts, path in archives:
        archive = open_zip(path, zips)
        own = (path.stem,) if path.stem.lower() in meaning else ()
        for info in archive.infolist():
            entry = PureWindowsPath(info.filename)
            if not info.is_dir() and not any(map(is_hidden, entry.parts)):
                yield normalise_folder([*parts, *own, *entry.parent.parts]), File(path, (archive, info))


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is not part of the data, such as .DS_Store, ._1.png and __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def normalise_folder(parts: Sequence[str]) -> Folder:
    """Convert a folder's path to lower case, and drop a folder inside one of the same name.

    Thus train.zip may contain A or train/A.
    """
    return tuple(part for part, _ in itertools.groupby(part.lower() for part in parts))


def open_zip(path: Path, zips: contextlib.ExitStack) -> ZipFile:
    """Open a zip file. The stack `zips` closes it.

    Raises UserError if it is damaged or encrypted, or if the path of an entry leads out of it.
    """
    try:  # given an open file, ZipFile keeps it open, so that many threads can read from it
        archive = zips.enter_context(ZipFile(zips.enter_context(path.open("rb"))))
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is not a complete zip file ({error}): download it again, or unpack it") from error
    for info in archive.infolist():
        name = PureWindowsPath(info.filename)  # understands both slashes, and drives
        if name.drive or name.root or ".." in name.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: its entry {info.filename!r} leads out of it: do not use this file")
        if info.flag_bits & 1:
            raise UserError(f"{path}: its entry {info.filename!r} is encrypted: unpack it yourself")
    return archive
