"""The pairs in a download: which files belong together, what they show, and which split they are in."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from change.change_dataloader import SUFFIXES
from change.common.errors import UserError, list_names
from change.common.names import SPLITS, decode_text, natural_order, parse_list
from change.data.archives import Content, File, Folder, normalise_folder, walk

Found = dict[str, dict[str, File]]  # files of a download, by the name of their pair and by kind
Pairs = dict[str, dict[str, Content]]  # the same, once masks may have been made
PLACEHOLDER = "{split}"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a download is laid out.

    Attributes:
        kinds: The kind of the images in a folder, by the folder's name or the last parts of its path. The first that
            fits counts. {split} stands for a folder that `splits` names.
        splits: The split that a folder stands for, by the folder's name in lower case; "" if lists divide its images.
        name_of: Returns the name of a pair for the stem of any of its files. It may raise UserError.
    """

    kinds: Mapping[str, str]
    splits: Mapping[str, str] = field(default_factory=lambda: {split: split for split in SPLITS})
    name_of: Callable[[str], str] = str

    def tails(self) -> Iterator[tuple[Folder, str, str]]:
        """Yield the last parts of every folder with images, their kind and, if there is a {split}, their split."""
        for folder, kind in self.kinds.items():
            divided = self.splits if PLACEHOLDER in folder else {"": ""}
            for name, split in divided.items():
                yield normalise_folder(PurePath(folder.replace(PLACEHOLDER, name)).parts), kind, split


@dataclass
class Download:
    """What was found in a download.

    Attributes:
        pairs: Files by split, stem and kind; the split is "" for images that no folder assigns to one.
        lists: Lists of names, by the folder they lie in and their split.
        tops: By split, the folder that holds its folders of images.
    """

    pairs: dict[str, Found] = field(default_factory=lambda: {split: defaultdict(dict) for split in ("", *SPLITS)})
    lists: dict[Folder, dict[str, File]] = field(default_factory=lambda: defaultdict(dict))
    tops: dict[str, Folder] = field(default_factory=dict)


def find_pairs(
    source: Path,
    layout: Layout,
    list_folder: Path | None,
    shipped: Path | None,
    zips: contextlib.ExitStack,
    without_lists: str = "",
) -> dict[str, Pairs]:
    """Find the pairs of every split that has any, in natural order or in the order of the split's list.

    Folders named train, val and test assign images to splits; without them, lists do. A list may name pairs that do not
    exist.

    Args:
        source: A folder, which may contain zip files, or a zip file.
        layout: What its folders hold.
        list_folder: The folder of the lists, on disk or beside the images. By default, the folder "list" beside the
            images is used, and `shipped` if that does not exist.
        shipped: The folder of the lists that come with the program, or None.
        zips: The stack that closes the zip files.
        without_lists: The split of pairs that neither folders nor lists assign to one; "" if that is an error.

    Raises:
        UserError: If there is no data set or more than one, if a pair lacks a file, or for the same reasons as `walk`.
    """
    found = collect(source, layout, zips)
    folders = {kind: folder for folder, kind in layout.kinds.items()}
    held = {kind for pairs in found.pairs.values() for files in pairs.values() for kind in files}
    missing = [folder for kind, folder in folders.items() if kind not in held]
    if missing:
        raise UserError(
            f"{source} has no images in folders {', '.join(missing)}: name its folders with --before, --after, --label"
        )
    if "" in found.tops:
        lists = choose_lists(found, list_folder, shipped)
        alone = {without_lists: in_natural_order(found.pairs[""])} if without_lists else {}
        splits = split_by_lists(found.pairs[""], lists, layout.name_of) if lists else alone
    elif list_folder:
        folders_there = ", ".join(found.tops)
        raise UserError(f"--list {list_folder}: {source} has folders for its splits ({folders_there}): leave it out")
    else:
        splits = {split: in_natural_order(pairs) for split, pairs in found.pairs.items()}
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if not splits:
        raise UserError(
            f"{source} has no splits: it needs folders train, val, test, or lists train.txt, val.txt, test.txt; "
            "--list names the folder of the lists, and --val 0.2 splits the pairs"
        )
    lacking = [
        f"{name} in {folder} ({split})"
        for split, pairs in splits.items()
        for kind, folder in folders.items()
        for name, files in pairs.items()
        if kind not in files
    ]
    if lacking:
        raise UserError(
            f"{source}: no file for {list_names(lacking)}: every pair needs a file of its stem in each folder"
        )
    return {split: {name: {**files} for name, files in pairs.items()} for split, pairs in splits.items()}


def in_natural_order(pairs: Found) -> Found:
    """Return pairs in the natural order of their stems."""
    return {name: pairs[name] for name in sorted(pairs, key=natural_order)}


def collect(source: Path, layout: Layout, zips: contextlib.ExitStack) -> Download:
    """Collect the images and lists of a download.

    Raises UserError if it holds two data sets, or for the same reasons as `walk` and `Layout.name_of`.
    """
    found = Download()
    tails = list(layout.tails())
    for folder, file in walk(source, {*layout.splits, *(part for tail, _, _ in tails for part in tail)}, zips):
        stem, suffix = PurePath(file.name).stem, PurePath(file.name).suffix.lower()
        fitting = next(((tail, kind, split) for tail, kind, split in tails if folder[-len(tail) :] == tail), None)
        if suffix in SUFFIXES and fitting:
            tail, kind, split = fitting
            top = folder[: -len(tail)]
            split = split or next((layout.splits[part] for part in reversed(top) if part in layout.splits), "")
            if found.tops.setdefault(split, top) != top or ("" in found.tops and len(found.tops) > 1):
                raise UserError(f"{source} holds two data sets, or one twice ({file}): give the folder of one")
            add(found.pairs[split][layout.name_of(stem)], kind, file)
        elif suffix == ".txt" and stem in SPLITS:
            found.lists[folder][stem] = file
    return found


def add(files: dict[str, File], kind: str, file: File) -> None:
    """Add a file to a pair; a second copy of the same file is ignored.

    Raises UserError if the pair already has another file of this kind, or if the name is not printable text.
    """
    if not file.name.isprintable():
        raise UserError(f"{str(file)!r}: the name is not printable text; rename the file")
    other = files.setdefault(kind, file)
    sums = {each.entry[1].CRC for each in (other, file) if each.entry}
    if other is not file and ((other.name, other.size) != (file.name, file.size) or len(sums) > 1):
        raise UserError(f"{other} and {file} share a stem and differ: keep one of them")


def choose_lists(found: Download, list_folder: Path | None, shipped: Path | None) -> dict[str, File]:
    """Choose the lists that split a download.

    Lists on disk come first if `list_folder` is given, otherwise lists beside the images come first.
    """
    folder = list_folder or shipped
    on_disk = lists_in(folder) if folder else {}
    beside = found.lists[found.tops[""] + normalise_folder((list_folder or Path("list")).parts)]
    if list_folder:
        return on_disk or beside
    return beside or on_disk


def split_by_lists(pairs: Found, lists: dict[str, File], name_of: Callable[[str], str]) -> dict[str, Found]:
    """Assign pairs to the splits whose lists name them. `name_of`: see `Layout`.

    A warning counts the pairs that no list names, and the names without a pair.
    """
    names = {split: [*map(name_of, read_names(lists[split], pairs))] for split in SPLITS if split in lists}
    every: set[str] = set().union(*names.values())
    if names and every != pairs.keys():
        log.warning(
            "%s: %d pairs are in no list, and are left out; %d listed names have no pair",
            list_names(lists.values()),
            len(pairs.keys() - every),
            len(every - pairs.keys()),
        )
    return {split: {name: pairs[name] for name in some if name in pairs} for split, some in names.items()}


def lists_in(folder: Path) -> dict[str, File]:
    """Find the lists of splits in a folder on disk."""
    return {split: File(folder / f"{split}.txt") for split in SPLITS if (folder / f"{split}.txt").is_file()}


def read_names(file: File, stems: Collection[str]) -> list[str]:
    """Read the stems from a list: one name per line, with or without folder and suffix. `stems` are those that exist.

    Raises UserError if a stem occurs twice, or if the list is not in UTF-8.
    """
    return parse_list(decode_text(file.read(), file), SUFFIXES, file, drop_folders=True, stems=stems)
