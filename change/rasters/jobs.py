"""The pairs that a command line names: two files, two folders, or a text file of pairs."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from change.common.errors import UserError, list_names
from change.common.gdal import SUFFIXES, open_raster, quiet_gdal
from change.common.images import UNREADABLE, open_image
from change.common.names import decode_text, files_by_stem

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Job:
    """One pair, and the folder for its files."""

    before: Path
    after: Path
    folder: Path

    @property
    def has_pictures(self) -> bool:
        """Whether both files are pictures without georeferencing, not rasters."""
        return is_picture(self.before) and is_picture(self.after)


def is_picture(path: Path) -> bool:
    """Return whether the suffix of a file is that of a picture without georeferencing."""
    return path.suffix.lower() in PICTURES


def find_jobs(before: Path, after: Path | None, out: Path) -> list[Job]:
    """Find the pairs to predict.

    Args:
        before: a file, a folder, or, without `after`, a text file of pairs.
        after: the same kind for the later date; the files of two folders belong together by stem.
        out: the folder for one pair; for several, the folder that will hold one folder per pair.

    Raises:
        UserError: if there are no pairs, or a file is missing.
    """
    for path in filter(None, (before, after)):
        require_local(path)
    if after is None:
        if before.suffix.lower() not in (".txt", ".tsv", ".csv"):
            raise UserError(
                f"AFTER is missing: give it, or a text file of pairs (.txt, .tsv, .csv) instead of {before}"
            )
        return read_pairs(before, out)
    if before.is_dir() != after.is_dir():
        raise UserError(f"{before} and {after}: give two files or two folders")
    if not before.is_dir():
        for path in (before, after):
            if not path.is_file():
                raise UserError(f"no file at {path}: check the path")
        return [Job(before, after, out)]
    first, second = (files_by_stem(folder, SUFFIXES + PICTURES) for folder in (before, after))
    unpaired = sorted(first.keys() ^ second.keys())
    if unpaired:
        raise UserError(f"files without a partner in {before} and {after}: {list_names(unpaired)}; add or remove them")
    if not first:
        raise UserError(f"no rasters or images in {before}: check the path")
    return [Job(first[stem], second[stem], out / stem) for stem in first]


def require_local(path: Path) -> None:
    """Raise UserError for a web address or a path into an archive: only files on this machine are read."""
    text = str(path).replace("\\", "/")
    if re.match(r"/vsi[a-z0-9_]+/|[A-Za-z][A-Za-z0-9+.]+:/", text) and not path.exists():
        address = re.sub(r":/+", "://", text, count=1)  # pathlib drops a slash
        raise UserError(f"{address} is not a file on this machine: download or unpack it, and give its path")


def check_layer(path: Path, option: str) -> None:
    """Raise UserError unless a vector file, the value of `option`, exists on this machine."""
    require_local(path)
    if not path.exists():
        raise UserError(f"{option} {path}: there is no such file; check the path")


def read_pairs(path: Path, out: Path) -> list[Job]:
    """Read a text file of pairs: one per line, with paths relative to the file.

    Blank lines, comments that begin with #, and a header are skipped. A header is a first line whose columns have no
    suffix and name no files.

    Raises UserError if it cannot be read, names no pairs, or gives two pairs the same name.
    """
    try:
        lines = decode_text(path.read_bytes(), path).splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    numbered = [(number, line) for number, line in numbered if not line.lstrip().startswith("#")]
    if numbered and is_header(split_line(numbered[0][1], path.parent), path.parent):
        numbered = numbered[1:]
    jobs = [read_pair(line, path.parent, out, place=f"{path}, line {number}") for number, line in numbered]
    if not jobs:
        raise UserError(f"{path} names no pairs: write one per line, BEFORE TAB AFTER [TAB NAME]")
    uses = Counter(job.folder for job in jobs)
    repeated = sorted(str(folder) for folder, count in uses.items() if count > 1)
    if repeated:
        raise UserError(
            f"{path} names {list_names(repeated)} more than once: give each pair its own name, in a third column"
        )
    return jobs


def is_header(columns: list[str], folder: Path) -> bool:
    """Tell whether a line is a header: its first two columns have no suffix, and there are no such files."""
    return len(columns) in (2, 3) and not any(
        Path(column).suffix or (folder / column).exists() for column in columns[:2]
    )


def split_line(line: str, folder: Path) -> list[str]:
    """Split a line into columns, by the first of tabs, commas and semicolons that gives two or three.

    A column can be in double quotes. If several separators give two or three columns, one that gives existing files
    wins. Without any of them, white space separates.
    """
    if "\t" in line:
        return split_columns(line, "\t")
    possible = [columns for mark in ",;" if len(columns := split_columns(line, mark)) in (2, 3)]
    if len(possible) > 1:
        possible.sort(key=lambda columns: not all((folder / column).is_file() for column in columns[:2]))
    if possible:
        return possible[0]
    return split_columns(line, ",") if "," in line else line.split()


def split_columns(line: str, separator: str) -> list[str]:
    """Split a line as `csv` does, and strip the columns."""
    return [column.strip() for column in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def read_pair(line: str, folder: Path, out: Path, *, place: str) -> Job:
    """Read a line of `read_pairs`, BEFORE TAB AFTER [TAB NAME]. NAME defaults to the stem of BEFORE.

    Args:
        line: not empty.
        folder: the folder that paths are relative to.
        out: the folder that will hold one folder per pair.
        place: file and line, for errors.

    Raises:
        UserError: if the line has another form, or NAME cannot be the name of a folder.
    """
    parts = split_line(line, folder)
    if len(parts) not in (2, 3):
        raise UserError(
            f"{place}: write BEFORE TAB AFTER, optionally with TAB NAME; commas or semicolons can replace the tabs"
        )
    for part in parts[:2]:
        require_local(Path(part))
    before, after = folder / parts[0], folder / parts[1]
    name = before.stem
    if len(parts) == 3 and parts[2]:
        name = parts[2]
    if not name or Path(name).name != name or name.startswith(".") or "\0" in line:
        raise UserError(f"{place}: {name!r} cannot be the name of a folder")
    return Job(before, after, out / name)


def count_pixels(path: Path) -> int:
    """Return the number of pixels of a raster or an image.

    Returns 0 if it cannot be read: the error is raised when the pair is predicted.
    """
    try:
        if is_picture(path):
            with open_image(path) as image:
                return int(image.width * image.height)
        with quiet_gdal(), open_raster(path) as raster:
            return int(raster.width * raster.height)
    except (UserError, *UNREADABLE):
        return 0
