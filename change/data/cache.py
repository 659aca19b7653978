"""A cache of decoded pairs: one file per split, mapped into memory, from which crops are read without decoding.

The file holds, in this order:
    head      FORMAT and the key, padded to a page
    pixels    for each pair before (H, W, 3), after (H, W, 3) and the mask (H, W), all uint8; masks hold 0 and 1, or
              the values of classes; if bands are chosen, the images are (H, W, C) of their type, and each pair is
              padded to a multiple of ALIGNED bytes
    hashes    64 characters for each pair: `image_hash` of before and of after

The key is derived from the names, sizes and modification times of the image files. The file is written under another
name and renamed, so that an existing file is complete. Processes that have mapped a file keep it when it is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from change.change_dataloader import Pixels, Split
from change.common.errors import UserError
from change.common.images import Image
from change.data.loaders import default_workers

log = logging.getLogger(__name__)

FORMAT = b"prx-change-cache/1 "
PAGE = 4096
ALIGNED = 16


class DecodedCache:
    """The pixels of a split in a file, for any number of processes. A missing, stale or damaged file is rewritten."""

    def __init__(self, split: Split, folder: Path) -> None:
        """Map or make the split's file in `folder`.

        Raises UserError if it cannot be written, if the disk is too full, or if an image file does not decode.
        """
        files = [path for pair in split.pairs for path in (pair.before, pair.after, pair.mask) if path]
        base = folder.resolve().parent
        parents = {parent.resolve() for parent in {path.parent for path in files}}
        # Relative if the cache lies beside the images, so that both can be moved or mounted elsewhere together.
        places = sorted(str(p.relative_to(base) if p.is_relative_to(base) else p) for p in parents)
        classes = (len(split.holds.classes.names), split.holds.merged) if split.holds.classes else ()
        place = digest(places, [pair.name for pair in split.pairs], *classes)
        states = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in files)]
        decoder = (PIL.__version__, 2)  # the lowest bits of a decoded JPEG differ between versions; 2: turned upright
        bands = (split.bands, "mirrored") if split.bands else ()  # how pixels without data have been filled
        key = digest(place, split.digest(), split.binary, [path.name for path in files], states, decoder, *bands)
        self.split = split
        self.kind = np.dtype(split.bands.kind if split.bands else np.uint8)
        self.channels = len(split.bands.names) if split.bands else 3
        self.aligned = ALIGNED if split.bands else 1
        self.path = folder / f"{split.name}-{place[:12]}.{'levels' if split.bands else 'u8'}"
        self.head = FORMAT + key.encode().ljust(PAGE - len(FORMAT))
        lengths = (self.length(width * height) for width, height in (pair.size for pair in split.pairs))
        offsets = list(accumulate(lengths, initial=PAGE))
        self.starts, self.end = offsets[:-1], offsets[-1]
        self.size = self.end + 64 * len(split.pairs)
        self.data: Image | None = None
        if self.map_file():
            self.make()

    def length(self, area: int) -> int:
        """Return the number of bytes of a pair of `area` pixels."""
        return -(-(2 * self.image_length(area) + area) // self.aligned) * self.aligned

    def image_length(self, area: int) -> int:
        """Return the number of bytes of an image of `area` pixels."""
        return area * self.channels * self.kind.itemsize

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pixels: a process that is spawned maps the file itself."""
        return {**self.__dict__, "data": None}

    def map_file(self) -> str:
        """Map the file into memory. Returns "", or what is wrong with the file."""
        try:
            data = np.asarray(np.memmap(self.path, np.uint8, "r"))
        except OSError:
            return "is new"
        except ValueError:  # the file is empty
            return "is damaged"
        head = data[:PAGE].tobytes()
        if head.startswith(FORMAT) and head != self.head:
            return "is stale: image files, or Pillow, have changed"
        if head != self.head or data.size != self.size:
            return "is damaged"
        self.data = data
        return ""

    def read(self, index: int, hashed: bool) -> Pixels:
        """Return a pair as `Split.read` does; the arrays are views of the file.

        Raises UserError if the file was replaced since this process opened it.
        """
        if self.data is None and self.map_file():
            raise UserError(f"{self.path} was replaced or removed since this run began: start the run again")
        assert self.data is not None
        width, height = self.split.pairs[index].size
        start, area = self.starts[index], width * height
        masks = start + 2 * self.image_length(area)
        before, after = self.data[start:masks].view(self.kind).reshape(2, height, width, self.channels)
        mask = self.data[masks : masks + area].reshape(height, width)
        start = self.end + 64 * index
        hashes = self.data[start : start + 64].tobytes().decode()
        return Pixels(before, after, mask, [(hashes[:32], hashes[32:])] if hashed else [])

    def make(self) -> None:
        """Write the file and map it, or wait for another process that does. Raises UserError as `__init__` does."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.path.with_suffix(".lock")) as locked:
                if fault := self.map_file():
                    # With the lock, the name is always the same, so that a file left by a killed process is replaced.
                    aside = self.path.with_name(f".{self.path.name}{'' if locked else os.getpid()}.part")
                    aside.unlink(missing_ok=True)
                    self.require_space()
                    log.info(
                        "%s %s: decoding %d pairs, %.1f MB", self.path, fault, len(self.split.pairs), self.size / 1e6
                    )
                    self.write(aside)
                    if fault := self.map_file():
                        raise UserError(f"{self.path} {fault}: files changed while they were decoded; start again")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; choose another --cache_path or --cache off"
            ) from error

    def require_space(self) -> None:
        """Raise UserError if the disk has no room for the file."""
        free = shutil.disk_usage(self.path.parent).free
        if free < self.size:
            raise UserError(
                f"{self.path} needs {self.size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free: "
                "make room, or choose another --cache_path or --cache off"
            )

    def write(self, aside: Path) -> None:
        """Decode all pairs into the file `aside`, and rename it."""
        hashes = ""
        try:
            with aside.open("wb") as file:
                file.write(self.head)
                pairs = decode_pairs(self.split.read, range(len(self.split.pairs)))
                for pixels in tqdm(pairs, f"decoding {self.split.name}", len(self.split.pairs), leave=False):
                    length = sum(file.write(array.tobytes()) for array in pixels[:3])
                    file.write(bytes(-length % self.aligned))
                    hashes += "".join(pixels.hashes[0])
                file.write(hashes.encode())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path)
        finally:
            aside.unlink(missing_ok=True)


def digest(*parts: object) -> str:
    """Return the SHA-256 of values, as 64 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def decode_pairs(read: Callable[[int], Pixels], pairs: Sequence[int]) -> Iterator[Pixels]:
    """Yield pairs in order, decoded by threads, a few at a time because a pair of large scenes takes gigabytes."""
    threads = default_workers()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pairs), 2 * threads):
            yield from pool.map(read, pairs[start : start + 2 * threads])


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold a lock on a file for the duration of a `with` block; it is released if the process is killed.

    Yields whether the lock is held. On systems without file locks it is not, and two processes may do the same work.
    """
    with path.open("ab") as file:
        locked = False
        with contextlib.suppress(ImportError, OSError):  # on Windows; on some network file systems
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that decodes the pairs", path)
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        yield locked
