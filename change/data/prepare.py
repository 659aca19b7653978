"""Bring a downloaded data set into the layout for training: `python -m change prepare NAME SOURCE ROOT`.

SOURCE is the download as it is: a folder, a zip file or a folder of zip files, however nested. It becomes
    ROOT/{train,val,test}/{A,B,label}/STEM.*    the same bytes: hard links if possible, else copies
    list/NAME/{train,val,test}.txt              one stem per line
or, with --tile, PNG tiles STEM_Y_X, named after the row and the column of their upper left pixel, and
    ROOT/{train,val,test}/sources.json          what they were cut from, see `change.data.sources`
SOURCE is never written to, and nothing in ROOT is overwritten. After an interruption, run the command again to complete
ROOT.

--val SHARE sets a share of the train pairs aside as val, see `change.data.splitting`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import PIL.Image
from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL, SPLITS, SUFFIXES
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import home_folder, make_folder, write_whole
from change.common.images import (
    IMAGE_MODES,
    PIXEL_LIMIT,
    UNREADABLE,
    bits,
    image_hash,
    open_image,
    stored_as,
    upright,
)
from change.common.logs import start_logging
from change.common.names import files_by_stem
from change.data.archives import File, is_hidden
from change.data.downloads import Pairs, find_pairs, read_names
from change.data.masks import FEW_BITS, has_levels_in_colour, refuse_no_data
from change.data.sources import write_sources
from change.data.splitting import set_val_aside

KINDS = (BEFORE, AFTER, LABEL)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
        pairs: The number of pairs in train, val and test.
        folders: The names of its folders of before, after and masks.
        note: A warning that is logged.
    """

    pairs: tuple[int, int, int]
    folders: tuple[str, ...] = KINDS
    note: str = ""


DATA_SETS = {
    "LEVIR-CD": DataSet((445, 64, 128)),
    "LEVIR-CD-256": DataSet((7120, 1024, 2048)),
    "DSIFN-CD": DataSet((3600, 340, 48), ("t1", "t2", "mask")),
    "DSIFN-CD-256": DataSet(
        (14400, 1360, 192),
        note="164 of the 192 test images are also in train: scores on test are not scores of unseen data",
    ),
    "S2Looking": DataSet(
        (3500, 500, 1000),
        ("Image1", "Image2", "label"),
        "the masks are those in label; label1 and label2 (houses that appeared, houses that vanished) are left out",
    ),
    "CLCD": DataSet((360, 120, 120), ("time1", "time2", "label")),
}


# --- tiles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A part of an image, to be stored as PNG. `source` is the `image_hash` of the whole image; "" for a mask."""

    name: str
    image: PIL.Image.Image
    source: str

    def same(self, target: Path) -> bool:
        """Tell whether the file `target` has these pixels. Its bytes may differ if another Pillow wrote it."""
        try:
            with open_image(target) as there:
                return np.array_equal(np.asarray(there), np.asarray(self.image))
        except UNREADABLE:
            return False

    def put(self, target: Path) -> str:
        """Write the file `target`; return "cut"."""
        data = io.BytesIO()
        self.image.save(data, "PNG")
        write_whole(target, data.getvalue())
        return "cut"


def cut(name: str, files: dict[str, File], tile: int, overlap: int) -> Iterator[tuple[str, dict[str, Tile]]]:
    """Yield the stem and the tiles of a pair, row by row.

    The last tiles of a row and of a column end at the image's border. Raises UserError if images differ in size or are
    smaller than a tile, or for the same reasons as `decode`.
    """
    images = {kind: decode(file, kind == LABEL) for kind, file in files.items()}
    sizes = {f"{files[kind]} {image.width}x{image.height}": image.size for kind, image in images.items()}
    width, height = images[BEFORE].size
    if len(set(sizes.values())) > 1:
        raise UserError(f"sizes differ: {', '.join(sizes)}")
    if min(width, height) < tile:
        raise UserError(f"{files[BEFORE]} is {width}x{height}: choose a smaller --tile than {tile}")
    sources = {kind: "" if kind == LABEL else image_hash(np.asarray(images[kind].convert("RGB"))) for kind in images}
    tops, lefts = ([*range(0, side - tile, tile - overlap), side - tile] for side in (height, width))
    for top, left in itertools.product(tops, lefts):
        stem, box = f"{name}_{top}_{left}", (left, top, left + tile, top + tile)
        with PIXEL_LIMIT.lifted():
            tiles = {kind: Tile(f"{stem}.png", image.crop(box), sources[kind]) for kind, image in images.items()}
        yield stem, tiles


def decode(file: File, is_mask: bool) -> PIL.Image.Image:
    """Decode an image of at most 8 bits per channel, or a grey mask of up to 16 bits, which PNG stores without loss.

    An orientation tag is followed.

    Raises UserError for other images, for a mask with pixels that are declared as no data, and for a file that does not
    decode.
    """
    data = file.read()
    try:
        with open_image(io.BytesIO(data)) as opened:
            depth, stored = bits(opened), stored_as(opened)  # before Pillow loads the pixels and forgets them
            levels_only = is_mask and has_levels_in_colour(opened)
            image = upright(opened).copy()
            if is_mask:  # the tiles would not declare their nodata
                refuse_no_data(file, opened, np.asarray(image))
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be decoded ({error}): replace the file") from error
    if is_mask and any(name in stored for name in FEW_BITS):
        raise UserError(f"{file} is a grey mask of 2 or 4 bits: save one channel of 8 bits to cut it into tiles")
    if levels_only:
        return PIL.Image.fromarray(np.asarray(image))  # without its colour table
    if image.mode in IMAGE_MODES and depth == 8:
        return image
    levels = np.asarray(image)
    if is_mask and image.mode.startswith("I") and levels.min() >= 0 and levels.max() <= 65535:
        return PIL.Image.fromarray(levels.astype(np.uint16))
    raise UserError(f"{file} is of mode {image.mode}, {depth} bit: convert it to 8 bits, with a stretch of your choice")


# --- files in ROOT ---------------------------------------------------------------------------------------------------


def refuse_strangers(pairs: Pairs, folder: Path, tile: int) -> None:
    """Raise UserError if `folder` holds images of other pairs, which would be trained on too."""
    for kind in KINDS:
        if not (folder / kind).is_dir():
            continue
        own = {files[kind].name for files in pairs.values() if kind in files}
        strange = []
        for stem, path in files_by_stem(folder / kind, SUFFIXES).items():
            known = stem.rsplit("_", 2)[0] in pairs if tile else path.name in own
            if not known:
                strange.append(path)
        if strange:
            raise UserError(
                f"{list_names(strange)}: not from SOURCE, or now in another split; choose another ROOT, or give all "
                "parts as one SOURCE"
            )


def write_split(pairs: Pairs, folder: Path, tile: int, overlap: int) -> list[str]:
    """Write pairs, or their tiles, to folder/{A,B,label}; return the stems for the list.

    Raises UserError if a file exists with other content, or if a file cannot be read, cut or written.
    """
    for kind in next(iter(pairs.values())):
        make_folder(folder / kind)

    def write(name: str) -> tuple[dict[str, tuple[str, str]], Counter[str]]:
        return write_pair(name, pairs[name], folder, tile, overlap)

    written: dict[str, tuple[str, str]] = {}
    total: Counter[str] = Counter()
    with ThreadPoolExecutor() as pool:
        results = pool.map(write, pairs)
        for sources, done in tqdm(results, desc=folder.name, total=len(pairs), unit="pair", disable=None):
            written |= sources
            total += done
    if tile:
        write_sources(folder, written)
    counts = ", ".join(f"{count} {how}" for how, count in sorted(total.items()))
    log.info("%s: %d pairs; %s: %s", folder, len(pairs), "tiles" if tile else "files", counts)
    return list(written)


def write_pair(
    name: str, files: dict[str, File], folder: Path, tile: int, overlap: int
) -> tuple[dict[str, tuple[str, str]], Counter[str]]:
    """Write a pair's files, or their tiles.

    Returns:
        The hashes of the images before and after that each tile was cut from, by its stem ("" for whole images); and
        the number of files "linked", "copied" and so on.

    Raises:
        UserError: If a file exists with other content, or cannot be read, cut or written.
    """
    sources: dict[str, tuple[str, str]] = {}
    done: Counter[str] = Counter()
    parts: Iterator[tuple[str, dict[str, File] | dict[str, Tile]]]
    parts = cut(name, files, tile, overlap) if tile else iter([(name, files)])
    for stem, contents in parts:
        for kind, content in contents.items():
            target = folder / kind / content.name
            if not target.exists():
                done[content.put(target)] += 1
            elif content.same(target):
                done["kept"] += 1
            else:
                raise UserError(f"{target} differs from {files[kind]}: choose another ROOT, or remove it")
        before, after = (getattr(contents[kind], "source", "") for kind in (BEFORE, AFTER))
        sources[stem] = (before, after)
    return sources, done


def write_list(path: Path, stems: list[str], folder: Path) -> None:
    """Write a list. An existing list is kept, and a warning counts how it differs from the pairs in `folder`."""
    if not path.exists():
        write_whole(path, "".join(f"{stem}\n" for stem in stems).encode())
        return
    names = set(read_names(File(path), stems))
    lacking, unlisted = len(names.difference(stems)), len(set(stems) - names)
    if lacking or unlisted:
        log.warning(
            "%s is kept: %s lacks %d of its pairs, and has %d others; remove the list for a new one",
            path,
            folder,
            lacking,
            unlisted,
        )


# --- the command -----------------------------------------------------------------------------------------------------


def kinds_of(name: str, given: Sequence[str]) -> dict[str, str]:
    """Return the kind of image (A, B or label) that each folder holds, by the folder's name.

    Args:
        name: The data set. The folders of a known one have the names of ROOT's folders, or the published names.
        given: The names of the folders of before, after and masks on the command line, "" if not given.

    Raises:
        UserError: If a kind has no folder, or shares it with another.
    """
    known = DATA_SETS.get(name)
    kinds: dict[str, str] = {}
    for kind, published, own in zip(KINDS, known.folders if known else KINDS, given, strict=True):
        if own:
            kinds[own] = kind
        elif known:
            kinds[kind] = kind
            kinds[published] = kind
    needed = KINDS if known or given[2] else KINDS[:2]
    if set(kinds.values()) != set(needed) or not all(PurePath(folder).name for folder in kinds):
        raise UserError(
            f"{name}: name a folder with each of --before, --after and, if there are masks, --label; only "
            f"{', '.join(DATA_SETS)} do not need these options"
        )
    return dict(sorted(kinds.items(), key=lambda item: -item[0].count("/")))  # the longest path is tried first


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. The name of a known data set gets its usual upper and lower case."""
    parser = OneLineParser(
        prog="python -m change prepare", description="Bring a data set into the layout for training."
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(DATA_SETS)}, or a name of your own")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the download: folder, zip file, folder of zips")
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to create, for train, val and test")
    parser.add_argument("--before", default="", help="folder of the images before, in SOURCE or in its splits' folders")
    parser.add_argument("--after", default="", help="folder of the images after")
    parser.add_argument("--label", default="", help="folder of the masks, if there are any")
    parser.add_argument("--list", type=Path, help="folder of train.txt, val.txt, test.txt, which split SOURCE")
    parser.add_argument(
        "--val",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="share of the train pairs to set aside as val, such as 0.2",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of --val (default: 0)")
    parser.add_argument("--tile", type=int, default=0, help="write tiles of this side (default: 0, whole images)")
    parser.add_argument("--overlap", type=int, default=0, help="pixels that neighbouring tiles share (default: 0)")
    parser.add_argument("--list_path", type=Path, help="folder in which NAME with its lists is created (default: list)")
    given = parser.parse_args(arguments)
    given.name = next((known for known in DATA_SETS if known.lower() == given.name.lower()), given.name)
    return given


def check_values(given: argparse.Namespace, lists: Path) -> None:
    """Raise UserError for wrong values, and for output folders inside SOURCE."""
    if given.name != Path(given.name).name or is_hidden(given.name):
        raise UserError(f"NAME {given.name}: choose a name without a path; the folder of the lists gets it")
    if given.tile < 0 or not 0 <= given.overlap < max(given.tile, 1):
        raise UserError(
            f"--tile {given.tile} --overlap {given.overlap}: choose a --tile of 1 or more, and a smaller --overlap"
        )
    if not 0 <= given.val < 1 or given.seed < 0:
        raise UserError(
            f"--val {given.val:g} --seed {given.seed}: choose a share above 0 and below 1, and a seed of 0 or more"
        )
    if not given.source.exists():
        raise UserError(f"{given.source} does not exist: SOURCE is the download, a folder or a zip file")
    for folder in (lists, *(given.root / split for split in SPLITS)):
        if folder.resolve().is_relative_to(given.source.resolve()):
            raise UserError(f"{folder} is in SOURCE, where nothing is written: choose a folder outside {given.source}")


def lists_folder(given: argparse.Namespace) -> Path:
    """Return the folder for the lists, such as list/NAME or list/NAME-tile256-overlap32."""
    name = given.name
    if given.tile:
        name += f"-tile{given.tile}"
        if given.overlap:
            name += f"-overlap{given.overlap}"
    return Path(given.list_path or home_folder() / "list", name)


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change prepare`; return the exit code."""
    given = parse(arguments)
    start_logging()
    kinds = kinds_of(given.name, (given.before, given.after, given.label))
    lists = lists_folder(given)
    check_values(given, lists)
    with contextlib.ExitStack() as zips:
        # Lists that an earlier run with --val wrote must not be taken for lists that come with the program.
        may_be_own = given.val and given.name not in DATA_SETS
        shipped = None if may_be_own else home_folder() / "list" / given.name
        splits = find_pairs(given.source, kinds, given.list, shipped, zips, "train" if given.val else "")
        if given.val:
            splits = set_val_aside(splits, given.val, given.seed)
        for split, pairs in splits.items():
            refuse_strangers(pairs, given.root / split, given.tile)
        written = {
            split: write_split(pairs, given.root / split, given.tile, given.overlap) for split, pairs in splits.items()
        }
    for split, stems in written.items():
        write_list(lists / f"{split}.txt", stems, given.root / split)
    known = DATA_SETS.get(given.name)
    if known:
        for split, published in zip(SPLITS, known.pairs, strict=True):
            count = len(splits.get(split, ()))
            if count != published:
                log.warning(
                    "%s: %d pairs, but %d were published; is the download complete?",
                    given.root / split,
                    count,
                    published,
                )
        if known.note:
            log.warning("%s: %s", given.name, known.note)
    return 0
