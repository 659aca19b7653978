"""Draw tiny downloads in their real layouts: as a folder, a zip file, or a folder of zip files."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

SPLITS = ("train", "val", "test")
COUNTS = {"train": 4, "val": 3, "test": 3}
FOLDERS = {
    "LEVIR-CD": ("A", "B", "label"),
    "LEVIR-CD-256": ("A", "B", "label"),
    "DSIFN-CD": ("t1", "t2", "mask"),
    "DSIFN-CD-256": ("A", "B", "label"),
    "S2Looking": ("Image1", "Image2", "label"),
    "CLCD": ("time1", "time2", "label"),
    "SYSU-CD": ("time1", "time2", "label"),
    "WHU-CD-256": ("A", "B", "label"),
}
LISTED = ("LEVIR-CD-256", "DSIFN-CD-256", "WHU-CD-256")


def stems(name: str, split: str) -> list[str]:
    """Return the names of the first pairs of a split in natural order, as in the real data set."""
    count = range(COUNTS[split])
    if name == "S2Looking":
        return [str({"train": 1, "val": 3501, "test": 4001}[split] + index) for index in count]
    if name == "SYSU-CD":
        return [f"{index:05}" for index in count]
    if name in LISTED:
        return [f"{split}_2_{index}" for index in count]
    return [f"{split}_{index + 8}" for index in count] if name == "LEVIR-CD" else [str(index + 8) for index in count]


def download(folder: Path, name: str, size: int = 16) -> Path:
    """Draw the unpacked download folder/NAME, with the hidden files that macOS and Windows add."""
    rng = np.random.default_rng(len(name))
    top = folder / name
    for split in SPLITS:
        place = top if name in LISTED else top / split
        extra = ("label1", "label2") if name == "S2Looking" else ()
        for sub in (*FOLDERS[name], *extra):
            (place / sub).mkdir(parents=True, exist_ok=True)
            (place / sub / ".DS_Store").write_bytes(b"Bud1")
            (place / sub / "Thumbs.db").write_bytes(b"x")
            for stem in stems(name, split):
                if sub in FOLDERS[name][:2]:
                    suffix = ".jpg" if name == "DSIFN-CD" else ".png"
                    picture = rng.integers(0, 256, (size, size, 3), np.uint8)
                else:
                    suffix = ".tif" if (name, split) == ("DSIFN-CD", "val") else ".png"
                    picture = rng.integers(0, 2, (size, size), np.uint8) * np.uint8(1 if name == "CLCD" else 255)
                PIL.Image.fromarray(picture).save(place / sub / (stem + suffix))
        if name in LISTED:
            (top / "list").mkdir(exist_ok=True)
            (top / "list" / f"{split}.txt").write_text("".join(f"{stem}.png\r\n" for stem in stems(name, split)))
            (top / "list" / "demo_LEVIR.txt").write_text("train_2_0.png\n")
            (top / "list" / f"{split}_label.txt").write_text("train_2_0.png\n")
    return top


def zipped(folder: Path, path: Path, root: Path) -> Path:
    """Zip a folder with names relative to `root`, as macOS does, and remove the folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(root))
            if file.suffix == ".png":
                archive.writestr(f"__MACOSX/{file.parent.relative_to(root)}/._{file.name}", b"Mac OS X")
    shutil.rmtree(folder)
    return path


def as_folder(top: Path) -> Path:
    return top.parent


def as_zip(top: Path) -> Path:
    return zipped(top, top.parent / f"{top.name}.zip", top.parent)


def as_zip_of_contents(top: Path) -> Path:
    return zipped(top, top.parent / "download (1).zip", top)


def as_zips(top: Path) -> Path:
    for split in SPLITS:  # train.zip and val.zip hold A, B and label, test.zip holds them in a folder test
        if (top / split).is_dir():
            zipped(top / split, top / f"{split}.zip", top / split if split != "test" else top)
    return top


Form = Callable[[Path], Path]
FORMS = (as_folder, as_zip, as_zip_of_contents, as_zips)


def tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and the modification time of every file, by path."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (status.st_ino, status.st_mtime_ns) for path, status in found}
