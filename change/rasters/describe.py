"""Describe a pair of rasters for metadata.json: files, grid, bands, stretch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from change.rasters.aligned_raster import AlignedRaster
from change.rasters.raster import RasterPair


def describe_grid(before: Path, after: Path, pair: RasterPair) -> dict[str, Any]:
    """Describe the files, the common grid and the dates of a pair, for metadata.json."""
    return {
        "before": str(before),
        "after": str(after),
        "height": pair.height,
        "width": pair.width,
        "crs": pair.crs.to_string() if pair.crs else None,
        "transform": list(pair.transform)[:6],
        "before_date": pair.before.source.date,
        "after_date": pair.after.source.date,
        **({} if pair.alignment is None else {"alignment": pair.alignment.metadata()}),
    }


def describe_bands(pair: RasterPair) -> dict[str, Any]:
    """Describe the bands that the network read, for metadata.json; nothing for 8-bit RGB.

    "bands" then holds the numbers of those that pictures show, so that the scene can be opened as RGB.
    """
    reads, numbers = pair.before.reads, pair.before.bands
    if reads is None:
        return {}
    shown = [numbers[place] for place in reads.shown()]
    return {"bands": shown, "read_bands": dict(zip(reads.names, numbers, strict=True)), "read_type": reads.kind}


def describe_stretch(pair: RasterPair) -> dict[str, dict[str, list[float]]]:
    """Describe which levels of each date become 0 and 255, for metadata.json."""

    def ends(raster: AlignedRaster) -> dict[str, list[float]]:
        return {"low": list(raster.stretch.low), "high": list(raster.stretch.high)}

    return {"before": ends(pair.before), "after": ends(pair.after)}
