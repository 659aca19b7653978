"""Image pairs with change masks from folders: find them, check their headers, read them, batch them.

The one file to edit for another folder layout: `find_split` turns folders and lists into a `Split`; everything
below only sees its `Pair`s.

Layouts, `SPLIT` being train, val or test:
    ROOT/SPLIT/{A,B,label}/NAME.*              each split in a folder of its own
    ROOT/{A,B,label}/NAME.* and SPLIT.txt      one folder; ROOT/list (or another folder) holds a list of names a split
    ROOT/{A,B[,label]}/NAME.*                  one split alone
A: before, B: after, label: masks. Files belong together by stem; png, jpg, jpeg, tif, tiff, bmp in any mix.

Shapes: images uint8 RGB (H, W, 3), masks uint8 (H, W) of 0 and 1; in a batch (B, 3, H, W) and (B, 1, H, W).
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import logging
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from change.common.errors import UserError, listed
from change.common.files import file_hash
from change.common.images import IMAGE_MODES, UNREADABLE, Image, bits, image_hash, read_image, read_levels, read_mask
from change.data.transforms import PLAIN, ColorJitter, Geometry, augment

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
BEFORE, AFTER, LABEL = "A", "B", "label"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    """One sample's files. `size`: width, height. `mask` is None in a split without labels."""

    name: str
    before: Path
    after: Path
    mask: Path | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Split:
    """Pairs that are trained or scored together. `binary`: the masks mark change with 1, not their type's maximum."""

    name: str
    pairs: tuple[Pair, ...]
    binary: bool = False

    @property
    def labelled(self) -> bool:
        """Whether the pairs have masks: all or none do."""
        return self.pairs[0].mask is not None

    def digest(self) -> str:
        """SHA-256 of the pairs' names and sizes, in order: what tells one split from another without decoding it."""
        return hashlib.sha256(repr([(pair.name, pair.size) for pair in self.pairs]).encode()).hexdigest()

    def read(self, index: int, hashed: bool = True) -> Pixels:
        """Decode a pair, and hash its images if `hashed`. Raises UserError for a file that does not decode."""
        pair = self.pairs[index]
        before, after = read_image(pair.before), read_image(pair.after)
        mask = read_mask(pair.mask, self.binary) if pair.mask else np.zeros(before.shape[:2], np.uint8)
        return Pixels(before, after, mask, [(image_hash(before), image_hash(after))] if hashed else [])


class Pixels(NamedTuple):
    """A pair's images (H, W, 3), its mask (H, W) of 0 and 1 (of 0 alone without labels), and the `image_hash` of both
    images where it was asked for."""

    before: Image
    after: Image
    mask: Image
    hashes: list[tuple[str, str]]


Reader = Callable[[int, bool], Pixels]  # as `Split.read`


class Batch(NamedTuple):
    """Uint8 images (B, 3, H, W), masks (B, 1, H, W) of 0 and 1 (of 0 alone without labels), names, and the
    `image_hash` of every image, where they were asked for."""

    before: Tensor
    after: Tensor
    mask: Tensor
    names: list[str]
    hashes: list[tuple[str, str]]


# --- from folders to a split ---------------------------------------------------------------------------------------


def find_split(root: Path, split: str, list_file: Path | None = None, need_labels: bool = True) -> Split:
    """Find and check the pairs of one split, from names and headers alone.

    `split` is "train", "val" or "test", or "" where `root` itself holds A and B. `list_file` names the split's pairs,
    one a line; without it, ROOT/list/SPLIT.txt does where ROOT holds A and B for all splits. Raises UserError, with the
    names of the files, for a missing folder or partner, an unreadable header, sizes that differ, an empty split.
    """
    folder = root / split
    if not root.is_dir():
        raise UserError(f"no folder {root}: check the path of the data set")
    if not (folder / BEFORE).is_dir() and (root / BEFORE).is_dir():
        folder = root
        list_file = list_file or root / "list" / f"{split}.txt"
        if not list_file.is_file():
            raise UserError(
                f"{root} holds {BEFORE} and {AFTER} of all splits, but {list_file}, which would name the pairs of "
                f"{split}, is missing; use --list, or {root / split}/{BEFORE}, {AFTER}, {LABEL}"
            )
    for sub in (BEFORE, AFTER) + ((LABEL,) if need_labels else ()):
        if not (folder / sub).is_dir():
            inside = [d.name for d in sorted(folder.iterdir()) if (d / sub).is_dir()] if folder.is_dir() else []
            hint = f"; did you mean {folder / inside[0]}?" if inside else ""
            raise UserError(f"no folder {folder / sub}: a split holds {BEFORE}, {AFTER} and {LABEL}{hint}")
    before, after = files_by_stem(folder / BEFORE), files_by_stem(folder / AFTER)
    masks = files_by_stem(folder / LABEL) if (folder / LABEL).is_dir() else None
    kinds = {BEFORE: before, AFTER: after, **({LABEL: masks} if masks is not None else {})}
    names = sorted(set().union(*kinds.values())) if list_file is None else read_list(list_file)
    lacking = [f"{name} in {sub}" for sub, files in kinds.items() for name in names if name not in files]
    if lacking:
        raise UserError(
            f"{folder}: no file for {listed(lacking)}: every pair needs one of the same stem in each folder"
        )
    if not names:
        raise UserError(f"{folder} holds no pairs: its {BEFORE} has no {', '.join(SUFFIXES)} file")
    with ThreadPoolExecutor() as pool:
        paths = [(name, before[name], after[name], masks[name] if masks is not None else None) for name in names]
        results = list(pool.map(check_headers, *zip(*paths, strict=True)))
    faults = [fault for fault in results if isinstance(fault, str)]
    if faults:
        raise UserError(f"{folder}: {listed(faults)}")
    pairs = tuple(pair for pair in results if isinstance(pair, Pair))
    found = Split(split or folder.resolve().name, pairs)
    return replace(found, binary=masks_are_binary(found)) if masks is not None else found


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by stem. Raises UserError where two share a stem, or a name is not UTF-8."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise UserError(f"{folder}: {files[path.stem].name} and {path.name} share a stem; keep one of them")
            if not path.name.isprintable():
                raise UserError(f"{folder}: the name {path.name!r} is not printable text; rename the file")
            files[path.stem] = path
    return files


def read_list(path: Path) -> list[str]:
    """The stems named in a text file, one a line, with or without a file suffix. Raises UserError for doubles."""
    if not path.is_file():
        raise UserError(f"no list {path}: it names the pairs of a split, one a line")
    text = path.read_text(encoding="utf-8-sig", errors="replace")  # a name in another encoding: no file has it
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [line[: -len(Path(line).suffix)] if Path(line).suffix.lower() in SUFFIXES else line for line in lines]
    if not names:
        raise UserError(f"{path} is empty: it names the pairs of a split, one a line")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names twice: {listed(sorted({n for n in names if names.count(n) > 1}))}")
    return names


def check_headers(name: str, before: Path, after: Path, mask: Path | None) -> Pair | str:
    """Open a triple's headers: a Pair, or what is wrong with it."""
    sizes: dict[Path, tuple[int, int]] = {}
    for path in (before, after, mask):
        if path is None:
            continue
        try:
            with PIL.Image.open(path) as image:
                sizes[path] = image.size
                if path is not mask and (image.mode not in IMAGE_MODES or bits(image) > 8):
                    return (
                        f"{path} is an image of mode {image.mode}, {bits(image)} bit: "
                        "convert it to 8-bit RGB first, with a stretch of your choice"
                    )
        except UNREADABLE as error:
            return f"{path} has no readable image header ({type(error).__name__}): replace the file"
    if len(set(sizes.values())) > 1:
        return "sizes differ: " + ", ".join(f"{path} {width}x{height}" for path, (width, height) in sizes.items())
    return Pair(name, before, after, mask, sizes[before])


def masks_are_binary(split: Split) -> bool:
    """Whether the split's masks mark change with 1: true if no value exceeds 1. Says what it decided.

    Reads masks until one is above half of its type's range; one-bit files are clear by themselves and do not take part.
    """
    masks = [pair.mask for pair in split.pairs if pair.mask is not None]
    clear = zero_one = exceeding = 0  # masks with change: one-bit files, of 0 and 1, of more than 1 but not half
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(masks), 32):
            for levels, maximum in pool.map(read_levels, masks[start : start + 32]):
                highest = np.max(levels)
                if maximum == 1:
                    clear += bool(highest)
                elif highest > maximum / 2:
                    log.info("%s: %d pairs; masks: changed is above half of the type's range", split.name, len(masks))
                    return False
                else:
                    exceeding += bool(highest > 1)
                    zero_one += bool(highest == 1)
    if not clear and (exceeding or not zero_one):
        log.warning("%s: %d pairs; no mask marks any change: check the label folder", split.name, len(masks))
    elif exceeding:
        log.info("%s: %d pairs; masks: changed is above half of the type's range", split.name, len(masks))
    else:
        rule = "changed is 1, no mask exceeds it" if zero_one else "one-bit files, changed is 1"
        log.info("%s: %d pairs; masks: %s", split.name, len(masks), rule)
    return not exceeding


def rate_of_change(split: Split) -> float:
    """The share of a labelled split's pixels that have changed. Raises UserError for a mask that does not decode."""
    masks = [pair.mask for pair in split.pairs if pair.mask is not None]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(lambda path: (m := read_mask(path, split.binary)).sum() + 1j * m.size, masks))
    total = sum(sums)
    return float(total.real / total.imag)


def shared_images(train: Split, val: Split) -> list[str]:
    """The names of val's pairs of which an image is, byte for byte, one of train's, of either date.

    None is decoded, and few are read: where sizes are equal 4 KiB, where those are equal too the whole file.
    """
    ours, theirs = ([path for pair in split.pairs for path in (pair.before, pair.after)] for split in (train, val))
    for look in map(functools.cache, (file_size, file_middle, file_hash)):
        in_ours, in_theirs = {*map(look, ours)}, {*map(look, theirs)}
        ours = [path for path in ours if look(path) in in_theirs]
        theirs = [path for path in theirs if look(path) in in_ours]
    shared = set(theirs)
    return [pair.name for pair in val.pairs if shared & {pair.before, pair.after}]


def file_size(path: Path) -> int:
    """Bytes."""
    return path.stat().st_size


def file_middle(path: Path) -> bytes:
    """4 KiB, or as much as there is, from where files of the same kind and size differ."""
    with path.open("rb") as file:
        file.seek(file_size(path) // 2)
        return file.read(4096)


# --- samples and batches -------------------------------------------------------------------------------------------


class TrainSamples(Dataset[Batch | UserError]):
    """Augmented samples. A key is (epoch, index): with the seed, all that a sample's draws depend on.

    A file that does not decode is returned as the error it is: raised in a worker, it would lose its one line.
    """

    def __init__(
        self,
        split: Split,
        crop: int,
        jitter: ColorJitter,
        seed: int,
        hash_epoch: int = 0,
        geometry: Geometry = PLAIN,
    ) -> None:
        """`crop` pixels square; images are hashed in `hash_epoch` alone. Raises UserError if an image is smaller."""
        small = [f"{p.before} {p.size[0]}x{p.size[1]}" for p in split.pairs if min(p.size) < crop]
        if small:
            raise UserError(f"crop {crop} is larger than {listed(small)}: choose a smaller --cropsize")
        self.split, self.crop, self.jitter, self.seed, self.hash_epoch = split, crop, jitter, seed, hash_epoch
        self.geometry = geometry
        self.read: Reader = split.read  # a cache's takes its place

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Batch | UserError:
        epoch, index = key
        try:
            pixels = self.read(index, epoch == self.hash_epoch)
            rng = np.random.default_rng((self.seed, epoch, index, 1))
            crops = augment(pixels.before, pixels.after, pixels.mask, self.crop, self.jitter, rng, self.geometry)
        except UserError as error:
            return error
        return as_batch(*crops, self.split.pairs[index].name, pixels.hashes)


class WholeSamples(Dataset[Batch | UserError]):
    """Whole images, as they are or resized to a square (images bilinearly, masks to the nearest), with hashes."""

    def __init__(self, split: Split, size: int = 0) -> None:
        """`size`: side of the square; 0 leaves images as they are."""
        self.split, self.size = split, size
        self.read: Reader = split.read  # a cache's takes its place

    def __len__(self) -> int:
        return len(self.split.pairs)

    def __getitem__(self, index: int) -> Batch | UserError:
        pair = self.split.pairs[index]
        try:
            before, after, mask, hashes = self.read(index, True)
        except UserError as error:
            return error
        if self.size and pair.size != (self.size, self.size):
            square = (self.size, self.size)
            before, after = (
                np.asarray(cv2.resize(i, square, interpolation=cv2.INTER_LINEAR), np.uint8) for i in (before, after)
            )
            # Pillow's nearest: OpenCV's differs from version to version.
            mask = np.array(PIL.Image.fromarray(mask).resize(square, PIL.Image.Resampling.NEAREST))
        return as_batch(before, after, mask, pair.name, hashes)


def as_batch(before: Image, after: Image, mask: Image, name: str, hashes: list[tuple[str, str]]) -> Batch:
    """Arrays (H, W, 3), (H, W, 3), (H, W) -> a batch of one."""
    # Channels last in memory, as they are; what is only mapped, and not to be written to, is copied.
    arrays = (np.require(array, requirements=["C", "W"]) for array in (before, after, mask))
    first, second, truth = map(torch.from_numpy, arrays)
    return Batch(first.permute(2, 0, 1)[None], second.permute(2, 0, 1)[None], truth[None, None], [name], hashes)


def join(samples: Sequence[Batch | UserError]) -> Batch | UserError:
    """Put batches of one together; an error among them stands for all."""
    good: list[Batch] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    return Batch(
        joined([sample.before for sample in good]),
        joined([sample.after for sample in good]),
        joined([sample.mask for sample in good]),
        [name for sample in good for name in sample.names],
        [pair for sample in good for pair in sample.hashes],
    )


class BatchShare(NamedTuple):
    """How a batch is worked through: its pairs, how many of them are this process's own, and in how many parts."""

    pairs: int
    own: int
    parts: int


def joined(parts: list[Tensor]) -> Tensor:
    """Tensors (1, C, H, W) that lie channels last, as one (B, C, H, W): in a worker where the main process reads it."""
    rows = [part.permute(0, 2, 3, 1) for part in parts]
    whole = torch.empty((len(rows), *rows[0].shape[1:]), dtype=rows[0].dtype)
    if get_worker_info() is not None:
        whole.untyped_storage().share_memory_()
    return torch.cat(rows, out=whole).permute(0, 3, 1, 2)


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """A process's share of every batch, as keys, in the epoch's order, which follows from seed and epoch.

    `start` batches are left out. Every process must do the same number of passes: a share with fewer pairs than parts,
    which only the last batch's can be, is filled up with others of the batch, which are to weigh nothing.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, parts: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        """`batch_size`: of all processes together. Raises UserError where that is less than one pair a part."""
        if batch_size < processes * parts:
            raise UserError(
                f"--train_batchsize {batch_size}: choose {processes * parts} or more, a pair for each of "
                f"{processes} processes x {parts} parts (--grad_accum)"
            )
        self.samples, self.batch_size, self.seed, self.parts = samples, batch_size, seed, parts
        self.process, self.processes = process, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch, 0, 0)).permutation(self.samples)
        for step in range(self.start, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            first, end = self.bounds(len(batch))
            share = [*batch[first:end], *batch][: max(end - first, self.share(step).parts)]
            yield [(self.epoch, index) for index in share]

    def bounds(self, pairs: int) -> tuple[int, int]:
        """Where this process's own pairs of a batch begin and end."""
        return pairs * self.process // self.processes, pairs * (self.process + 1) // self.processes

    def share(self, step: int) -> BatchShare:
        """How batch `step` of an epoch is worked through: in fewer parts where the largest share has fewer pairs."""
        pairs = min(self.batch_size, self.samples - step * self.batch_size)
        first, end = self.bounds(pairs)
        return BatchShare(pairs, end - first, min(self.parts, -(-pairs // self.processes)))


class TrainLoader:
    """A process's shares of batches of augmented crops, the same for any number of workers and from any point of an
    epoch."""

    def __init__(
        self,
        samples: TrainSamples,
        batch_size: int,
        workers: int,
        pin: bool = False,
        parts: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Arguments as `EpochOrder`'s."""
        self.order = EpochOrder(len(samples), batch_size, samples.seed, parts, process, processes)
        self.loader = make_loader(samples, self.order, workers, pin)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on. Raises UserError for a file that does not decode."""
        self.order.epoch, self.order.start = epoch, start
        yield from or_raise(self.loader)


def whole_loader(
    samples: WholeSamples, batch_size: int, workers: int, pin: bool = False, process: int = 0, processes: int = 1
) -> DataLoader[Batch | UserError]:
    """Every pair once, in the split's order but for this: a batch holds images of one size. Read it with `or_raise`.

    Of every `processes` batches in a row, `process` gets one, of the last ones perhaps none.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, pair in enumerate(samples.split.pairs):
        by_size[(samples.size, samples.size) if samples.size else pair.size].append(index)
    batches = [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
    return make_loader(samples, sorted(batches)[process::processes], workers, pin)


def make_loader(
    samples: TrainSamples | WholeSamples,
    batches: EpochOrder | list[list[int]],
    workers: int,
    pin: bool,
) -> DataLoader[Batch | UserError]:
    """A DataLoader whose workers live as long as it does."""
    ending = multiprocessing.RawValue("b", 0)
    if workers:
        atexit.register(setattr, ending, "value", 1)
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=join,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=functools.partial(start_worker, ending),
        generator=torch.Generator().manual_seed(0),  # else it draws from the global one, which dropout uses
    )


def start_worker(ending: ctypes.c_byte, _: int) -> None:
    """A worker has one core, and leaves it to the main process what Ctrl-C and SIGTERM, sent to all, mean.

    Where `ending` is 1, the main process is at its end and sends SIGTERM itself, to a loader that is still in use.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    cv2.setNumThreads(0)


def or_raise(batches: DataLoader[Batch | UserError]) -> Iterator[Batch]:
    """The batches of a loader; an error in place of one is raised."""
    for batch in batches:
        if isinstance(batch, UserError):
            raise UserError(str(batch)) from batch  # `raise batch` would tie this frame, and the workers, in a cycle
        yield batch


def default_workers(processes: int = 1) -> int:
    """As many loader processes as there are cores for each of `processes` on this machine, 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // processes))


def seen_in_training(batch: Batch, trained: frozenset[str]) -> list[str]:
    """The names of a batch's pairs of which an image was trained on."""
    return [name for name, hashes in zip(batch.names, batch.hashes, strict=True) if trained.intersection(hashes)]
