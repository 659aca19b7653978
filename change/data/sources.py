"""Record which images tiles were cut from, so that what is known of an image applies to its tiles.

`prepare --tile` writes their hashes to sources.json, beside the folders of the tiles. Training adds them to the
lineage of a checkpoint, and a test on tiles looks them up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from change.change_dataloader import Split
from change.common.errors import UserError
from change.common.files import write_whole

SOURCES = "sources.json"

Sources = Mapping[str, tuple[str, str]]  # the stem of a tile, and the `image_hash` of its images before and after


def write_sources(folder: Path, sources: Sources) -> None:
    """Add the sources of tiles to FOLDER/sources.json. Raises UserError if it cannot be read or written."""
    path = folder / SOURCES
    before = read_sources(folder)
    after = {**before, **sources}
    if after != before:
        lines = ",\n".join(f"{json.dumps(stem)}: {json.dumps(hashes)}" for stem, hashes in sorted(after.items()))
        write_whole(path, f"{{\n{lines}\n}}\n".encode())


def read_sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Read the sources of the tiles in a split's folder; empty if none are recorded.

    Raises UserError if the file is damaged.
    """
    path = folder / SOURCES
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        return {str(stem): (str(before), str(after)) for stem, (before, after) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): write it again with python -m change prepare --tile") from error


def sources_of(split: Split) -> dict[str, tuple[str, str]]:
    """Return the sources of those pairs of a split that are known to be tiles, by name. Raises as `read_sources`."""
    known: dict[str, tuple[str, str]] = {}
    for folder in {pair.before.parent.parent for pair in split.pairs}:
        known |= read_sources(folder)
    return {pair.name: known[pair.name] for pair in split.pairs if pair.name in known}


def hashes_of_sources(split: Split) -> list[str]:
    """Return the hashes of all images that tiles of a split were cut from, sorted. Raises as `read_sources`."""
    return sorted({image for pair in sources_of(split).values() for image in pair})
