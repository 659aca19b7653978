"""Find the files of a data set for `python -m change check`, decode each once, and keep what comparisons need."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL, SUFFIXES, Pair, check_headers, read_images
from change.common.band_files import measure, read_header
from change.common.bands import Channels, choose_bands
from change.common.errors import UserError, list_names
from change.common.files import require_root
from change.common.images import Image, image_hash
from change.common.names import SPLITS, files_by_stem, read_list
from change.data.mask_levels import read_levels
from change.data.masks import LevelCounts, count_levels
from change.data.similarity import Shift, edges, shift, thumbnail

Files = tuple[str, str, dict[str, Path]]  # a pair's split, its stem, and its files by subfolder


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `pairs`: the "split/name" of the pairs it concerns; the first two are pictured."""

    rank: str
    kind: str
    text: str
    pairs: tuple[str, ...] = ()


@dataclass
class PairFacts:
    """The facts about a decoded pair that comparisons need.

    Attributes:
        split: The name of its split.
        pair: Its files.
        hashes: `image_hash` of before and after.
        thumbs: Thumbnails of before and after.
        edges: The outermost pixels of before and after, see `change.data.similarity.edges`.
        shift: The shift of after relative to before.
        mask: The grey levels of the mask, if there is one.
    """

    split: str
    pair: Pair
    hashes: tuple[str, str]
    thumbs: tuple[Image, Image]
    edges: tuple[list[Image], list[Image]]
    shift: Shift
    mask: LevelCounts | None = None

    @property
    def key(self) -> str:
        """The name of the pair in findings."""
        return f"{self.split}/{self.pair.name}"


def find_files(root: Path, lists: Path | None) -> tuple[list[Finding], list[Files]]:
    """Find the files of all splits by stem; pairs that lack a file are findings.

    Args:
        root: A folder of train, val and test, or of A, B and label.
        lists: The folder of train.txt, val.txt and test.txt; by default ROOT/list.

    Returns:
        The findings, and the files of all complete pairs.

    Raises:
        UserError: For the same reasons as `find_splits`.
    """
    folders, names = find_splits(root, lists)
    found: list[Finding] = []
    complete: list[Files] = []
    for split, folder in folders.items():
        files = {
            sub: files_by_stem(folder / sub, SUFFIXES) for sub in (BEFORE, AFTER, LABEL) if (folder / sub).is_dir()
        }
        every: set[str] = set().union(*files.values())
        if LABEL not in files:
            found.append(Finding("warning", "no labels", f"{folder} has no folder {LABEL}"))
        for stem in names.get(split) or sorted(every):
            lacking = [sub for sub in files if stem not in files[sub]]
            if lacking or AFTER not in files:
                text = f"{folder}: {stem} has no file in {list_names(lacking or [AFTER])}"
                found.append(Finding("error", "missing partner", text, (f"{split}/{stem}",)))
            else:
                complete.append((split, stem, {sub: files[sub][stem] for sub in files}))
        if split in names and split == next(iter(folders)):  # once, because all splits are in one folder
            unlisted = every.difference(*names.values())
            if unlisted:
                found.append(Finding("note", "in no list", f"{folder}: {list_names(sorted(unlisted))}"))
    return found, complete


def find_splits(root: Path, lists: Path | None) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Find the folder of every split and, if one folder holds all splits, the names in their lists.

    Raises UserError if no split is found, if a list is wrong, or if `lists` is given but does nothing.
    """
    require_root(root)
    folders = {split: root / split for split in SPLITS if (root / split / BEFORE).is_dir()}
    if folders and lists:
        raise UserError(f"--list {lists}: {root} has folders for its splits ({', '.join(folders)}): leave it out")
    names: dict[str, list[str]] = {}
    if not folders and (root / BEFORE).is_dir():
        paths = {split: (lists or root / "list") / f"{split}.txt" for split in SPLITS}
        stems = files_by_stem(root / BEFORE, SUFFIXES)
        names = {split: read_list(path, SUFFIXES, stems) for split, path in paths.items() if path.is_file()}
        if lists and not names:
            raise UserError(f"--list {lists} has no train.txt, val.txt or test.txt: choose another folder")
        folders = dict.fromkeys(names, root) or {root.resolve().name: root}
    if not folders:
        raise UserError(f"{root} holds neither train, val or test, nor {BEFORE}, {AFTER} and {LABEL}: check the path")
    return folders, names


def measure_files(complete: Sequence[Files], bands: str, colours: str) -> Channels | None:
    """Choose the bands of a data set as train.py does, and measure them in all images; None without images.

    Raises UserError if a band does not exist, or if an image cannot be read.
    """
    paths = [files[sub] for _, _, files in complete for sub in (BEFORE, AFTER)]
    return measure(paths, choose_bands(bands, colours, read_header(paths[0]))) if paths else None


def inspect_pairs(
    complete: Sequence[Files], channels: Channels | None = None, indexed: bool = False
) -> tuple[list[PairFacts], list[Finding]]:
    """Decode every file once, in threads. A pair that does not decode, or that training refuses, is a finding.

    `channels`: the bands to read; None for 8-bit RGB. `indexed`: as in `read_levels`.
    """
    facts: list[PairFacts] = []
    found: list[Finding] = []
    inspect = functools.partial(inspect_pair, channels=channels, indexed=indexed)
    progress = tqdm(total=len(complete), desc="decode", unit="pair", leave=False)
    with one_opencv_thread(), ThreadPoolExecutor() as pool, progress as bar:
        for (split, stem, _), result in zip(complete, pool.map(inspect, complete), strict=True):
            if isinstance(result, str):
                found.append(Finding("error", "refused", result, (f"{split}/{stem}",)))
            else:
                facts.append(result)
            bar.update()
    return facts, found


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread for the duration of a `with` block, in which a thread pool uses all cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def inspect_pair(files: Files, channels: Channels | None = None, indexed: bool = False) -> PairFacts | str:
    """Decode one pair and keep what comparisons need, or return why it cannot be used."""
    split, stem, paths = files
    bands = None if channels is None else channels.bands
    pair = check_headers(stem, paths[BEFORE], paths[AFTER], paths.get(LABEL), bands)
    if isinstance(pair, str):
        return pair
    try:
        before, after = read_images(pair, bands)
        hashes = image_hash(before), image_hash(after)
        if channels is not None:
            before, after = channels.picture(before), channels.picture(after)
        facts = PairFacts(
            split,
            pair,
            hashes=hashes,
            thumbs=(thumbnail(before), thumbnail(after)),
            edges=(edges(before), edges(after)),
            shift=shift(before, after),
        )
        if pair.mask:
            facts.mask = count_levels(pair.mask, read_levels(pair.mask, indexed))
    except UserError as error:
        return str(error)
    return facts
