"""One scene: two rasters to the files of a folder, in rows of tiles that are read, predicted and written side by side.

    probability.tif  uint8, HIGHEST for 1, NO_DATA where either date has none    cloud-optimised GeoTIFFs on the first
    mask.tif         uint8, 1 where changed, NO_DATA                             raster's grid, cut to what both cover
    changes.gpkg     polygons with area_m2, mean_probability and max_probability, in the raster's reference system;
                     changes.geojson: the same in WGS 84; changes.qml: a style for QGIS
    preview.png      before, after and mask, small
    report.html      the report's page with a before/after slider: the whole scene, and its largest changes
    metadata.json    checkpoint, threshold, tiles, stretch, sizes, times

Memory holds two rows of tiles and, of the whole scene, its polygons: the rest passes through files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from change.common.errors import UserError
from change.common.files import write_whole
from change.common.logs import versions
from change.common.pictures import panel, save_png
from change.evaluation.report import ImageCase, write_report
from change.prediction.threshold import changed_pixels
from change.prediction.tiles import Predict, bands, weighted_starts
from change.rasters.polygons import Changes, Numbering, change_polygons, on_earth, strips
from change.rasters.raster import RasterPair, check_whole, gdal_errors, geo

log = logging.getLogger(__name__)

METADATA = "metadata.json"
HIGHEST, NO_DATA = 254, 255
VECTORS = ("gpkg", "geojson", "none")
OVERVIEW, SPOT, SPOTS = 1024, 768, 8  # pixels of the whole scene and of a change shown large, and how many of those


@dataclass(frozen=True)
class Settings:
    """How scenes are predicted, and what is written. `tile`, `overlap` in pixels, `batch` tiles at once; `bands`: those
    of red, green and blue; `min_area` in square metres; `simplify` in pixels; `vectors`: gpkg, geojson or none."""

    threshold: float
    tile: int = 1024
    overlap: int = 256
    batch: int = 1
    bands: tuple[int, ...] = (1, 2, 3)
    stretch: str = "auto"
    assume_aligned: bool = False
    min_area: float = 0.0
    simplify: float = 0.0
    vectors: str = "gpkg"


# --- rows of a scene -----------------------------------------------------------------------------------------------


class Rows:
    """A pair's rows of tiles, read ahead in a thread until `close`; `data`: where both dates hold data in those given
    last; `small`: before and after, uint8 (h, w, 3) of at most OVERVIEW pixels a side, as far as they were read; black
    where one holds no data."""

    def __init__(self, pair: RasterPair, tile: int, overlap: int) -> None:
        self.pair, self.starts = pair, [start for start, _ in weighted_starts(pair.height, tile, overlap)]
        self.tall, self.reader = min(tile, pair.height), ThreadPoolExecutor(1)
        self.data = np.zeros((0, pair.width), np.bool_)
        scale = min(1.0, OVERVIEW / max(pair.height, pair.width))
        self.taken = [(np.arange(max(1, round(n * scale))) / scale).astype(int) for n in (pair.height, pair.width)]
        self.small = [np.zeros((len(self.taken[0]), len(self.taken[1]), 3), np.uint8) for _ in range(2)]

    def read(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Before, its fourth channel 1 where both dates hold data, and after; uint8 (1, 4 and 3, last - first, W)."""
        before, after, data = self.pair.rows(first, last)
        down, across = self.taken
        inside = (down >= first) & (down < last)
        for small, image in zip(self.small, (before, after), strict=True):
            small[inside] = image[0].numpy()[:, (down[inside] - first)[:, None], across].transpose(1, 2, 0)
        return torch.cat((before, torch.from_numpy(data)[None, None].to(torch.uint8)), 1), after

    def following(self, index: int, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """As by `read`, a row of tiles from the one above it and what is new."""
        start, above = self.starts[index], self.starts[index - 1] if index else 0
        new = self.read(above + before.shape[2], start + self.tall)
        kept = before[:, :, start - above :], after[:, :, start - above :]
        return torch.cat((kept[0], new[0]), 2), torch.cat((kept[1], new[1]), 2)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Before and after as by `read`, a row of tiles after the other; nothing is read twice."""
        none = [torch.empty(1, channels, 0, self.pair.width, dtype=torch.uint8) for channels in (4, 3)]
        coming = self.reader.submit(self.following, 0, *none)
        for following in range(1, len(self.starts) + 1):
            before, after = coming.result()
            if following < len(self.starts):
                coming = self.reader.submit(self.following, following, before, after)
            self.data = before[0, 3].numpy() > 0
            yield before, after

    def close(self) -> None:
        """Wait for the thread, which must not read from files that are closed, and end it."""
        self.reader.shutdown(cancel_futures=True)


class WhereThereIsData:
    """`predict` for the windows that hold any, by before's fourth channel; 0 for the others. `seconds`: how long it
    took so far."""

    def __init__(self, predict: Predict) -> None:
        self.predict, self.seconds = predict, 0.0

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """(B, 4, h, w) and (B, 3, h, w) -> (B, 1, h, w), on the CPU."""
        began = time.perf_counter()
        alive = (before[:, 3] > 0).flatten(1).any(1)
        out = torch.zeros(len(before), 1, *before.shape[2:])
        if alive.any():
            out[alive] = self.predict(before[alive, :3], after[alive]).cpu()
        self.seconds += time.perf_counter() - began
        return out


def predicted_rows(
    rows: Rows, predict: Predict, settings: Settings
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Probability, and where there is data, (h, W) each, from the top down without a gap."""
    sizes = rows.pair.height, settings.tile, settings.overlap, settings.batch
    for part in bands(rows, predict, *sizes):
        yield part[0, 0].numpy(), rows.data[: part.shape[2]]


def as_stored(
    probability: NDArray[np.float32], data: NDArray[np.bool_], threshold: float, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Probability and mask of scene `name`, uint8 (h, W), as they are stored."""
    changed = changed_pixels(torch.from_numpy(probability)[None], threshold, [name])[0].numpy()
    parts = (probability * HIGHEST + 0.5).astype(np.uint8), changed.astype(np.uint8)
    for values in parts:
        values[~data] = NO_DATA
    return parts


# --- the files of a scene ------------------------------------------------------------------------------------------


def predict_rasters(
    before: Path, after: Path, folder: Path, predict: Predict, settings: Settings, about: dict[str, Any], shown: bool
) -> dict[str, Any]:
    """Write a scene's files into `folder`, which is there and empty; return the content of metadata.json.

    `about`: what goes into it beside; `shown`: with a progress bar. Raises UserError as `RasterPair` does, and where
    files cannot be written.
    """
    began = time.perf_counter()
    how, network = (settings.bands, settings.stretch, settings.assume_aligned), WhereThereIsData(predict)
    with (
        contextlib.closing(RasterPair(before, after, *how)) as pair,
        contextlib.closing(Rows(pair, settings.tile, settings.overlap)) as rows,
    ):
        metadata = described(before, after, pair, settings) | about
        polygons = settings.vectors != "none" and on_earth(pair.crs)
        if polygons:
            geo("geopandas")  # where it is lacking, that is said before the work
        elif settings.vectors != "none":
            log.warning("%s does not say where on earth it lies (%s): no polygons are written", before, pair.crs)
        try:
            with contextlib.closing(Numbering(folder / ".numbers.tif", pair.place)) as numbering:
                raw = write_rows(rows, network, numbering, folder, settings, metadata, shown)
                predicted = time.perf_counter()
                write_rest(rows, raw, numbering, folder, settings, metadata, polygons)
        except gdal_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"the files of {before} cannot be written ({error}): is the disk full?") from error
    seconds = {"network": network.seconds, "prediction": predicted - began, "all": time.perf_counter() - began}
    metadata["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    write_whole(folder / METADATA, (json.dumps(metadata, indent=1) + "\n").encode())
    return metadata


def described(before: Path, after: Path, pair: RasterPair, settings: Settings) -> dict[str, Any]:
    """What metadata.json says of a scene's files and of how they were predicted."""
    stretches = {
        name: {"low": list(date.stretch.low), "high": list(date.stretch.high)}
        for name, date in (("before", pair.before), ("after", pair.after))
    }
    return {
        "before": str(before),
        "after": str(after),
        "height": pair.height,
        "width": pair.width,
        "crs": pair.crs.to_string() if pair.crs else None,
        "transform": list(pair.transform)[:6],
        **asdict(settings),
        "stretched": stretches,
    }


def write_rows(
    rows: Rows,
    predict: Predict,
    numbering: Numbering,
    folder: Path,
    settings: Settings,
    metadata: dict[str, Any],
    shown: bool,
) -> tuple[Path, Path]:
    """Predict row after row and write them, in a thread, into two plain GeoTIFFs that carry `metadata`, probability and
    mask, and number their changes; return these files. `metadata` gets how many pixels hold data."""
    rasterio, windows, pair = geo("rasterio"), geo("rasterio.windows"), rows.pair
    paths = folder / ".probability.tif", folder / ".mask.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": NO_DATA, "BIGTIFF": "IF_SAFER", **pair.place}
    name = Path(metadata["before"]).stem
    with (
        rasterio.open(paths[0], "w", **profile) as probability,
        rasterio.open(paths[1], "w", **profile) as mask,
        ThreadPoolExecutor(1) as writer,
        tqdm(total=pair.height, desc=name, unit="row", leave=False, disable=not shown) as bar,
    ):
        probability.scales = (1 / HIGHEST,)
        for dataset in (probability, mask):
            dataset.update_tags(PRX_CHANGE=json.dumps(metadata))

        def write(values: NDArray[np.float32], data: NDArray[np.bool_]) -> None:
            parts = as_stored(values, data, settings.threshold, metadata["before"])
            window = windows.Window(0, numbering.row, pair.width, len(values))
            for dataset, part in zip((probability, mask), parts, strict=True):
                dataset.write(part, 1, window=window)
            numbering.add(parts[1], parts[0])

        writing: Future[None] | None = None
        count = 0
        for values, data in predicted_rows(rows, predict, settings):
            if writing:
                writing.result()
            writing = writer.submit(write, values, data)
            count += int(np.count_nonzero(data))
            bar.update(len(values))
        if writing:
            writing.result()
    for path in paths:
        check_whole(path, pair.height * pair.width)
    metadata["pixels"] = {"data": count}
    return paths


def write_rest(
    rows: Rows,
    raw: tuple[Path, Path],
    numbering: Numbering,
    folder: Path,
    settings: Settings,
    metadata: dict[str, Any],
    polygons: bool,
) -> None:
    """The cloud-optimised files of those by `write_rows`, polygons if they are wanted, and pictures, side by side.
    `metadata` gets how many pixels have changed, and the polygons' number and area."""
    if not metadata["pixels"]["data"]:
        places = metadata["before"], metadata["after"]
        log.warning("%s and %s hold data nowhere at the same place: nothing is compared", *places)
    with ThreadPoolExecutor(3) as aside:
        files = [aside.submit(optimised, path, folder / path.name[1:]) for path in raw]
        changes = numbering.finished()
        cases = aside.submit(scene_cases, rows, raw[1], changes)
        metadata["pixels"]["changed"] = int(changes.pixels.sum())
        if polygons:
            frame = change_polygons(numbering.path, raw[1], changes, HIGHEST, settings.min_area, settings.simplify)
            write_vectors(frame, folder, settings.vectors)
            metadata["polygons"] = {"count": len(frame), "area_m2": float(frame["area_m2"].sum())}
        for done in files:
            done.result()
    write_pictures(cases.result(), folder, metadata)
    for path in (*raw, numbering.path):
        path.unlink()


def optimised(values: Path, out: Path) -> None:
    """A GeoTIFF as a cloud-optimised one, with tiles and overviews."""
    geo("rasterio.shutil").copy(
        values,
        out,
        driver="COG",
        COMPRESS="DEFLATE",
        OVERVIEW_RESAMPLING="MODE" if out.stem == "mask" else "AVERAGE",
        BIGTIFF="IF_SAFER",
        NUM_THREADS=max(1, torch.get_num_threads() // 2),  # two files are made at once
    )


def write_vectors(frame: Any, folder: Path, kind: str) -> None:
    """The polygons as changes.gpkg or changes.geojson, and a style for QGIS beside."""
    path = folder / f"changes.{kind}"
    try:
        if kind == "geojson":
            frame.to_crs(4326).to_file(path, driver="GeoJSON")
        else:
            frame.to_file(path, driver="GPKG", layer="changes")
    except RuntimeError as error:  # pyogrio's errors are
        raise UserError(f"{path.name} cannot be written ({error}): is the disk full?") from error
    shutil.copy(Path(__file__).with_name("changes.qml"), folder / "changes.qml")


# --- pictures of a scene -------------------------------------------------------------------------------------------


def scene_cases(rows: Rows, mask: Path, changes: Changes) -> list[ImageCase]:
    """The whole scene, small, and its largest changes at full resolution, for the preview and the report."""
    pair, (before, after) = rows.pair, rows.small
    cases = [ImageCase("the whole scene", before, after, small_mask(mask, before.shape[:2]), None)]
    order = np.argsort(-changes.pixels[1:], kind="stable")[:200] + 1
    height, width = min(SPOT, pair.height), min(SPOT, pair.width)
    taken: list[tuple[int, int]] = []
    for number in order.tolist():
        if len(taken) == SPOTS or before.shape[:2] == (pair.height, pair.width):
            break
        y, x = (int(sums[number] / changes.pixels[number]) for sums in (changes.rows, changes.columns))
        top = min(max(0, y - height // 2), pair.height - height)
        left = min(max(0, x - width // 2), pair.width - width)
        if any(abs(top - other[0]) < height // 2 and abs(left - other[1]) < width // 2 for other in taken):
            continue
        taken.append((top, left))
        images = [date.part(top, left, height, width)[0].transpose(1, 2, 0) for date in (pair.before, pair.after)]
        with geo("rasterio").open(mask) as dataset:
            part = dataset.read(1, window=geo("rasterio.windows").Window(left, top, width, height)) == 1
        cases.append(ImageCase(f"row {top}, column {left}", images[0], images[1], part, None))
    return cases


def small_mask(mask: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where anything has changed, small: no change is too small to be seen."""
    small = np.zeros(shape, np.bool_)
    with geo("rasterio").open(mask) as dataset:
        for row, window in strips(dataset):
            y, x = np.nonzero(dataset.read(1, window=window) == 1)
            small[(y + row) * shape[0] // dataset.height, x * shape[1] // dataset.width] = True
    return small


def write_pictures(cases: Sequence[ImageCase], folder: Path, metadata: dict[str, Any]) -> None:
    """preview.png, of the first case, and report.html."""
    first = cases[0]
    save_png(panel(first.before, first.after, first.changed, None), folder / "preview.png")
    shares = [float(case.changed.mean()) for case in cases]
    shares[0] = metadata["pixels"]["changed"] / (metadata["height"] * metadata["width"])  # small, changes look larger
    rows = [{"image": case.name, "predicted_share": share} for case, share in zip(cases, shares, strict=True)]
    protocol = {name: metadata[name] for name in ("threshold", "tile", "overlap", "precision")}
    title = f"Change from {Path(metadata['before']).stem} to {Path(metadata['after']).stem}"
    summary = f"{metadata['width']} x {metadata['height']} pixels, {metadata['pixels']['changed']} of them changed"
    if polygons := metadata.get("polygons"):
        summary += f" · {polygons['count']} polygons, {polygons['area_m2']:.0f} m²"
    result = {"title": title, "summary": summary, "protocol": protocol, "checkpoint": metadata["checkpoint"]}
    result |= {"versions": versions(), "images": len(cases)}
    write_report(folder / "report.html", result, rows, cases)
