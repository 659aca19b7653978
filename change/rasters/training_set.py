"""Write a training set: two rasters and polygons of changes, cut into tiles. See `change.rasters.tiles`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from tqdm import tqdm

from change.change_dataloader import AFTER, BEFORE, LABEL
from change.common.errors import UserError
from change.common.files import make_folder, write_folder, write_whole
from change.common.gdal import geo, limited_cache, quiet_gdal
from change.common.images import ImageHash
from change.common.locks import hold_folder
from change.common.logs import start_logging
from change.data.sources import write_sources
from change.rasters.area import inside_area, read_area
from change.rasters.describe import describe_grid, describe_stretch
from change.rasters.drawn_changes import DrawnChanges, read_changes
from change.rasters.findings import describe_files, format_share
from change.rasters.grids import apply_affine
from change.rasters.look import log_look, look_at
from change.rasters.places import is_on_earth
from change.rasters.polygons import geodesic_areas
from change.rasters.raster import RasterPair
from change.rasters.result_folder import METADATA
from change.rasters.tile_split import split_tiles

log = logging.getLogger(__name__)

KINDS = (BEFORE, AFTER, LABEL)
WAITING = ".tiles"  # folder of the tiles until all are known and divided
HECTARE = 1e4  # square metres


@dataclass(frozen=True)
class TileSettings:
    """How a training set is made.

    Attributes:
        size: side of the tiles in pixels.
        val: share of the tiles that become val, above 0 and below 1.
        seed: random seed of the split.
        layer: layer of the polygons' file; empty for a file with one layer.
        within: vector file of the area to which the tiles are restricted, or None.
        within_layer: layer of `within`; empty for a file with one layer.
        reading: arguments of `RasterPair`: bands, stretch, alpha, assume_aligned, align.
    """

    size: int = 256
    val: float = 0.2
    seed: int = 0
    layer: str = ""
    within: Path | None = None
    within_layer: str = ""
    reading: dict[str, Any] = field(default_factory=dict)


class Tile(NamedTuple):
    """A tile that was written: its name, row and column of its first pixel, and its number of changed pixels."""

    name: str
    top: int
    left: int
    changed: int


def make_training_set(given: argparse.Namespace) -> int:
    """Write the training set that the options ask for; return the exit code. `given`: as `parse_arguments` returns."""
    start_logging()
    out = given.out.resolve()
    settings = TileSettings(
        size=given.size,
        val=given.val,
        seed=given.seed,
        layer=given.layer,
        within=given.within,
        within_layer=given.within_layer,
        reading=given.reading,
    )
    paths = given.before, given.after, given.polygons

    def write(folder: Path) -> None:
        write_training_set(*paths, folder, settings=settings, progress=True)

    with hold_folder(out, "-o", beside=True), quiet_gdal():
        write_folder(out, write)
    log.info("%s", describe_labels(json.loads((out / METADATA).read_bytes())))
    log.info("%s", describe_files(out))
    return 0


def write_training_set(
    before: Path, after: Path, polygons: Path, folder: Path, *, settings: TileSettings, progress: bool = False
) -> dict[str, Any]:
    """Write a training set.

    Args:
        before: raster.
        after: raster of the later date.
        polygons: vector file of the changes between them.
        folder: exists and is empty.
        settings: how to make it.
        progress: show a progress bar.

    Returns:
        The content of metadata.json.

    Raises:
        UserError: as `RasterPair`, `read_changes` and `read_area` do; if no tile fits, if train or val would be empty,
            if train would show no change, or if files cannot be written.
    """
    with limited_cache(), contextlib.closing(RasterPair(before, after, **settings.reading)) as pair:
        changes = read_changes(polygons, pair, settings.layer)
        area = None
        if settings.within:
            dataset = pair.before.source.dataset
            area = read_area(settings.within, dataset, pair.fault, option="--within", layer=settings.within_layer)
        look = look_at(pair)
        log_look(look)
        cutter = TileCutter(pair, changes, area, size=settings.size, folder=folder / WAITING)
        tiles = cutter.write_tiles(progress=progress)
        parts = divide(tiles, cutter, settings)
        metadata = {
            **describe_grid(before, after, pair),
            "polygons": str(polygons),
            **asdict(settings),
            "within": None if settings.within is None else str(settings.within),
            "stretched": describe_stretch(pair),
            **look.metadata(),
            **count_labels(parts, cutter),
            "tiles": {part: {tile.name: [tile.top, tile.left] for tile in own} for part, own in parts.items()},
        }
    for part in ("train", "val"):
        for kind in KINDS:
            make_folder(folder / part / kind)
            for tile in parts[part]:
                name = f"{tile.name}.png"
                (folder / WAITING / kind / name).replace(folder / part / kind / name)
        write_sources(folder / part, {tile.name: cutter.hashes() for tile in parts[part]})
    remove_waiting(folder / WAITING, parts["gap"])
    write_whole(folder / METADATA, (json.dumps(metadata, indent=1) + "\n").encode())
    return metadata


def remove_waiting(folder: Path, gap: list[Tile]) -> None:
    """Remove the folder of the tiles that were not divided yet; `gap`: those that are still in it."""
    for kind in KINDS:
        for tile in gap:
            (folder / kind / f"{tile.name}.png").unlink()
        (folder / kind).rmdir()
    folder.rmdir()


class TileCutter:
    """Cuts a pair of rasters and its labels into tiles, row by row.

    Attributes:
        without_data: number of tiles with nodata at one of the dates.
        not_within: number of other tiles that are not fully inside the area.
    """

    def __init__(self, pair: RasterPair, changes: DrawnChanges, area: Any, *, size: int, folder: Path) -> None:
        """Prepare to write tiles of `size` pixels to folder/{A,B,label}; `area`: a multipolygon, or None for all."""
        self.pair = pair
        self.changes = changes
        self.area = area
        self.size = size
        self.folder = folder
        self.without_data = self.not_within = 0
        self.digests = [ImageHash((pair.height, pair.width, 3)) for _ in range(2)]
        self.stem = Path(pair.before.path).stem

    def hashes(self) -> tuple[str, str]:
        """Return the `image_hash` of before and after, once all tiles are written."""
        return self.digests[0].text(), self.digests[1].text()

    def write_tiles(self, *, progress: bool) -> list[Tile]:
        """Write every tile that holds data and lies in the area; return these tiles."""
        for kind in KINDS:
            make_folder(self.folder / kind)
        found: list[Tile] = []
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=self.pair.height, desc="tiles", unit="row", leave=False, disable=not progress) as bar,
        ):
            for top in range(0, self.pair.height, self.size):
                last = min(top + self.size, self.pair.height)
                cut = list(self.cut_row(top, last))
                found += pool.map(self.save, cut)
                bar.update(last - top)
        return found

    def cut_row(self, top: int, last: int) -> Iterator[tuple[Tile, dict[str, NDArray[np.uint8]]]]:
        """Yield the tiles of a row and their images: before and after (size, size, 3), and the mask, 0 and 255."""
        size, width = self.size, self.pair.width
        before, after, data = self.pair.rows(top, last)
        images = [image[0].permute(1, 2, 0).contiguous().numpy() for image in (before, after)]
        for digest, image in zip(self.digests, images, strict=True):
            digest.add(image)
        if last - top < size:
            return  # these rows only count for the hashes
        label = self.changes.label_rows(top, last, width)
        inside = np.ones_like(data)
        if self.area is not None and not self.area.is_empty:
            inside = inside_area(self.area, self.pair.transform, first=top, last=last, width=width)
        elif self.area is not None:
            inside[:] = False
        for left in range(0, width - size + 1, size):
            part = slice(left, left + size)
            if not data[:, part].all():
                self.without_data += 1
            elif not inside[:, part].all():
                self.not_within += 1
            else:
                mask = label[:, part]
                tile = Tile(f"{self.stem}_{top}_{left}", top, left, int(mask.sum()))
                contents = images[0][:, part], images[1][:, part], mask.astype(np.uint8) * np.uint8(255)
                yield tile, dict(zip(KINDS, contents, strict=True))

    def save(self, cut: tuple[Tile, dict[str, NDArray[np.uint8]]]) -> Tile:
        """Write the files of a tile, given with its images, and return the tile."""
        tile, images = cut
        for kind, image in images.items():
            PIL.Image.fromarray(np.ascontiguousarray(image)).save(self.folder / kind / f"{tile.name}.png")
        return tile


def divide(tiles: list[Tile], cutter: TileCutter, settings: TileSettings) -> dict[str, list[Tile]]:
    """Divide tiles into train, val and the gap between them.

    Raises UserError if there are no tiles, if train or val would be empty, or if train would show no change.
    """
    size, pair = settings.size, cutter.pair
    if not tiles:
        raise UserError(
            f"--size {size}: no tile fits; both rasters cover {pair.width} x {pair.height} pixels, "
            f"{cutter.without_data} tiles hold nodata and {cutter.not_within} are not fully in --within: "
            "choose a smaller --size, or a larger --within"
        )
    changed = np.array([tile.changed > 0 for tile in tiles])
    if not changed.any():
        raise UserError(
            f"none of the {len(tiles)} tiles holds a changed pixel, because the polygons lie elsewhere: draw changes "
            "in the tiles, choose a smaller --size, or a larger --within"
        )
    places = np.array([(tile.top // size, tile.left // size) for tile in tiles], np.int64)
    train, val = split_tiles(places, changed, settings.val, settings.seed)
    if not train.any():
        raise UserError(
            f"{len(tiles)} tile{'s' * (len(tiles) > 1)} of --size {size} cannot be divided: train or val would be "
            "empty, because no two tiles lie apart; choose a smaller --size, or a larger area"
        )
    if not changed[train].any():
        raise UserError(
            "train would show no change, because every changed tile is in val or touches it: choose a smaller --size, "
            "another --seed, or draw changes in other places too"
        )
    if not changed[val].any():
        log.warning("val shows no change, so its scores say little: draw changes in more places, or add more tiles")
    gap = ~train & ~val
    chosen = {"train": train, "val": val, "gap": gap}
    return {part: [tile for tile, own in zip(tiles, which, strict=True) if own] for part, which in chosen.items()}


def count_labels(parts: dict[str, list[Tile]], cutter: TileCutter) -> dict[str, Any]:
    """Count tiles, polygons, pixels and hectares of train and val, for metadata.json.

    Hectares are geodesic, and None if the grid has no place on earth. The area of a tile's change is its share of the
    tile's pixels.
    """
    used = parts["train"] + parts["val"]
    places = np.array([(tile.top, tile.left) for tile in used], np.int64)
    changed = np.array([tile.changed for tile in used])
    inside = cutter.changes.polygons_in(places, cutter.size)
    hectares = None
    if is_on_earth(cutter.pair.crs):
        areas = tile_areas(places, cutter) / HECTARE
        shares = changed / cutter.size**2
        hectares = {"labelled": round(float(areas.sum()), 4), "changed": round(float((areas * shares).sum()), 4)}
    return {
        "counts": {
            **{part: len(own) for part, own in parts.items()},
            "without_data": cutter.without_data,
            "not_within": cutter.not_within,
        },
        "drawn": {
            "polygons": cutter.changes.count,
            "used": inside,
            "outside": cutter.changes.count - inside,
            "repaired": cutter.changes.repaired,
        },
        "pixels": {"labelled": len(used) * cutter.size**2, "changed": int(changed.sum())},
        "hectares": hectares,
    }


def tile_areas(places: NDArray[np.int64], cutter: TileCutter) -> NDArray[np.float64]:
    """Return the areas of tiles in square metres; `places`: row and column (N, 2) of their first pixel."""
    shapely, transform = geo("shapely"), cutter.pair.transform
    top, left = places.T
    boxes = shapely.box(left, top, left + cutter.size, top + cutter.size)
    outlines = shapely.transform(boxes, lambda points: np.stack(apply_affine(transform, *points.T), axis=1))
    return geodesic_areas(outlines, cutter.pair.crs, float(np.sqrt(abs(transform.determinant))))


def describe_labels(metadata: dict[str, Any]) -> str:
    """Describe in one line how much was labelled. `metadata`: the content of metadata.json."""
    counts, drawn, pixels, hectares = (metadata[name] for name in ("counts", "drawn", "pixels", "hectares"))
    size = metadata["size"]
    left_out = counts["gap"], counts["without_data"], counts["not_within"]
    area = "" if hectares is None else f", {hectares['changed']:,.2f} of {hectares['labelled']:,.2f} ha"
    return (
        f"{counts['train']} train and {counts['val']} val tiles of {size} x {size} pixels "
        f"(left out: {left_out[0]} between train and val, {left_out[1]} with nodata, {left_out[2]} not in --within); "
        f"{drawn['used']} polygons used, {drawn['outside']} outside the tiles; "
        f"{format_share(pixels['changed'] / pixels['labelled'])} of the pixels changed{area}"
    )
