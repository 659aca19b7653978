"""The bands of a raster: which are red, green and blue, and whether one of them is the transparency of the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.band_files import header_of
from change.common.bands import Bands
from change.common.errors import UserError
from change.common.gdal import find_alpha_band, geo, open_raster, read_date, read_palette

ROLES = ("red", "green", "blue")
UNDECLARED = ("undefined", "gray")  # GDAL's colour interpretation of bands of which the file says nothing
ALPHA_CHOICES = ("auto", "yes", "no")
SQUARES, SIDE = 8, 64  # a raster's alpha band is judged by SQUARES x SQUARES squares of SIDE pixels


@dataclass(frozen=True)
class Source:
    """An open raster with its chosen bands.

    Attributes:
        dataset: the rasterio dataset; a band declared as alpha is transparency, if `alpha` names it.
        path: path of the file.
        bands: the numbers of red, green and blue, or of the bands that the network reads, from 1; (1,) if the raster
            has a colour table.
        bands_are_given: whether the user chose them.
        declared: what the file says about each of its bands, such as "red" or "undefined".
        alpha: the number of the band that is used as transparency, or None.
        rejected_alpha: the number of a band that is declared as alpha but whose levels are those of an image, or None.
        palette: the colour table as `read_palette` returns it, or None.
        kind: the type of the chosen bands, such as "uint8".
        date: when it was taken, as `read_date` returns it.
    """

    dataset: Any
    path: Path
    bands: tuple[int, ...]
    bands_are_given: bool
    declared: tuple[str, ...]
    alpha: int | None
    rejected_alpha: int | None
    palette: NDArray[np.uint8] | None
    kind: str
    date: str


def open_source(
    path: Path, *, bands: Sequence[int] | None, alpha: str, stack: ExitStack, reads: Bands | None = None
) -> Source:
    """Open a raster and choose its bands.

    Args:
        path: file that rasterio can read.
        bands: the numbers of red, green and blue, or of the bands in `reads`, from 1; None takes the bands that are
            declared as such, else 1, 2 and 3, or those that `Bands.find` finds.
        alpha: whether a band declared as alpha is transparency: yes, no, or auto, which looks at its levels.
        stack: closes the files.
        reads: the bands that the network reads; None for 8-bit RGB.

    Raises:
        UserError: if the file cannot be read or the bands do not fit it.
    """
    # Do not enter a dataset as a context: the calling program would be in a rasterio.Env until `close`.
    dataset = open_raster(path)
    stack.callback(dataset.close)
    date = read_date(dataset)
    palette = read_palette(dataset)
    declared = declared_bands(dataset)
    if reads is not None:
        palette = None
        chosen = reads.find(header_of(dataset, path), bands or ())
    elif bands is not None:
        check_numbers(bands)
        chosen = tuple(bands)
    else:
        chosen = declared_colours(declared)
    if palette is not None:
        chosen = (1,)
    kind = check_bands(dataset, path, chosen)
    found = find_alpha_band(dataset)
    rejected = None
    if found and alpha == "auto" and found not in chosen and not is_transparency(dataset, found):
        rejected = found
    if found and (rejected or found in chosen or alpha == "no"):
        found = None
        dataset = without_alpha(dataset, stack)
    return Source(
        dataset,
        path,
        bands=chosen,
        bands_are_given=bands is not None,
        declared=declared,
        alpha=found,
        rejected_alpha=rejected,
        palette=palette,
        kind=kind,
        date=date,
    )


def check_numbers(bands: Sequence[int], reads: Bands | None = None, option: str = "--bands") -> None:
    """Raise UserError unless `bands` are numbers from 1, one for each band in `reads`; None stands for 8-bit RGB."""
    count = len(ROLES) if reads is None else len(reads.names)
    if len(bands) != count or min(bands) < 1:
        wanted = "three numbers from 1, of red, green and blue, such as 3,2,1"
        if reads is not None:
            wanted = f"{count} number{'s' * (count > 1)} from 1, of {reads.described()}"
        raise UserError(f"{option} {','.join(map(str, bands))}: give {wanted}")


def check_bands(raster: Any, path: Path, bands: Sequence[int]) -> str:
    """Return the type of the chosen bands, such as "uint8". Raises UserError if they are missing or differ in type."""
    count = raster.count
    missing = [band for band in bands if not 1 <= band <= count]
    if missing:
        remedy = "--bands 1,1,1 reads it as grey" if count == 1 else f"choose --bands from 1 to {count}"
        raise UserError(f"{path} has {count} band{'s' * (count > 1)}, so band {missing[0]} does not exist: {remedy}")
    kinds = sorted({str(raster.dtypes[band - 1]) for band in bands})
    if any("complex" in kind for kind in kinds):
        raise UserError(f"{path} holds complex numbers: give an image")
    if len(kinds) > 1:
        raise UserError(f"{path} has bands of {' and '.join(kinds)}: choose --bands of one type")
    return kinds[0]


def declared_bands(dataset: Any) -> tuple[str, ...]:
    """Return how a file declares its bands: the descriptions if they name all three colours, else GDAL's colours.

    GDAL itself takes the first three bands for red, green and blue in many files, so descriptions come first.
    """
    described = tuple((text or "").strip().lower() for text in dataset.descriptions)
    words = tuple(kind.name.lower() for kind in dataset.colorinterp)
    if set(ROLES) <= set(described):
        return tuple(text or word for text, word in zip(described, words, strict=True))
    return words


def declared_colours(declared: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the bands that are declared red, green and blue; 1, 2 and 3 unless all three are."""
    if set(ROLES) <= set(declared):
        return tuple(1 + declared.index(role) for role in ROLES)
    return 1, 2, 3


def is_transparency(dataset: Any, band: int) -> bool:
    """Return whether the levels of a band declared as alpha are those of transparency, not those of an image.

    GDAL declares the fourth band of an 8-bit raster as alpha unless it is told otherwise, also if it is near infrared.
    Levels of transparency are 0 (transparent) and, in at least half of the rest, 1, 255 or the highest of the type.
    """
    windows = geo("rasterio.windows")
    tall, wide = min(SIDE, dataset.height), min(SIDE, dataset.width)
    tops = np.unique(np.linspace(0, dataset.height - tall, SQUARES).astype(int)).tolist()
    lefts = np.unique(np.linspace(0, dataset.width - wide, SQUARES).astype(int)).tolist()
    levels = np.concatenate(
        [
            dataset.read(band, window=windows.Window(col_off=left, row_off=top, width=wide, height=tall)).ravel()
            for top in tops
            for left in lefts
        ]
    )
    visible = levels[levels > 0]
    opaque = [1, 255]
    if levels.dtype.kind in "iu":
        opaque.append(int(np.iinfo(levels.dtype).max))
    return not visible.size or float(np.isin(visible, opaque).mean()) >= 0.5


def without_alpha(dataset: Any, stack: ExitStack) -> Any:
    """Reopen a dataset as a virtual raster in memory that declares no band as alpha; `stack` closes it."""
    memory_file = geo("rasterio.io").MemoryFile
    with memory_file(ext=".vrt") as memory:
        geo("rasterio.shutil").copy(dataset, memory.name, driver="VRT")
        text = bytes(memory.getbuffer())
    memory = memory_file(text.replace(b"<ColorInterp>Alpha<", b"<ColorInterp>Undefined<"), ext=".vrt")
    stack.callback(memory.close)
    virtual = memory.open()
    stack.callback(virtual.close)
    return virtual
