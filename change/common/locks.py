"""Locks on folders: a folder of results has one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from change.common.errors import UserError
from change.common.files import make_folder

IN_USE = (errno.EACCES, errno.EAGAIN)  # what a system reports for a lock that another process holds


@contextlib.contextmanager
def hold_folder(folder: Path, option: str, beside: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a folder for the duration of a `with` block.

    The lock belongs to this process only, not to its children, so it ends when the process is killed. On systems
    without file locks, and where the lock file cannot be written, nothing is locked.

    Args:
        folder: it is created if it is missing, and removed again if it is still empty at the end.
        option: the option that names the folder, for the error.
        beside: whether the lock file lies beside the folder instead of in it; the folder is then not created.

    Raises:
        UserError: if another process holds the folder, or if the folder cannot be created.
    """
    folder = folder.absolute()
    place = folder.parent if beside else folder
    path = place / (f".{folder.name}.lock" if beside else ".lock")
    made = [parent for parent in (place, *place.parents) if not parent.exists()]
    make_folder(place)
    try:
        with contextlib.ExitStack() as stack:
            try:
                file = take_lock(path)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder} is in use by another run: wait until it has ended, or choose another {option}"
                ) from error
            if file:
                stack.enter_context(file)
                stack.callback(remove, path, file)  # before the file is closed, which unlocks it
            yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def take_lock(path: Path) -> BinaryIO | None:
    """Open a file and lock it until it is closed.

    Returns None if it cannot be opened: if the disk is full or read-only, later writes report it. Raises
    BlockingIOError if another process holds the lock.
    """
    try:
        file = path.open("ab")
    except OSError:
        return None
    with contextlib.suppress(ImportError):  # on Windows
        import fcntl

        try:
            # Unlike flock, lockf is not inherited by loader processes, which may outlive a killed run by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in IN_USE:
                file.close()
                raise BlockingIOError(str(path)) from error
            return file  # a network file system without locks
        if os.fstat(file.fileno()).st_nlink == 0:  # a run that has just ended has removed this file
            file.close()
            return take_lock(path)
    return file


def remove(path: Path, file: BinaryIO) -> None:
    """Remove an open lock file, except on Windows, and unless its path now holds another file."""
    with contextlib.suppress(OSError):
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            path.unlink()
