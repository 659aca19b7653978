"""The published data sets that `python -m change prepare` knows by name, and how their downloads are laid out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from change.change_dataloader import AFTER, BEFORE, LABEL
from change.common.errors import UserError
from change.common.names import SPLITS
from change.data.direction import LABEL_1, LABEL_2
from change.data.downloads import PLACEHOLDER, Layout
from change.data.land_cover import AFTER_COVER, BEFORE_COVER, LandCover

KINDS = (BEFORE, AFTER, LABEL)


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
        pairs: The number of pairs in train, val and test.
        folders: The names of its folders of before, after and masks; no masks if they are made from `more`.
        note: A warning that is logged.
        more: Its folders of other masks, and their kinds.
        classes: The option that makes masks with classes from them, without dashes.
        cover: How its masks of land cover are stored, if it has any.
        splits: The splits for which folders with other names than train, val and test stand, in lower case.
        name_of: Returns the name of a pair for the stem of any of its files.
        scene: Whether each split is one scene, so that --val divides the scene of train.
        tile: The side of the tiles unless --tile is given; 0 for whole images.
        workers: The number of pairs that are read at once; None for as many as there are cores.
    """

    pairs: tuple[int, int, int]
    folders: tuple[str, ...] = KINDS
    note: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    classes: str = ""
    cover: LandCover | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    name_of: Callable[[str], str] = str
    scene: bool = False
    tile: int = 0
    workers: int | None = None


def name_scene(stem: str) -> str:
    """Return the name of the only pair of each split of WHU-CD, whose files are named after their date."""
    return "christchurch"


def name_place(stem: str) -> str:
    """Return the name of a pair of HRSCD, "14-0415-6890", from the stem of a file, "14-2012-0415-6890-LA93-0M50-E080".

    It consists of the department and of the coordinates in kilometres. The year differs between the dates. Raises
    UserError for other stems.
    """
    found = re.match(r"(\w{2,3})-(?:\d{4}-)?(\d{4})-(\d{4})(?:-|$)", stem)
    if not found:
        raise UserError(f"{stem} is no name of HRSCD, such as 14-2012-0415-6890-LA93-0M50-E080: remove the file")
    return "-".join(found.groups())


# Colours as published with the data set.
SECOND_COVER = LandCover(
    names=("water", "non-vegetated ground", "low vegetation", "tree", "building", "playground"),
    colours=(0x0000FF, 0x808080, 0x008000, 0x00FF00, 0x800000, 0xFF0000),
)
HRSCD_COVER = LandCover(("no information", "artificial surfaces", "agricultural areas", "forests", "wetlands", "water"))

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
        more={"label1": LABEL_1, "label2": LABEL_2},
        classes="direction",
    ),
    "CLCD": DataSet((360, 120, 120), ("time1", "time2", "label")),
    "SYSU-CD": DataSet((12000, 4000, 4000), ("time1", "time2", "label")),
    "WHU-CD": DataSet(
        (1, 0, 1),
        ("2012/whole_image/{split}/image", "2016/whole_image/{split}/image", "change_label/{split}"),
        name_of=name_scene,
        scene=True,
        tile=256,
    ),
    "WHU-CD-256": DataSet(
        (6096, 762, 762),
        note="this split was drawn at random from the tiles of one scene, not published with the data: tiles of val "
        "and test touch those of train, so scores are too high; WHU-CD has the official geographic split",
    ),
    "SECOND": DataSet(
        (2968, 0, 1694),
        ("im1", "im2", ""),
        more={"label1": BEFORE_COVER, "label2": AFTER_COVER},
        classes="from_to",
        cover=SECOND_COVER,
        splits={"second_train_set": "train", "second_test_set": "test", "second_total_test": "test"},
    ),
    "HRSCD": DataSet(
        (146, 0, 145),
        ("images_2006/{split}", "images_2012/{split}", "labels_change/{split}"),
        "train is department D35 and test is D14, because the download holds no lists; the authors divided the pairs "
        "into 146 and 145: if you have their lists, pass the folder with --list",
        more={"labels_land_cover_2006/{split}": BEFORE_COVER, "labels_land_cover_2012/{split}": AFTER_COVER},
        classes="from_to",
        cover=HRSCD_COVER,
        splits={"d35": "train", "d14": "test"},
        name_of=name_place,
        tile=1000,
        workers=4,
    ),
}


def find_layout(name: str, given: Sequence[str], with_classes: bool, with_lists: bool) -> Layout:
    """Return how the download of a data set is laid out.

    Args:
        name: The data set. The folders of a known one have the names of ROOT's folders, or the published names.
        given: The names of the folders of before, after and masks on the command line, "" if not given.
        with_classes: Whether masks with classes are made.
        with_lists: Whether lists divide the images, instead of folders with names of the data set's own.

    Raises:
        UserError: If a kind has no folder, or shares it with another.
    """
    known = DATA_SETS.get(name)
    if known and given[2] and not known.folders[2]:
        raise UserError(f"{name} --label {given[2]}: its masks are made from {', '.join(known.more)}; leave it out")
    kinds: dict[str, str] = {}
    for kind, published, own in zip(KINDS, known.folders if known else KINDS, given, strict=True):
        if own:
            kinds[own] = kind
        elif known and published:
            if PLACEHOLDER not in published:
                kinds[kind] = kind
            kinds[published] = kind
    needed = {kind for kind, folder in zip(KINDS, known.folders, strict=True) if folder} if known else {*KINDS[:2]}
    needed |= {LABEL} if given[2] else set()
    if set(kinds.values()) != needed or not all(PurePath(folder).name for folder in kinds):
        raise UserError(
            f"{name}: name a folder with each of --before, --after and, if there are masks, --label; only "
            f"{', '.join(DATA_SETS)} do not need these options"
        )
    if not known:
        return Layout(longest_first(kinds))
    if with_classes or LABEL not in needed:
        kinds |= known.more
    splits = {split: split for split in SPLITS}
    splits |= {folder: "" if with_lists else split for folder, split in known.splits.items()}
    return Layout(longest_first(kinds), splits, known.name_of)


def longest_first(kinds: Mapping[str, str]) -> dict[str, str]:
    """Sort folders so that the longest path is tried first."""
    return dict(sorted(kinds.items(), key=lambda item: -item[0].count("/")))
