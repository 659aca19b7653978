"""Whole files: written aside and renamed, so that what exists is complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from change.errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` or leave what was there. Raises UserError where it cannot be written."""
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
    """Make a folder, and those above it. Raises UserError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}; choose another one") from error
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
