"""Describe in one line what a prediction found: the number of polygons, their area, the changed share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGE = 1e6  # square metres: larger areas are given in square kilometres
OPEN_FIRST = ("report.html", "preview.png")  # the file to look at, the first one that exists


def describe_findings(metadata: Mapping[str, Any]) -> str:
    """Say what was found in a pair.

    Args:
        metadata: content of its metadata.json.
    """
    data, changed = metadata["pixels"]["data"], metadata["pixels"]["changed"]
    if not data:
        return "nothing was compared: no place has data at both dates"
    if not changed:
        return f"no change found in {data:,} pixels"
    share = f"{changed:,} of {data:,} pixels changed ({format_share(changed / data)})"
    if "polygons" not in metadata:
        return share
    count = metadata["polygons"]["count"]
    pixels = metadata.get("min_pixels")
    if not count:
        least = f"{pixels} pixels" if pixels else f"{metadata['min_area']:g} m²"
        return f"{share}, but no polygon has {least} or more (--min_area)"
    default = f" of {pixels} pixels or more" if pixels else ""
    if "squared" in metadata["polygons"]:
        default += f", {metadata['polygons']['squared']:,} of them square"
    return f"{count:,} polygon{'s' * (count > 1)}{default}, {format_area(metadata['polygons']['area_m2'])}; {share}"


def format_share(share: float) -> str:
    """Format a share of 0 to 1 as a percentage; a small one is not rounded to 0."""
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def format_area(area: float) -> str:
    """Format an area in square metres."""
    return f"{area:,.0f} m²" if area < LARGE else f"{area / 1e6:,.2f} km²"


def describe_files(folder: Path) -> str:
    """Say where the files of a result are, relative to the current folder if they lie in it, and which to open."""
    shown = Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
    first = next((name for name in OPEN_FIRST if (folder / name).is_file()), "")
    return f"written to {shown}; open {shown / first}" if first else f"written to {shown}"
