"""Write files and folders completely or not at all, and find the files that come with the program.

Data is written under a temporary name and then renamed, so that every existing file is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from change.common.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CLONE = PACKAGE.parent  # the repository, unless this is an installed package
IS_CLONE = (CLONE / "train.py").is_file()
DEFAULT_CHECKPOINT = "checkpoints/buildings.pth"  # for `shipped_file`


def shipped_file(place: str) -> Path:
    """Find a file that comes with the program, such as "checkpoints/buildings.pth".

    `place` is relative to the repository; in an installed package, to change/shipped. Raises UserError if the file is
    missing.
    """
    path = (CLONE if IS_CLONE else PACKAGE / "shipped") / place
    if not path.exists():
        raise UserError(f"{path} is missing: it comes with PRX-Change; install it again or restore it with git")
    return path


def home_folder() -> Path:
    """Return the folder that holds results, lists and checkpoints: the clone, or the current folder if installed."""
    return CLONE if IS_CLONE else Path.cwd()


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`. If that fails, `path` stays as it was and UserError is raised."""
    if not path.name:
        raise UserError(f"cannot write {path}: name a file")
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises UserError if it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}; choose another one") from error
    return path


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder beside `folder`, then put it in place of `folder`.

    If anything fails, `folder` stays as it was. Raises UserError if it cannot be written.
    """
    if not folder.name:
        raise UserError(f"cannot write {folder}: name a folder")
    aside = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        make_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
        write(aside)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        try:
            aside.replace(folder)
        except BaseException:  # KeyboardInterrupt too
            if old.exists() and not folder.exists():
                old.replace(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        raise


def require_checkpoint(path: Path) -> None:
    """Raise UserError if there is no file of weights at a path."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: check the path")


def require_root(root: Path) -> None:
    """Raise UserError if the folder of a data set is missing."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: check the path of the data set")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
