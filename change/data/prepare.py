"""From what people download to what trains: `python -m change prepare NAME SOURCE ROOT`.

SOURCE is a folder, a zip file or a folder of zip files, its layout wrapped in any other folders; it becomes
    ROOT/{train,val,test}/{A,B,label}/STEM.*    the same bytes: hard links where they work, else copies
    list/NAME/{train,val,test}.txt              a stem a line
or, with --tile, PNG tiles STEM_Y_X, after the row and the column of their upper left pixel. SOURCE is never written to,
and nothing in ROOT is overwritten: run again, it completes what was interrupted.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import PIL.Image
from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL, SPLITS, SUFFIXES, files_by_stem
from change.common.errors import OneLineParser, UserError, listed
from change.common.files import home_folder, make_folder, write_whole
from change.common.images import IMAGE_MODES, UNREADABLE, bits
from change.common.logs import start_logging
from change.data.archives import File, Folder, folded, hidden, walk

KINDS = (BEFORE, AFTER, LABEL)
LISTS = home_folder() / "list"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A published data set: the pairs of its splits, its folders of before, after and masks, what to know of it."""

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
        "the masks are those in label; label1 and label2, which houses went and which came, are left out",
    ),
    "CLCD": DataSet((360, 120, 120), ("time1", "time2", "label")),
}


@dataclass(frozen=True)
class Tile:
    """A part of an image, to be stored as PNG."""

    name: str
    image: PIL.Image.Image

    def same(self, target: Path) -> bool:
        """Whether the file `target` holds these pixels; another Pillow may have stored them in other bytes."""
        try:
            with PIL.Image.open(target) as there:
                return np.array_equal(np.asarray(there), np.asarray(self.image))
        except UNREADABLE:
            return False

    def put(self, target: Path) -> str:
        """Make `target`; say how."""
        data = io.BytesIO()
        self.image.save(data, "PNG")
        write_whole(target, data.getvalue())
        return "cut"


Pairs = dict[str, dict[str, File]]  # by stem and kind


# --- what SOURCE holds -----------------------------------------------------------------------------------------------


def find_pairs(
    source: Path, kinds: dict[str, str], list_folder: Path | None, shipped: Path, zips: contextlib.ExitStack
) -> dict[str, Pairs]:
    """The pairs of every split that has any, in natural order or in that of its list.

    `kinds`: what the images of a folder are. Where no folder says which split they are in, lists do: in `list_folder`,
    on disk or beside the images; else in a folder `list` beside them; else in `shipped`. They may name more than there
    is. Raises UserError where nothing is found, or two data sets are; for missing partners; and as `walk` does.
    """
    pairs: dict[str, Pairs] = {split: defaultdict(dict) for split in ("", *SPLITS)}
    lists: dict[Folder, dict[str, File]] = defaultdict(dict)
    tops: dict[str, Folder] = {}  # by split, "" being all of them: what holds its folders
    tails = {folded(PurePath(folder).parts): kind for folder, kind in kinds.items()}
    for folder, file in walk(source, {*SPLITS, *(tail[-1] for tail in tails)}, zips):
        stem, suffix = PurePath(file.name).stem, PurePath(file.name).suffix.lower()
        tail = next((tail for tail in tails if folder[-len(tail) :] == tail), None)
        if suffix in SUFFIXES and tail:
            top = folder[: -len(tail)]
            split = next((part for part in reversed(top) if part in SPLITS), "")
            if tops.setdefault(split, top) != top or ("" in tops and len(tops) > 1):
                raise UserError(f"{source} holds two data sets, or one twice ({file}): give one of their folders")
            add(pairs[split][stem], tails[tail], file)
        elif suffix == ".txt" and stem in SPLITS:
            lists[folder][stem] = file
    folders = {kind: folder for folder, kind in kinds.items()}
    held = {kind for some in pairs.values() for files in some.values() for kind in files}
    if missing := [folder for kind, folder in folders.items() if kind not in held]:
        raise UserError(
            f"{source} has no images in folders {', '.join(missing)}: --before, --after, --label name others"
        )
    if "" in tops:
        on_disk = lists_in(list_folder or shipped)
        beside = lists[tops[""] + folded((list_folder or Path("list")).parts)]
        pairs = by_lists(pairs[""], (on_disk or beside) if list_folder else (beside or on_disk))
    elif list_folder:
        raise UserError(f"--list {list_folder}: {source} has folders for its splits ({', '.join(tops)}): leave it out")
    else:
        pairs = {split: {name: files[name] for name in sorted(files, key=natural)} for split, files in pairs.items()}
    pairs = {split: files for split, files in pairs.items() if files}
    if not pairs:
        raise UserError(
            f"{source}: no folder train, val, test nor list (train.txt, val.txt, test.txt) says which split a pair is "
            "in: --list names a folder of lists"
        )
    lacking = [
        f"{name} in {folder} ({split})"
        for split, files in pairs.items()
        for kind, folder in folders.items()
        for name in files
        if kind not in files[name]
    ]
    if lacking:
        raise UserError(f"{source}: no file for {listed(lacking)}: a pair needs one of its stem in each folder")
    return pairs


def add(files: dict[str, File], key: str, file: File) -> None:
    """Add a file. Raises UserError where there is another one already."""
    if not file.name.isprintable():
        raise UserError(f"{str(file)!r}: the name is not printable text; rename the file")
    other = files.setdefault(key, file)
    sums = {each.entry[1].CRC for each in (other, file) if each.entry}
    if other is not file and ((other.name, other.size) != (file.name, file.size) or len(sums) > 1):
        raise UserError(f"{other} and {file} share a stem and differ: keep one of them")


def by_lists(pairs: Pairs, lists: dict[str, File]) -> dict[str, Pairs]:
    """Those pairs of each split that its list names. Says how many are in no list, or listed and not there."""
    names = {split: read_names(lists[split]) for split in SPLITS if split in lists}
    every = set().union(*names.values())
    if names and every != pairs.keys():
        counts = len(pairs.keys() - every), len(every - pairs.keys())
        log.warning(
            "%s: %d pairs are not listed, and left out; %d listed are not there", listed(lists.values()), *counts
        )
    return {split: {name: pairs[name] for name in some if name in pairs} for split, some in names.items()}


def lists_in(folder: Path) -> dict[str, File]:
    """The lists of splits in a folder on disk."""
    return {split: File(folder / f"{split}.txt") for split in SPLITS if (folder / f"{split}.txt").is_file()}


def read_names(file: File) -> list[str]:
    """The stems in a list, one a line, with or without folder and suffix. Raises UserError for doubles."""
    lines = [line.strip() for line in file.read().decode("utf-8-sig", "replace").splitlines() if line.strip()]
    names = [PurePath(line).stem if PurePath(line).suffix.lower() in SUFFIXES else line for line in lines]
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise UserError(f"{file} names twice: {listed(doubles)}")
    return names


def natural(name: str) -> list[tuple[str, int]]:
    """A key to sort by: train_2 comes before train_10."""
    return [(text, int(digits or 0)) for text, digits in re.findall("([^0-9]*)([0-9]*)", name)]


# --- what ROOT gets --------------------------------------------------------------------------------------------------


def refuse_strangers(pairs: Pairs, folder: Path, tile: int) -> None:
    """Raise UserError where `folder` holds other images than these pairs', which would be trained on with them."""
    for kind in filter(lambda kind: (folder / kind).is_dir(), KINDS):
        own = {files[kind].name for files in pairs.values() if kind in files}
        strange = [
            path
            for stem, path in files_by_stem(folder / kind).items()
            if (stem.rsplit("_", 2)[0] not in pairs if tile else path.name not in own)
        ]
        if strange:
            raise UserError(f"{listed(strange)}: not of SOURCE; choose another ROOT, or give all parts as one SOURCE")


def write_split(pairs: Pairs, folder: Path, tile: int, overlap: int) -> list[str]:
    """Write pairs, or their tiles, to folder/{A,B,label} and say how; return the stems for the list.

    Raises UserError for a file that is there with other content, and for one that cannot be read, cut or written.
    """

    def write_pair(name: str) -> tuple[list[str], Counter[str]]:
        stems: list[str] = []
        done: Counter[str] = Counter()
        for stem, contents in cut(name, pairs[name], tile, overlap) if tile else [(name, pairs[name])]:
            for kind, content in contents.items():
                target = folder / kind / content.name
                if not target.exists():
                    done[content.put(target)] += 1
                elif content.same(target):
                    done["kept"] += 1
                else:
                    raise UserError(f"{target} differs from {pairs[name][kind]}: choose another ROOT, or remove it")
            stems.append(stem)
        return stems, done

    for kind in next(iter(pairs.values())):
        make_folder(folder / kind)
    written: list[str] = []
    total: Counter[str] = Counter()
    with ThreadPoolExecutor() as pool:
        results = pool.map(write_pair, pairs)
        for stems, done in tqdm(results, desc=folder.name, total=len(pairs), unit="pair", disable=None):
            written += stems
            total += done
    counts = ", ".join(f"{count} {how}" for how, count in sorted(total.items()))
    log.info("%s: %d pairs; %s: %s", folder, len(pairs), "tiles" if tile else "files", counts)
    return written


def cut(name: str, files: dict[str, File], tile: int, overlap: int) -> Iterator[tuple[str, dict[str, Tile]]]:
    """The tiles of a pair, row by row; the last ones of a row and of a column end where the image ends.

    Raises UserError for images that differ in size or are smaller than a tile, and as `decode` does.
    """
    images = {kind: decode(file, kind == LABEL) for kind, file in files.items()}
    sizes = {f"{files[kind]} {image.width}x{image.height}": image.size for kind, image in images.items()}
    width, height = images[BEFORE].size
    if len(set(sizes.values())) > 1:
        raise UserError(f"sizes differ: {', '.join(sizes)}")
    if min(width, height) < tile:
        raise UserError(f"{files[BEFORE]} is {width}x{height}: choose a smaller --tile than {tile}")
    rows, columns = ((*range(0, side - tile, tile - overlap), side - tile) for side in (height, width))
    for top, left in itertools.product(rows, columns):
        stem, box = f"{name}_{top}_{left}", (left, top, left + tile, top + tile)
        yield stem, {kind: Tile(f"{stem}.png", image.crop(box)) for kind, image in images.items()}


def decode(file: File, is_mask: bool) -> PIL.Image.Image:
    """An image of 8 bits or fewer a channel, or a grey mask of up to 16, which PNG stores without loss.

    Raises UserError for others and for a file that does not decode.
    """
    data = file.read()
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            depth = bits(opened)  # which loading makes it forget
            image: PIL.Image.Image = opened.copy()
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be decoded ({error}): replace the file") from error
    if image.mode in IMAGE_MODES and depth == 8:
        return image
    levels = np.asarray(image)
    if is_mask and image.mode.startswith("I") and levels.min() >= 0 and levels.max() <= 65535:
        return PIL.Image.fromarray(levels.astype(np.uint16))
    raise UserError(f"{file} is of mode {image.mode}, {depth} bit: convert it to 8 bits, with a stretch of your choice")


def write_list(path: Path, stems: list[str], folder: Path) -> None:
    """Write a list; keep one that is there, and say how it differs from what `folder` holds."""
    if not path.exists():
        write_whole(path, "".join(f"{stem}\n" for stem in stems).encode())
        return
    there = set(read_names(File(path)))
    fewer, more = len(there.difference(stems)), len(set(stems) - there)
    if fewer or more:
        said = "%s is kept: %s lacks %d of its pairs, and has %d others; remove the list for a new one"
        log.warning(said, path, folder, fewer, more)


def kinds_of(name: str, given: Sequence[str]) -> dict[str, str]:
    """What the images of a folder are: of one that is `given`, else of data set `name` as in ROOT or as published.

    Raises UserError where not every kind has a folder of its own.
    """
    known = DATA_SETS.get(name)
    kinds: dict[str, str] = {}
    for kind, published, own in zip(KINDS, known.folders if known else KINDS, given, strict=True):
        kinds |= dict.fromkeys([own] if own else [kind, published] if known else [], kind)
    if set(kinds.values()) != set(KINDS if known or given[2] else KINDS[:2]) or not all(
        PurePath(f).name for f in kinds
    ):
        raise UserError(
            f"{name}: name a folder each by --before, --after and, where there are masks, --label; only "
            f"{', '.join(DATA_SETS)} need none"
        )
    return dict(sorted(kinds.items(), key=lambda item: -item[0].count("/")))  # of two that fit, the closer description


def main(arguments: Sequence[str]) -> int:
    """Parse, find, write; return the exit code."""
    parser = OneLineParser(prog="python -m change prepare", description="Bring a data set into the layout that trains.")
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(DATA_SETS)}, or a name of your own")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="what was downloaded: folder, zip, folder of zips")
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to make, of train, val and test")
    parser.add_argument("--before", default="", help="folder of the images before, in SOURCE or in its splits' folders")
    parser.add_argument("--after", default="", help="folder of the images after")
    parser.add_argument("--label", default="", help="folder of the masks, if there are any")
    parser.add_argument("--list", type=Path, help="folder of train.txt, val.txt, test.txt that split SOURCE")
    parser.add_argument("--tile", type=int, default=0, help="write tiles of this side (default: 0, whole images)")
    parser.add_argument("--overlap", type=int, default=0, help="pixels that neighbouring tiles share (default: 0)")
    parser.add_argument("--list_path", type=Path, default=LISTS, help="folder of the lists' folder (default: list)")
    given = parser.parse_args(arguments)
    start_logging()
    name = next((known for known in DATA_SETS if known.lower() == given.name.lower()), given.name)
    known = DATA_SETS.get(name)
    kinds = kinds_of(name, (given.before, given.after, given.label))
    if name != Path(name).name or hidden(name):
        raise UserError(f"NAME {name}: choose one without a path, for it names the folder of the lists")
    if given.tile < 0 or not 0 <= given.overlap < max(given.tile, 1):
        raise UserError(f"--tile {given.tile} --overlap {given.overlap}: choose 1 or more, and an overlap below")
    if not given.source.exists():
        raise UserError(f"no {given.source}: SOURCE is what was downloaded, a folder or a zip file")
    suffix = f"-tile{given.tile}" + f"-overlap{given.overlap}" * bool(given.overlap) if given.tile else ""
    lists: Path = given.list_path / (name + suffix)
    for folder in (lists, *(given.root / split for split in SPLITS)):
        if folder.resolve().is_relative_to(given.source.resolve()):
            raise UserError(f"{folder} is in SOURCE, where nothing is written: choose a folder outside {given.source}")
    with contextlib.ExitStack() as zips:
        splits = find_pairs(given.source, kinds, given.list, LISTS / name, zips)
        for split, pairs in splits.items():
            refuse_strangers(pairs, given.root / split, given.tile)
        written = {s: write_split(pairs, given.root / s, given.tile, given.overlap) for s, pairs in splits.items()}
    for split, stems in written.items():
        write_list(lists / f"{split}.txt", stems, given.root / split)
    for split, published in zip(SPLITS, known.pairs if known else (), strict=False):
        if (count := len(splits.get(split, ()))) != published:
            log.warning("%s: %d pairs, of %d published; is the download whole?", given.root / split, count, published)
    if known and known.note:
        log.warning("%s: %s", name, known.note)
    return 0
