"""Bring a downloaded data set into the layout for training: `python -m change prepare NAME SOURCE ROOT`.

SOURCE is the download as it is: a folder, a zip file or a folder of zip files, however nested. It becomes
    ROOT/{train,val,test}/{A,B,label}/STEM.*    the same bytes: hard links if possible, else copies
    list/NAME/{train,val,test}.txt              one stem per line
or, with --tile, PNG tiles STEM_Y_X, named after the row and the column of their upper left pixel, and
    ROOT/{train,val,test}/sources.json          what they were cut from, see `change.data.sources`
SOURCE is never written to, and nothing in ROOT is overwritten. After an interruption, run the command again to complete
ROOT.

--val SHARE sets a share of the train pairs aside as val, see `change.data.splitting`. In a data set of one scene,
val is a strip, see `change.data.cutting`. For some data sets, --from_to and --direction write masks with classes, and
ROOT/classes.txt names them, see `change.data.land_cover`, `change.data.direction` and `change.common.classes`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL, SUFFIXES
from change.common.classes import CLASSES, Classes, write_classes
from change.common.errors import OneLineParser, UserError, list_names
from change.common.files import home_folder, make_folder, write_whole
from change.common.logs import start_logging
from change.common.names import SPLITS, files_by_stem
from change.data.archives import Content, File, is_hidden
from change.data.cutting import Cutting, Strip, Tile, cut
from change.data.direction import find_directions
from change.data.downloads import Pairs, find_pairs, read_names
from change.data.known_sets import DATA_SETS, KINDS, DataSet, find_layout
from change.data.made_masks import MakeMask, make_masks, report_counts
from change.data.sources import write_sources
from change.data.splitting import set_val_aside

log = logging.getLogger(__name__)


# --- files in ROOT ---------------------------------------------------------------------------------------------------


def refuse_strangers(pairs: Pairs, folder: Path, tile: int) -> None:
    """Raise UserError if `folder` holds images of other pairs, which would be trained on too."""
    for kind in KINDS:
        if not (folder / kind).is_dir():
            continue
        own = {file_name(name, files[kind]) for name, files in pairs.items() if kind in files}
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


def refuse_other_tiles(folder: Path, stems: Collection[str]) -> None:
    """Raise UserError if `folder` holds tiles with other stems, such as those of another --val."""
    strange = [
        path for kind in KINDS for stem, path in files_by_stem(folder / kind, SUFFIXES).items() if stem not in stems
    ]
    if strange:
        raise UserError(f"{list_names(strange)}: from a run with another --val or --tile; remove {folder}")


def refuse_mixture(root: Path, classes: Classes | None) -> None:
    """Raise UserError if ROOT has masks with classes and they are not wanted, or the other way round."""
    has_classes = (root / CLASSES).exists()
    if has_classes and not classes:
        raise UserError(f"{root / CLASSES} belongs to masks with classes: choose another ROOT, or remove it")
    if classes and not has_classes and any((root / split / LABEL).is_dir() for split in SPLITS):
        raise UserError(f"{root} has masks without classes: choose another ROOT")


def file_name(name: str, content: Content | Tile) -> str:
    """Return the name that a file of a pair gets: the name of the pair, and the file's suffix."""
    return f"{name}{PurePath(content.name).suffix}"


def write_split(pairs: Pairs, folder: Path, cutting: Cutting, workers: int | None) -> list[str]:
    """Write pairs, or their tiles, to folder/{A,B,label}; return the stems for the list.

    `workers` pairs are read at once; None stands for one per core.

    Raises UserError if a file exists with other content, or if a file cannot be read, cut or written.
    """
    for kind in next(iter(pairs.values())):
        make_folder(folder / kind)

    def write(name: str) -> tuple[dict[str, tuple[str, str]], Counter[str]]:
        return write_pair(name, pairs[name], folder, cutting)

    written: dict[str, tuple[str, str]] = {}
    total: Counter[str] = Counter()
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(write, pairs)
        for sources, done in tqdm(results, desc=folder.name, total=len(pairs), unit="pair", disable=None):
            written |= sources
            total += done
    if cutting.tile:
        write_sources(folder, written)
    if cutting.strip:
        refuse_other_tiles(folder, written)
    counts = ", ".join(f"{count} {how}" for how, count in sorted(total.items()))
    log.info("%s: %d pairs; %s: %s", folder, len(pairs), "tiles" if cutting.tile else "files", counts)
    return list(written)


def write_pair(
    name: str, files: Mapping[str, Content], folder: Path, cutting: Cutting
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
    parts: Iterator[tuple[str, Mapping[str, Content | Tile]]] = iter([(name, files)])
    if cutting.tile:
        parts = cut(name, files, cutting)
    for stem, contents in parts:
        for kind, content in contents.items():
            target = folder / kind / file_name(stem, content)
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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. The name of a known data set gets its usual upper and lower case."""
    parser = OneLineParser(
        prog="python -m change prepare", description="Bring a data set into the layout for training."
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(DATA_SETS)}, or a name of your own")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the download: folder, zip file, folder of zips")
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder to create, for train, val and test")
    parser.add_argument(
        "--before",
        default="",
        help="folder of the images before, in SOURCE or in its splits' folders; {split} stands for a split's name",
    )
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
    parser.add_argument(
        "--from_to",
        action="store_true",
        help="write masks with a class for each pair of land covers, of SECOND and HRSCD",
    )
    parser.add_argument(
        "--direction", action="store_true", help="write masks with the classes new and vanished, of S2Looking"
    )
    parser.add_argument(
        "--tile",
        type=int,
        help="write tiles of this side (default: 0, whole images; 256 for WHU-CD and 1000 for HRSCD)",
    )
    parser.add_argument("--overlap", type=int, default=0, help="pixels that neighbouring tiles share (default: 0)")
    parser.add_argument("--list_path", type=Path, help="folder in which NAME with its lists is created (default: list)")
    given = parser.parse_args(arguments)
    given.name = next((known for known in DATA_SETS if known.lower() == given.name.lower()), given.name)
    if given.tile is None:
        given.tile = DATA_SETS[given.name].tile if given.name in DATA_SETS else 0
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
    for option in ("from_to", "direction"):
        able = [name for name, known in DATA_SETS.items() if option == known.classes]
        if getattr(given, option) and given.name not in able:
            raise UserError(f"{given.name} --{option}: only {', '.join(able)} have the masks for it; leave it out")
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


def divide_scene(found: dict[str, Pairs], given: argparse.Namespace) -> dict[str, Pairs]:
    """Return the splits of a scene, of which `Strip` gives one part to train and another to val.

    Raises UserError if there is a val split already or no train split, or if whole images are wanted.
    """
    if "val" in found or "train" not in found or not given.tile:
        raise UserError(
            f"--val {given.val:g} --tile {given.tile}: val becomes a strip of tiles of the train scene, but SOURCE has "
            f"the splits {', '.join(found)}: choose a --tile, or leave --val out"
        )
    return {"train": found["train"], "val": found["train"], **found}


def choose_cuttings(
    splits: Mapping[str, Pairs], known: DataSet | None, given: argparse.Namespace
) -> dict[str, Cutting]:
    """Return how the images of each split are cut. Raises UserError if ROOT/val holds a part of train's scene."""
    divided = known is not None and known.scene
    if divided and "val" not in splits and (given.root / "val").exists():
        raise UserError(f"{given.root / 'val'} was cut from the scene of train by --val: repeat --val, or remove it")
    strips: dict[str, Strip] = {}
    if divided and given.val:
        strips = {split: Strip(given.val, is_val=split == "val") for split in ("train", "val")}
    return {split: Cutting(given.tile, given.overlap, strips.get(split)) for split in splits}


def divide(
    found: dict[str, Pairs], known: DataSet | None, given: argparse.Namespace
) -> tuple[dict[str, Pairs], Classes | None, MakeMask | None]:
    """Set pairs aside as val if that is wanted, and choose how masks are made.

    Returns:
        The splits, whose pairs still have all files of the download; the classes of the masks, if they have classes;
        and what makes the masks, if they are not those of the download.

    Raises:
        UserError: As `set_val_aside`, `find_directions` and `LandCover.from_to` do.
    """
    make: MakeMask | None = known.cover.mark_change if known and known.cover else None
    classes: Classes | None = None
    splits = found
    if given.val and known and known.scene:
        splits = divide_scene(found, given)
    elif given.val:
        divided = set_val_aside(make_masks(found, make)[0], given.val, given.seed)
        origin = {split: split if split in found else "train" for split in divided}
        splits = {split: {name: found[origin[split]][name] for name in pairs} for split, pairs in divided.items()}
    if given.from_to or given.direction:
        if "train" not in found:
            raise UserError(f"{given.source} has no train split, which determines the classes: add it to SOURCE")
        train = found["train"]  # with the pairs set aside, so that the classes do not depend on the draw
        if given.direction:
            classes, make = find_directions(train)
        elif known and known.cover:
            classes, make = known.cover.from_to(train, known.workers)
    return splits, classes, make


def report(root: Path, known: DataSet, counts: Mapping[str, int]) -> None:
    """Log the numbers of pairs by split that differ from the published ones."""
    for split, published in zip(SPLITS, known.pairs, strict=True):
        if counts.get(split, 0) != published:
            log.warning(
                "%s: %d pairs, but %d were published; is the download complete?",
                root / split,
                counts.get(split, 0),
                published,
            )


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change prepare`; return the exit code."""
    given = parse(arguments)
    start_logging()
    known = DATA_SETS.get(given.name)
    with_classes = given.from_to or given.direction
    layout = find_layout(given.name, (given.before, given.after, given.label), with_classes, given.list is not None)
    lists = lists_folder(given)
    check_values(given, lists)
    with contextlib.ExitStack() as zips:
        # Lists that an earlier run with --val wrote must not be taken for lists that come with the program.
        may_be_own = given.val and given.name not in DATA_SETS
        shipped = None if may_be_own else home_folder() / "list" / given.name
        found = find_pairs(given.source, layout, given.list, shipped, zips, "train" if given.val else "")
        splits, classes, make = divide(found, known, given)
        splits, pixels = make_masks(splits, make)
        cuttings = choose_cuttings(splits, known, given)
        for split, pairs in splits.items():
            refuse_strangers(pairs, given.root / split, given.tile)
        if known and known.classes:
            refuse_mixture(given.root, classes)
        if classes:
            write_classes(given.root, classes)
        workers = known.workers if known else None
        written = {
            split: write_split(pairs, given.root / split, cuttings[split], workers) for split, pairs in splits.items()
        }
    for split, stems in written.items():
        write_list(lists / f"{split}.txt", stems, given.root / split)
        report_counts(given.root / split, pixels[split])
    if known:
        # Data sets without an official val split are counted before --val divides their train split.
        counted = splits if known.pairs[1] else found
        report(given.root, known, {split: len(pairs) for split, pairs in counted.items()})
        if known.note and not given.direction and not (known.splits and given.list):
            log.warning("%s: %s", given.name, known.note)
    return 0
