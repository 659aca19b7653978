"""Image pairs with change masks from folders: find them, check their headers, read them.

This is the file to edit for another folder layout: `find_split` turns folders and lists into a `Split`; samples,
batches and loaders only see its `Pair`s.

Layouts (SPLIT is train, val or test):
    ROOT/SPLIT/{A,B,label}/NAME.*              one folder per split
    ROOT/{A,B,label}/NAME.* and SPLIT.txt      one folder for all splits, and one list of names per split, by default
                                               in ROOT/list
    ROOT/{A,B[,label]}/NAME.*                  a single split
A holds the images before, B the images after, label the masks. Files with the same stem form a pair; png, jpg, jpeg,
tif, tiff and bmp may be mixed.

Shapes: images are uint8 RGB (H, W, 3), or levels of one type (H, W, C) if `bands` are chosen; masks are uint8 (H, W) of
0 and 1 or, if there are classes, of the values 0 to K.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.band_files import read_bands, read_header
from change.common.bands import Bands
from change.common.classes import NO_CLASSES, Classes, MaskClasses
from change.common.errors import UserError, list_names
from change.common.files import file_hash, require_root
from change.common.images import (
    IMAGE_MODES,
    UNREADABLE,
    Image,
    bits,
    blank_missing,
    count_pages,
    explain_unreadable,
    fill_missing,
    image_hash,
    open_image,
    read_image,
    upright_size,
)
from change.common.names import files_by_stem, read_list
from change.common.tiff import have_different_grids
from change.data.masks import find_class_rule, find_rule, read_class_mask, read_mask

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
BEFORE, AFTER, LABEL = "A", "B", "label"


@dataclass(frozen=True)
class Pair:
    """The files of one sample. `size` is (width, height); `mask` is None in a split without labels."""

    name: str
    before: Path
    after: Path
    mask: Path | None
    size: tuple[int, int]


class Pixels(NamedTuple):
    """A decoded pair: two images (H, W, C), a mask (H, W), and the `image_hash` of both images if it was asked for.

    Without labels the mask is 0 everywhere. `hashes` holds one pair of hashes, or nothing.
    """

    before: Image
    after: Image
    mask: Image
    hashes: list[tuple[str, str]]


@dataclass(frozen=True)
class Split:
    """Pairs that are trained on or scored together.

    Attributes:
        name: The name of the split.
        pairs: Its pairs.
        binary: Whether the masks mark change with 1, see `change.data.masks`.
        changed: The share of pixels that the masks mark as changed; 0 without labels.
        bands: The bands to read; None for 8-bit RGB.
        holds: The classes that the masks hold, and whether they are merged: all of them are then read as 1.
        shares: The shares of unchanged and of each class in all pixels; empty without classes.
    """

    name: str
    pairs: tuple[Pair, ...]
    binary: bool = False
    changed: float = 0.0
    bands: Bands | None = None
    holds: MaskClasses = NO_CLASSES
    shares: tuple[float, ...] = ()

    @property
    def classes(self) -> Classes | None:
        """The classes whose values the masks are read as; None if masks are read as 0 and 1."""
        return None if self.holds.merged else self.holds.classes

    @property
    def labelled(self) -> bool:
        """Whether the pairs have masks: all of them do, or none."""
        return self.pairs[0].mask is not None

    def digest(self) -> str:
        """Return the SHA-256 of the pairs' names and sizes, in order. It identifies a split without decoding it."""
        return hashlib.sha256(repr([(pair.name, pair.size) for pair in self.pairs]).encode()).hexdigest()

    def fingerprints(self) -> list[str]:
        """Return 32 hexadecimal digits for each pair: 16 for its image files, and 16 for its mask file.

        Mask files are hashed as a whole. For each image file, only its size and 8 KiB of it are hashed, so that large
        data sets are not read twice. Its last bytes reveal most changes: PNG files end with checksums, and the end of a
        JPEG file depends on all data before it.
        """
        with ThreadPoolExecutor() as pool:
            return list(pool.map(fingerprint_pair, self.pairs))

    def read(self, index: int, hashed: bool = True) -> Pixels:
        """Decode a pair, and hash its images if `hashed`. Raises UserError for a file that does not decode.

        Pixels without data are hashed as 0, as `read_images` returns them. Then they are filled by `fill_missing`.
        """
        pair = self.pairs[index]
        before, after, data = read_dates(pair, self.bands)
        mask = self.read_mask(pair.mask) if pair.mask else np.zeros(before.shape[:2], np.uint8)
        hashes = [(image_hash(before), image_hash(after))] if hashed else []
        before, after = fill_missing((before, after), data)
        return Pixels(before, after, mask, hashes)

    def read_mask(self, path: Path) -> Image:
        """Decode a mask. Raises UserError as `read_mask` and `read_class_mask` of `change.data.masks` do."""
        classes, merged = self.holds
        if classes is None:
            return read_mask(path, self.binary)
        values = read_class_mask(path, classes)
        return np.minimum(values, 1) if merged else values


def read_images(pair: Pair, bands: Bands | None) -> tuple[Image, Image]:
    """Decode both images of a pair: RGB, or bands with 0 where either image has no data.

    Raises UserError for a file that does not decode.
    """
    before, after, _ = read_dates(pair, bands)
    return before, after


def read_dates(pair: Pair, bands: Bands | None) -> tuple[Image, Image, NDArray[np.bool_]]:
    """Decode a pair as `read_images` does, and find the pixels that hold data at both dates, bool (H, W)."""
    if bands is None:
        before, after = read_image(pair.before), read_image(pair.after)
        return before, after, np.ones(before.shape[:2], np.bool_)
    (before, first), (after, second) = read_bands(pair.before, bands), read_bands(pair.after, bands)
    data = first & second
    before, after = blank_missing((before, after), data)
    return before, after, data


# --- from folders to a split ---------------------------------------------------------------------------------------


def find_split(
    root: Path,
    split: str,
    list_file: Path | None = None,
    need_labels: bool = True,
    bands: Bands | None = None,
    holds: MaskClasses = NO_CLASSES,
) -> Split:
    """Find the pairs of one split and check their names and headers. Only masks are decoded.

    Args:
        root: The data set's folder.
        split: "train", "val" or "test", or "" if `root` itself holds A and B.
        list_file: A list of the split's pairs, one name per line. By default all pairs of a split's own folder are
            used, and ROOT/list/SPLIT.txt if ROOT holds A and B for all splits.
        need_labels: Whether the split must have masks.
        bands: The bands to read; None for 8-bit RGB.
        holds: The classes that the masks hold, and whether they are merged.

    Raises:
        UserError: If a folder or a pair's file is missing, a header cannot be read, sizes differ, a mask would be
            misread, or the split is empty. It names the files.
    """
    folder, list_file = find_folder(root, split, list_file)
    require_subfolders(folder, need_labels)
    files = {sub: files_by_stem(folder / sub, SUFFIXES) for sub in (BEFORE, AFTER, LABEL) if (folder / sub).is_dir()}
    stems: set[str] = set().union(*files.values())
    names = read_list(list_file, SUFFIXES, stems) if list_file else sorted(stems)
    lacking = [f"{name} in {sub}" for sub, there in files.items() for name in names if name not in there]
    if lacking:
        raise UserError(
            f"{folder}: no file for {list_names(lacking)}: every pair needs a file of the same stem in each folder"
        )
    if not names:
        raise UserError(f"{folder} holds no pairs: its {BEFORE} has no {', '.join(SUFFIXES)} file")
    found = Split(split or folder.resolve().name, read_headers(folder, names, files, bands), bands=bands)
    masks = [pair.mask for pair in found.pairs if pair.mask is not None]
    if not masks:
        return found
    rule = find_class_rule(found.name, masks, holds.classes) if holds.classes else find_rule(found.name, masks)
    return replace(found, binary=rule.binary, changed=rule.changed, holds=holds, shares=rule.shares)


def find_first_image(root: Path, split: str, list_file: Path | None = None) -> Path:
    """Return the "before" image of the first pair of a split. Raises UserError as `find_split` does."""
    folder, list_file = find_folder(root, split, list_file)
    require_subfolders(folder, need_labels=False)
    files = files_by_stem(folder / BEFORE, SUFFIXES)
    names = read_list(list_file, SUFFIXES, files) if list_file else sorted(files)
    if not names or names[0] not in files:
        raise UserError(f"{folder / BEFORE} has no file for {names[0]}" if names else f"{folder} holds no pairs")
    return files[names[0]]


def find_folder(root: Path, split: str, list_file: Path | None) -> tuple[Path, Path | None]:
    """Find the folder that holds A, B and label of a split, and the list of its pairs, or None to use all.

    Raises UserError if `root` is missing, or if it holds all splits and the list is missing.
    """
    require_root(root)
    if (root / split / BEFORE).is_dir() or not (root / BEFORE).is_dir():
        return root / split, list_file
    list_file = list_file or root / "list" / f"{split}.txt"
    if not list_file.is_file():
        raise UserError(
            f"{list_file} is missing: {root} holds {BEFORE} and {AFTER} of all splits, so a list must name the pairs "
            f"of {split}; use --list, or the folders {BEFORE}, {AFTER} and {LABEL} in {root / split}"
        )
    return root, list_file


def require_subfolders(folder: Path, need_labels: bool) -> None:
    """Raise UserError if a split's folder lacks A, B or, if they are needed, labels."""
    for sub in (BEFORE, AFTER, LABEL) if need_labels else (BEFORE, AFTER):
        if (folder / sub).is_dir():
            continue
        inside = [path.name for path in sorted(folder.iterdir()) if (path / sub).is_dir()] if folder.is_dir() else []
        hint = f"; did you mean {folder / inside[0]}?" if inside else ""
        raise UserError(f"no folder {folder / sub}: a split holds {BEFORE}, {AFTER} and {LABEL}{hint}")


def read_headers(
    folder: Path, names: Sequence[str], files: dict[str, dict[str, Path]], bands: Bands | None
) -> tuple[Pair, ...]:
    """Check the headers of all pairs, in threads. `files` holds paths by subfolder and stem.

    Raises a UserError that names the first faults.
    """
    masks = files.get(LABEL, {})

    def check(name: str) -> Pair | str:
        return check_headers(name, files[BEFORE][name], files[AFTER][name], masks.get(name), bands)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(check, names))
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        raise UserError(f"{folder}: {list_names(faults)}")
    return tuple(result for result in results if isinstance(result, Pair))


def check_headers(name: str, before: Path, after: Path, mask: Path | None, bands: Bands | None = None) -> Pair | str:
    """Open the headers of a pair's files; return the pair, or what is wrong with it."""
    sizes: dict[Path, tuple[int, int]] = {}
    for path in (before, after, mask):
        if path is None:
            continue
        if bands is not None and path is not mask:
            try:
                header = read_header(path)
                bands.find(header)
            except UserError as error:
                return str(error)
            sizes[path] = header.size
            continue
        try:
            with open_image(path) as image:
                if path is not mask and (image.mode not in IMAGE_MODES or bits(image) > 8):
                    return (
                        f"{path} is an image of mode {image.mode}, {bits(image)} bit: "
                        "choose --bands, or convert it to 8-bit RGB first, with a stretch of your choice"
                    )
                pages, _ = count_pages(image)
                if pages > 1:
                    return f"{path} holds {pages} pages: save one page per file"
                sizes[path] = upright_size(image)
        except UNREADABLE as error:
            return explain_unreadable(path, error)
    apart = len(set(sizes.values())) > 1
    if (apart or bands is not None) and have_different_grids(before, after):
        return f"{before} and {after} lie on different grids: python -m change regrid brings them to one"
    if apart:
        return "sizes differ: " + ", ".join(f"{path} {width}x{height}" for path, (width, height) in sizes.items())
    return Pair(name, before, after, mask, sizes[before])


# --- facts about splits --------------------------------------------------------------------------------------------


def shared_images(train: Split, val: Split) -> list[str]:
    """Return the names of the val pairs that share an image file, before or after, with train.

    No image is decoded. Files of equal size are compared by 4 KiB from their middle and, if these are equal, by their
    hashes.
    """
    train_files = image_files(train)
    val_files = image_files(val)
    fingerprints: list[Callable[[Path], object]] = [file_size, file_middle, file_hash]
    for fingerprint in fingerprints:
        cached = functools.cache(fingerprint)
        in_train = {cached(path) for path in train_files}
        in_val = {cached(path) for path in val_files}
        train_files = [path for path in train_files if cached(path) in in_val]
        val_files = [path for path in val_files if cached(path) in in_train]
    shared = set(val_files)
    return [pair.name for pair in val.pairs if pair.before in shared or pair.after in shared]


def image_files(split: Split) -> list[Path]:
    """Return the image files of a split, before and after."""
    return [path for pair in split.pairs for path in (pair.before, pair.after)]


def file_size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size


def file_middle(path: Path) -> bytes:
    """Read up to 4 KiB from the middle of a file. Files of equal type and size rarely agree there."""
    with path.open("rb") as file:
        file.seek(file_size(path) // 2)
        return file.read(4096)


def file_end(path: Path) -> bytes:
    """Read up to the last 4 KiB of a file."""
    with path.open("rb") as file:
        file.seek(max(0, file_size(path) - 4096))
        return file.read()


def fingerprint_pair(pair: Pair) -> str:
    """Return 16 hexadecimal digits for the image files of a pair, and 16 for its mask file."""
    samples = [(file_size(path), file_middle(path), file_end(path)) for path in (pair.before, pair.after)]
    images = hashlib.sha256(repr(samples).encode()).hexdigest()[:16]
    return images + (file_hash(pair.mask)[:16] if pair.mask else "0" * 16)
