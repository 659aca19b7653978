"""A split's pairs, decoded once into one file that is mapped into memory: a crop costs its bytes, and no decoding.

    head      FORMAT and the key, filled up to a page
    pixels    a pair after the other: before (H, W, 3), after (H, W, 3), mask (H, W) of 0 and 1, all uint8
    hashes    64 characters a pair: `image_hash` of before and of after

The key follows from names, sizes and modification times of the image files. The file is written aside and renamed, so
what exists is whole, and processes that have mapped one keep it when it is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from change.change_dataloader import Pixels, Split, default_workers
from change.common.errors import UserError
from change.common.images import Image

log = logging.getLogger(__name__)

FORMAT = b"prx-change-cache/1 "
PAGE = 4096


class DecodedCache:
    """Gives a split's pixels from a file, in any number of processes; made where it is lacking, stale or damaged."""

    def __init__(self, split: Split, folder: Path) -> None:
        """Open or make the split's file in `folder`.

        Raises UserError where it cannot be written or has no room, and for an image file that does not decode.
        """
        files = [path for pair in split.pairs for path in (pair.before, pair.after, pair.mask) if path]
        base, parents = folder.resolve().parent, {parent.resolve() for parent in {path.parent for path in files}}
        # Relative where the cache lies beside the images: both can be moved, or mounted elsewhere, together.
        places = sorted(str(p.relative_to(base) if p.is_relative_to(base) else p) for p in parents)
        place = digest(places, [pair.name for pair in split.pairs])
        states = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in files)]
        decoder = PIL.__version__  # the last bits of a JPEG differ from version to version
        key = digest(place, split.digest(), split.binary, [path.name for path in files], states, decoder)
        self.split, self.path = split, folder / f"{split.name}-{place[:12]}.u8"
        self.head = FORMAT + key.encode().ljust(PAGE - len(FORMAT))
        *self.starts, self.end = accumulate((7 * w * h for w, h in (pair.size for pair in split.pairs)), initial=PAGE)
        self.size = self.end + 64 * len(split.pairs)
        self.data: Image | None = None
        if self.fault():
            self.make()

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: a process that is spawned maps the file anew."""
        return {**self.__dict__, "data": None}

    def fault(self) -> str:
        """Map the file; or say what is wrong with it."""
        try:
            data = np.asarray(np.memmap(self.path, np.uint8, "r"))
        except OSError:
            return "is new"
        except ValueError:  # it is empty
            return "is damaged"
        head = data[:PAGE].tobytes()
        if head.startswith(FORMAT) and head != self.head:
            return "is stale: image files, or Pillow, have changed"
        if head != self.head or data.size != self.size:
            return "is damaged"
        self.data = data
        return ""

    def read(self, index: int, hashed: bool) -> Pixels:
        """A pair, as `Split.read` gives it; the arrays are views of the file. Raises UserError if it was replaced."""
        if self.data is None and self.fault():
            raise UserError(f"{self.path} was replaced or removed since this run began: start it again")
        assert self.data is not None
        width, height = self.split.pairs[index].size
        start, area, at = self.starts[index], width * height, self.end + 64 * index
        before, after = self.data[start : start + 6 * area].reshape(2, height, width, 3)
        mask = self.data[start + 6 * area : start + 7 * area].reshape(height, width)
        hashes = self.data[at : at + 64].tobytes().decode()
        return Pixels(before, after, mask, [(hashes[:32], hashes[32:])] if hashed else [])

    def make(self) -> None:
        """Write the file and map it, or wait for the process that does."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")) as alone:
                if fault := self.fault():
                    # Alone, the name is always the same: what a killed process left is written over.
                    aside = self.path.with_name(f".{self.path.name}{'' if alone else os.getpid()}.part")
                    aside.unlink(missing_ok=True)
                    free = shutil.disk_usage(self.path.parent).free
                    if free < self.size:
                        raise UserError(
                            f"{self.path} needs {self.size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free: "
                            "make room, or choose another --cache_path or --cache off"
                        )
                    log.info(
                        "%s %s: decoding %d pairs, %.1f MB", self.path, fault, len(self.split.pairs), self.size / 1e6
                    )
                    self.write(aside)
                    if fault := self.fault():
                        raise UserError(f"{self.path} {fault}: files changed while they were decoded; start again")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; choose another --cache_path or --cache off"
            ) from error

    def write(self, aside: Path) -> None:
        """Decode all pairs into `aside`, and rename it."""
        hashes = ""
        try:
            with aside.open("wb") as file:
                file.write(self.head)
                for pixels in tqdm(
                    decoded(self.split), f"decoding {self.split.name}", len(self.split.pairs), leave=False
                ):
                    for array in pixels[:3]:
                        file.write(array.tobytes())
                    hashes += "".join(pixels.hashes[0])
                file.write(hashes.encode())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path)
        finally:
            aside.unlink(missing_ok=True)


def digest(*parts: object) -> str:
    """SHA-256 of values, as 64 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def decoded(split: Split) -> Iterator[Pixels]:
    """All pairs in order, decoded by threads, few at a time: two large scenes are gigabytes."""
    threads, pairs = default_workers(), range(len(split.pairs))
    with ThreadPoolExecutor(threads) as pool:
        for start in pairs[:: 2 * threads]:
            yield from pool.map(split.read, pairs[start : start + 2 * threads])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock, which ends with the process at the latest. False where there are none: there two may do the work."""
    with path.open("ab") as file:
        alone = False
        with contextlib.suppress(ImportError, OSError):  # on Windows; on some network file systems
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: another process decodes the pairs, waiting for it", path)
                fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone
