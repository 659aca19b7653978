"""The files of a download: a folder, a zip file or a folder of zip files, walked and read as one tree."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from change.common.errors import UserError
from change.common.files import write_whole

ZIP_ERRORS = (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError)  # what zipfile raises for damage

Folder = tuple[str, ...]  # where a file lies, in lower case


@dataclass(frozen=True)
class File:
    """A file of SOURCE: on disk, or an entry of the zip file `path`."""

    path: Path
    entry: tuple[ZipFile, ZipInfo] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.entry[1].filename}" if self.entry else str(self.path)

    @property
    def name(self) -> str:
        """Its own name, without folders."""
        return PureWindowsPath(self.entry[1].filename).name if self.entry else self.path.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry[1].file_size if self.entry else self.path.stat().st_size

    def read(self) -> bytes:
        """The content. Raises UserError for a damaged entry."""
        if self.entry is None:
            return self.path.read_bytes()
        try:
            return self.entry[0].read(self.entry[1])
        except ZIP_ERRORS as error:
            raise UserError(f"{self} cannot be read ({error}): download it again, or unpack it yourself") from error

    def same(self, target: Path) -> bool:
        """Whether the file `target` holds this."""
        if self.entry is None:
            return target.samefile(self.path) or filecmp.cmp(self.path, target, shallow=False)
        return target.stat().st_size == self.size and zlib.crc32(target.read_bytes()) == self.entry[1].CRC

    def put(self, target: Path) -> str:
        """Make `target`; say how."""
        if self.entry is None:
            with contextlib.suppress(OSError):  # another file system, or not permitted: a copy does
                os.link(self.path.resolve(), target)
                return "linked"
        write_whole(target, self.read())
        return "from zip" if self.entry else "copied"


def walk(source: Path, meaning: set[str], zips: contextlib.ExitStack) -> Iterator[tuple[Folder, File]]:
    """All files of a folder or zip file, and the folders they lie in: those on disk, then those in zip files.

    A zip file counts as a folder if `meaning` has its name (train.zip). Raises UserError as `open_zip` does.
    """

    def give_up(error: OSError) -> None:
        raise error

    archives: list[tuple[Folder, Path]] = [] if source.is_dir() else [((), source)]
    for folder, inside, names in os.walk(source, onerror=give_up, followlinks=True) if source.is_dir() else ():
        inside[:] = sorted(name for name in inside if not hidden(name))
        parts = Path(folder).relative_to(source).parts
        for path in (Path(folder, name) for name in sorted(names) if not hidden(name)):
            if path.suffix.lower() == ".zip":
                archives.append((parts, path))
            else:
                yield folded(parts), File(path)
    for parts, path in archives:
        archive = open_zip(path, zips)
        own = (path.stem,) if path.stem.lower() in meaning else ()
        for info in archive.infolist():
            entry = PureWindowsPath(info.filename)
            if not info.is_dir() and not any(map(hidden, entry.parts)):
                yield folded((*parts, *own, *entry.parent.parts)), File(path, (archive, info))


def hidden(name: str) -> bool:
    """Whether a file or folder is not the data's own: .DS_Store, ._1.png, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def folded(parts: Sequence[str]) -> Folder:
    """Lower case, and a folder in one of its own name counts once: train.zip may hold A, or train/A."""
    return tuple(part for part, _ in itertools.groupby(part.lower() for part in parts))


def open_zip(path: Path, zips: contextlib.ExitStack) -> ZipFile:
    """Open a zip file until `zips` closes it.

    Raises UserError for one that is damaged or encrypted, and for entries that point out of it.
    """
    try:  # given the open file, ZipFile leaves it open, however many threads read from it
        archive = zips.enter_context(ZipFile(zips.enter_context(path.open("rb"))))
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is no whole zip file ({error}): download it again, or unpack it yourself") from error
    for info in archive.infolist():
        name = PureWindowsPath(info.filename)  # which knows both slashes, and drives
        if name.drive or name.root or ".." in name.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: its entry {info.filename!r} points out of it: do not use this file")
        if info.flag_bits & 1:
            raise UserError(f"{path}: its entry {info.filename!r} is encrypted: unpack it yourself")
    return archive
