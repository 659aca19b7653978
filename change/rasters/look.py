"""Inspect both rasters before the prediction, and warn about anything that may make the result less reliable.

Faults that make the result meaningless are errors when the rasters are opened. Anything unusual that may be right is a
warning here: pixels of other sizes or shapes, dates that are shifted, missing data, bands and levels that may mean
something else. All figures come from a few squares at full resolution, so the look costs little in large scenes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.data.findings import CONFIDENT, SHIFTED
from change.data.similarity import FLAT, Shift, shift
from change.rasters.aligned_raster import AlignedRaster, Block
from change.rasters.alignment import measure_few
from change.rasters.bands import ROLES, UNDECLARED
from change.rasters.grids import find_shift
from change.rasters.places import format_length, ground_size
from change.rasters.raster import RasterPair

log = logging.getLogger(__name__)

SIDE = 512  # side in pixels of the squares that are read
SQUARES = 3  # maximum number of squares along each side of the scene
COVERED = 0.9  # share of a square that must hold data at both dates if the shift is measured in it
ALIGN = 2.0  # pixels: a larger shift in a few windows is a warning that names --align
COARSER = 2.0  # ratio of the dates' pixel sizes above which a warning is given
BEYOND = 2.0  # the same for pixels of the grid and those that the checkpoint was trained on
STRETCHED = 1.25  # the same for width and height of a pixel
EMPTY = 0.5  # the same for the share of pixels without data
ODD = 0.02  # the same for the share of levels that the stretch leaves out
BORDER = 0.05  # the same for the share of pixels that all have the lowest or all have the highest level


class Seen(NamedTuple):
    """What the squares show of one date.

    Attributes:
        images: the squares as the network sees them, uint8 RGB (h, w, 3), black without data.
        data: where they hold data, bool (h, w).
    """

    images: list[NDArray[np.uint8]]
    data: list[NDArray[np.bool_]]


class Look(NamedTuple):
    """The result of a look.

    Attributes:
        facts: measurements for metadata.json; its "notes" are sentences that call for no action.
        warnings: one sentence each.
    """

    facts: dict[str, Any]
    warnings: list[str]

    def metadata(self) -> dict[str, Any]:
        """Return the entries of metadata.json."""
        return {"look": self.facts, "warnings": self.warnings}


def look_at(pair: RasterPair, trained_on: Sequence[float] | None = None) -> Look:
    """Inspect two open rasters before they are predicted.

    Args:
        pair: the rasters.
        trained_on: the finest and the coarsest ground resolution that the checkpoint was trained on, in metres per
            pixel; None if they are not known.

    Raises:
        UserError: if a file cannot be read.
    """
    blocks = square_blocks(pair.height, pair.width)
    dates = pair.before, pair.after
    seen = [see(raster, blocks) for raster in dates]
    sizes = [pixel_size(raster, pair) for raster in dates]
    moved = measure_shift(*seen)
    few = None if pair.alignment else measure_few(pair)
    local = few.median() if few else None
    facts: dict[str, Any] = {
        "shift": describe_shift(moved),
        "shift_in_windows": None if local is None else [round(shift, 2) for shift in local],
        "after_is_warped": pair.after.is_warped,
        "notes": [note for raster in dates for note in band_notes(raster)],
    }
    if pair.alignment:
        facts["notes"] += pair.alignment.notes()
    shifted = shift_warnings(pair.before.path, pair.after.path, moved, sizes[0])
    warnings = (
        place_warnings(pair)
        + resolution_warnings(pair.before.path, sizes[0], trained_on)
        + size_warnings(pair, sizes)
        + (pair.alignment.warnings() if pair.alignment else [])
        + (local_shift_warnings(pair, local, sizes[0]) or shifted)
    )
    for name, raster, squares, size in zip(("before", "after"), dates, seen, sizes, strict=True):
        missing = 1 - float(np.mean([square.mean() for square in squares.data]))
        facts[name] = {
            "pixel_m": None if size is None else [float(f"{side:.4g}") for side in size],
            "bands": list(raster.bands),
            "declared": list(raster.source.declared),
            "alpha": raster.source.alpha,
            "no_data": round(missing, 4),
            "odd_levels": round(raster.stretch.odd, 4),
        }
        warnings += band_warnings(raster) + level_warnings(raster, squares, missing)
    return Look(facts, warnings + same_warnings(pair.before.path, pair.after.path, *seen))


def look_at_pictures(before: Path, after: Path, images: Sequence[NDArray[np.uint8]], data: NDArray[np.bool_]) -> Look:
    """Look at two pictures without georeferencing before they are predicted.

    Args:
        before, after: their files.
        images: their pixels, uint8 RGB (H, W, 3) each.
        data: where both hold data, bool (H, W).
    """
    parts = [
        np.s_[block.top : block.top + block.height, block.left : block.left + block.width]
        for block in square_blocks(*data.shape)
    ]
    seen = [Seen([image[part] for part in parts], [data[part] for part in parts]) for image in images]
    moved = measure_shift(*seen)
    warnings = shift_warnings(before, after, moved, None) + same_warnings(before, after, *seen)
    for path, squares in zip((before, after), seen, strict=True):
        warnings += picture_warnings(path, squares)
    return Look({"shift": describe_shift(moved)}, warnings)


def log_look(look: Look) -> None:
    """Log the warnings and the notes of a look."""
    for warning in look.warnings:
        log.warning("%s", warning)
    for note in look.facts.get("notes", []):
        log.info("%s", note)


def describe_shift(moved: Shift | None) -> dict[str, float] | None:
    """Round a shift for metadata.json."""
    return None if moved is None else {name: round(value, 2) for name, value in moved._asdict().items()}


def square_blocks(height: int, width: int) -> list[Block]:
    """Spread squares evenly over a scene."""
    tall, wide = min(SIDE, height), min(SIDE, width)
    tops = np.linspace(0, height - tall, min(SQUARES, -(-height // tall))).astype(int).tolist()
    lefts = np.linspace(0, width - wide, min(SQUARES, -(-width // wide))).astype(int).tolist()
    return [Block(top=top, left=left, height=tall, width=wide) for top in tops for left in lefts]


def see(raster: AlignedRaster, blocks: list[Block]) -> Seen:
    """Read blocks of one date."""
    found = [raster.read(block) for block in blocks]
    return Seen([image.transpose(1, 2, 0) for image, _ in found], [data for _, data in found])


def pixel_size(raster: AlignedRaster, pair: RasterPair) -> tuple[float, float] | None:
    """Measure a pixel in the middle of a raster, as in its file: width and height in metres, None if unknown."""
    dataset = raster.source.dataset
    if pair.fault or dataset.transform.is_identity:
        return None
    return ground_size(dataset.crs, dataset.transform, column=dataset.width / 2, row=dataset.height / 2)


def measure_shift(before: Seen, after: Seen) -> Shift | None:
    """Measure the shift between the dates, as `shift` does, in every square that is nearly full of data.

    Returns:
        The median of the confident shifts, and the median confidence of all squares; None if no square is nearly full.
    """
    shifts = []
    for first, second, first_data, second_data in zip(
        before.images, after.images, before.data, after.data, strict=True
    ):
        data = first_data & second_data
        if data.mean() >= COVERED:
            shifts.append(shift(fill(first, data), fill(second, data)))
    if not shifts:
        return None
    confident = [found for found in shifts if found.confidence > CONFIDENT] or shifts
    return Shift(
        x=float(np.median([found.x for found in confident])),
        y=float(np.median([found.y for found in confident])),
        confidence=float(np.median([found.confidence for found in shifts])),
    )


def fill(image: NDArray[np.uint8], data: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give pixels without data the mean colour, so that their edges do not act as landmarks."""
    return np.where(data[..., None], image, image[data].mean(0).astype(np.uint8))


def place_warnings(pair: RasterPair) -> list[str]:
    """Report places that --assume_aligned ignores."""
    if not pair.assumes_aligned:
        return []
    before, after = pair.before, pair.after
    if pair.fault:
        return [f"{before.path} {pair.fault}; --assume_aligned: the results have no place, and no polygons are written"]
    first, second = before.source.dataset, after.source.dataset
    if first.crs is None or second.crs is None or not second.transform.determinant:
        return []
    if find_shift(first, second) != (0, 0):
        return [f"--assume_aligned: {before.path} and {after.path} lie on different grids, which is ignored"]
    return []


def resolution_warnings(path: Path, size: tuple[float, float] | None, trained_on: Sequence[float] | None) -> list[str]:
    """Report pixels of the grid that are much finer or coarser than those that the checkpoint was trained on."""
    if size is None or trained_on is None:
        return []
    side = float(np.sqrt(size[0] * size[1]))
    finest, coarsest = trained_on
    if finest / BEYOND <= side <= coarsest * BEYOND:
        return []
    lengths = f"{finest:g} m" if finest == coarsest else f"{finest:g} to {coarsest:g} m"
    return [f"{path} has pixels of {format_length(side)}, but this checkpoint was trained on {lengths}: expect misses"]


def size_warnings(pair: RasterPair, sizes: list[tuple[float, float] | None]) -> list[str]:
    """Report pixels of the grid (the first raster's) that are not square, and dates whose pixels differ in size."""
    warnings = []
    before, after = sizes
    if before and max(before) / min(before) >= STRETCHED:
        warnings.append(
            f"pixels of {pair.before.path} are {before[0]:.3g} m wide and {before[1]:.3g} m high: the network sees "
            "the scene distorted; warp it to square pixels"
        )
    if before and after:
        first, second = float(np.sqrt(before[0] * before[1])), float(np.sqrt(after[0] * after[1]))
        ratio = max(first, second) / min(first, second)
        if ratio >= COARSER:
            coarse, fine = (pair.after, pair.before) if second > first else (pair.before, pair.after)
            warnings.append(
                f"pixels of {coarse.path} ({max(first, second):.3g} m) are {ratio:.3g} times as large as those of "
                f"{fine.path} ({min(first, second):.3g} m): expect misses; use dates of one resolution"
            )
    return warnings


def shift_warnings(first: Path, second: Path, moved: Shift | None, size: tuple[float, float] | None) -> list[str]:
    """Report dates that are shifted against each other, with the limits of `python -m change check`."""
    if moved is None or moved.confidence <= CONFIDENT or np.hypot(moved.x, moved.y) < SHIFTED:
        return []
    return [f"{describe_move(first, second, (moved.x, moved.y), size)}; align the dates first"]


def local_shift_warnings(
    pair: RasterPair, shift: tuple[float, float] | None, size: tuple[float, float] | None
) -> list[str]:
    """Report dates that --align would bring closer together. `shift`: the median in a few windows, if it is known."""
    if shift is None or np.hypot(*shift) <= ALIGN:
        return []
    return [f"{describe_move(pair.before.path, pair.after.path, shift, size)}; --align corrects it"]


def describe_move(first: Path, second: Path, shift: tuple[float, float], size: tuple[float, float] | None) -> str:
    """Describe a shift by x columns and y rows; `size`: width and height of a pixel in metres, if they are known."""
    metres = f" ({np.hypot(shift[0] * size[0], shift[1] * size[1]):.3g} m)" if size else ""
    return (
        f"{second} is shifted by about {shift[0]:+.1f} columns and {shift[1]:+.1f} rows{metres} against {first}: "
        "expect false changes along edges"
    )


def same_warnings(first: Path, second: Path, before: Seen, after: Seen) -> list[str]:
    """Report dates that show the same pixels, as if one file had been given twice."""
    if all(np.array_equal(one, other) for one, other in zip(before.images, after.images, strict=True)):
        return [f"{first} and {second} show the same pixels, so no change can be found: give two dates"]
    return []


def band_notes(raster: AlignedRaster) -> list[str]:
    """Report which bands of a raster are used, if it has more than three or is not read as RGB."""
    source = raster.source
    count = source.dataset.count
    if count <= len(ROLES) and raster.reads is None:
        return []
    alpha = f", and band {source.alpha} as transparency" if source.alpha else ""
    if raster.reads is not None:
        numbers = ", ".join(map(str, source.bands))
        return [f"bands {numbers} of the {count} in {source.path} are read as {', '.join(raster.reads.names)}{alpha}"]
    red, green, blue = source.bands
    return [f"bands {red}, {green} and {blue} of the {count} in {source.path} are used as red, green and blue{alpha}"]


def band_warnings(raster: AlignedRaster) -> list[str]:
    """Report bands that are declared as something other than what they are used for."""
    source, warnings = raster.source, []
    if source.rejected_alpha:
        warnings.append(
            f"band {source.rejected_alpha} of {source.path} is declared as alpha but is not used as transparency: "
            "its levels are those of an image; --alpha yes uses it"
        )
    if source.palette is None and not source.bands_are_given and raster.reads is None:
        declared = [source.declared[band - 1] for band in source.bands]
        wrong = [name for name, role in zip(declared, ROLES, strict=True) if name not in (role, *UNDECLARED)]
        if wrong:
            numbers = ",".join(map(str, source.bands))
            warnings.append(
                f"bands {numbers} of {source.path} are used as red, green and blue, but are declared as "
                f"{', '.join(declared)}: choose --bands"
            )
    return warnings


def level_warnings(raster: AlignedRaster, seen: Seen, missing: float) -> list[str]:
    """Report missing data, levels that the stretch leaves out, and images that show the network almost nothing."""
    path, warnings = raster.path, []
    if missing > EMPTY:
        alpha = f" or transparent (band {raster.source.alpha})" if raster.source.alpha else ""
        warnings.append(f"about {missing:.0%} of {path} is nodata, masked{alpha} in the area that both rasters cover")
    if raster.stretch.odd >= ODD:
        low, high = min(raster.stretch.low), max(raster.stretch.high)
        warnings.append(
            f"{raster.stretch.odd:.1%} of the levels of {path} lie far outside the others, so the stretch "
            f"({low:.6g} to {high:.6g}) ignores them: they may be clouds or undeclared nodata"
        )
    return warnings + picture_warnings(path, seen)


def picture_warnings(path: Path, seen: Seen) -> list[str]:
    """Report an image that looks almost uniform to the network, or that has entirely black or white parts."""
    pixels = np.concatenate([image[data] for image, data in zip(seen.images, seen.data, strict=True)])
    if not len(pixels):
        return []
    if float(pixels.mean(1).std()) < FLAT:
        return [f"{path} looks almost uniform to the network: check the file and --stretch"]
    warnings = []
    for level, name in ((0, "black"), (255, "white")):
        share = float((pixels == level).all(1).mean())
        if share >= BORDER:
            warnings.append(f"{share:.0%} of {path} is {name} to the network: if that is no data, declare it as nodata")
    return warnings
