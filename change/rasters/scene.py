"""One scene: from two rasters to the files of a folder.

    probability.tif  uint8: HIGHEST stands for probability 1, NO_DATA for no data at either date
    mask.tif         uint8 with a colour table: 1 where changed, NO_DATA as above
    changes.gpkg     polygons in the raster's reference system, with id, area_m2, perimeter_m, mean_probability,
                     max_probability, before, after, before_date, after_date and checkpoint; changes.geojson: the same
                     in WGS 84
    changes.qml      a style for the polygons in QGIS
    preview.png      before and after with the outlines of the polygons, reduced in size
    report.html      a page with a before/after slider, the largest changes, and how the result was made
    metadata.json    checkpoint, threshold, tiles, stretch, sizes, times

The two rasters are cloud-optimised GeoTIFFs on the first raster's grid, cut to what both rasters cover. Reading,
predicting and writing run in parallel. Two rows of tiles and the polygons of the whole scene are held in memory;
everything else is kept in files.

If the network tells classes apart, mask.tif holds their values, and the polygons have the column class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from change.common.bands import Bands
from change.common.classes import Classes
from change.common.errors import UserError
from change.common.files import write_whole
from change.common.gdal import check_whole, gdal_errors, geo, limited_cache, reason
from change.common.tiff import OWN_METADATA
from change.evaluation.report import TEMPLATE
from change.prediction.tiles import Predict
from change.rasters.class_layer import CLASS, class_style, mask_colours, measure_classes, name_changes, require_few
from change.rasters.describe import describe_bands, describe_grid, describe_stretch
from change.rasters.levels import COLOURS, HIGHEST, NO_DATA, to_levels
from change.rasters.look import log_look, look_at
from change.rasters.numbering import Changes, Numbering
from change.rasters.places import is_on_earth
from change.rasters.polygons import LEAST_PIXELS, STYLE, add_texts, change_polygons, write_vectors
from change.rasters.raster import RasterPair
from change.rasters.result_folder import METADATA
from change.rasters.rows import PredictWhereData, RowReader, predict_rows
from change.rasters.scene_report import Found, write_pictures

log = logging.getLogger(__name__)

NO_POLYGONS = "{before} has no coordinate reference system on earth ({crs}): no polygons are written"


@dataclass(frozen=True)
class Settings:
    """How scenes are predicted, and what is written.

    Attributes:
        threshold: 0 to below 1; a pixel is changed if its probability exceeds it.
        tile: side of the tiles in pixels.
        overlap: overlap of the tiles in pixels.
        batch: number of tiles predicted at once.
        bands, stretch, assume_aligned, alpha, align: as in `RasterPair`; for bands other than 8-bit RGB, the stretch is
            that of the pictures.
        min_area: smallest area of a polygon, in square metres, or None for `LEAST_PIXELS`; smaller polygons are left
            out.
        simplify: how far an outline may move, in pixels.
        outlines: pixels for outlines along pixel edges, square for right angles where they fit.
        vectors: the polygons' format: gpkg, geojson or none.
        aoi: vector file of the area of interest; everything outside of it is no data.
    """

    threshold: float
    tile: int = 1024
    overlap: int = 256
    batch: int = 1
    bands: tuple[int, ...] | None = None
    stretch: str = "auto"
    assume_aligned: bool = False
    alpha: str = "auto"
    min_area: float | None = None
    simplify: float = 0.0
    outlines: str = "pixels"
    vectors: str = "gpkg"
    aoi: Path | None = None
    align: bool = False


class RawFiles(NamedTuple):
    """Plain GeoTIFFs that grow row by row, from which the final files are made."""

    probability: Path
    mask: Path


def predict_rasters(
    before: Path,
    after: Path,
    folder: Path,
    *,
    predict: Predict,
    settings: Settings,
    about: dict[str, Any],
    progress: bool = False,
    reads: Bands | None = None,
    classes: Classes | None = None,
) -> dict[str, Any]:
    """Predict a scene and write its files.

    Args:
        before: raster.
        after: raster of the later date.
        folder: exists and is empty.
        predict: for tiles (B, C, h, w) each, as in `RasterPair.rows`, with pixels without data filled.
        settings: how to predict, and what to write.
        about: further entries of metadata.json, as `ChangeDetector.describe` returns them.
        progress: show a progress bar.
        reads: the bands that the network reads; None for 8-bit RGB.
        classes: the classes that `predict` tells apart, as in `change.prediction.predictor`; None for none.

    Returns:
        The content of metadata.json.

    Raises:
        UserError: as `RasterPair` does; if a package or a file of the program is missing, a probability is NaN, or
            files cannot be written.
    """
    check_own_files(settings.vectors, classes)
    began = time.perf_counter()
    network = PredictWhereData(predict, 1 + len(classes.names) if classes else 1)
    with (
        limited_cache(),
        contextlib.closing(open_pair(before, after, settings, reads)) as pair,
        contextlib.closing(RowReader(pair, settings.tile, settings.overlap)) as rows,
    ):
        polygons = wants_polygons(pair, settings)
        look = look_at(pair, about["checkpoint"].get("resolution"))
        if settings.vectors != "none" and not polygons and not pair.fault:  # the look reports a fault
            look.warnings.append(NO_POLYGONS.format(before=before, crs=pair.crs))
        log_look(look)
        metadata = describe(before, after, pair, settings) | describe_bands(pair) | about | look.metadata()
        try:
            with contextlib.closing(Numbering(folder / ".numbers.tif", pair.place, classes)) as numbering:
                writer = SceneWriter(rows, numbering, folder, settings=settings, metadata=metadata, classes=classes)
                writer.write_rows(network, progress=progress)
                predicted = time.perf_counter()
                writer.write_rest(polygons)
        except gdal_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"the files of {before} cannot be written ({reason(error)}): is the disk full?") from error
    seconds = {"network": network.seconds, "prediction": predicted - began, "all": time.perf_counter() - began}
    metadata["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    write_whole(folder / METADATA, (json.dumps(metadata, indent=1) + "\n").encode())
    return metadata


def check_own_files(vectors: str, classes: Classes | None = None) -> None:
    """Raise UserError if a file of this program that a scene with these `vectors` needs is missing.

    Also for more `classes` than a mask can hold.
    """
    require_few(classes)
    needed = [TEMPLATE] if vectors == "none" else [TEMPLATE, STYLE]
    for path in needed:
        if not path.is_file():
            raise UserError(f"{path} is missing: it comes with PRX-Change; install it again or restore it with git")


def open_pair(before: Path, after: Path, settings: Settings, reads: Bands | None = None) -> RasterPair:
    """Open two rasters as `settings` ask, for a network that reads `reads`. Raises UserError as `RasterPair` does."""
    return RasterPair(
        before,
        after,
        bands=settings.bands,
        stretch=settings.stretch,
        assume_aligned=settings.assume_aligned,
        alpha=settings.alpha,
        aoi=settings.aoi,
        align=settings.align,
        reads=reads,
    )


def wants_polygons(pair: RasterPair, settings: Settings) -> bool:
    """Return whether to write polygons: they are wanted, and the scene has a place on earth.

    Raises UserError if geopandas is missing: it is imported here so that the error comes before the work.
    """
    if settings.vectors == "none" or not is_on_earth(pair.crs):
        return False
    geo("geopandas")
    return True


def describe(before: Path, after: Path, pair: RasterPair, settings: Settings) -> dict[str, Any]:
    """Describe a scene and how it is predicted, for metadata.json."""
    return {
        **describe_grid(before, after, pair),
        **asdict(settings),
        "aoi": None if settings.aoi is None else str(settings.aoi),
        "min_pixels": LEAST_PIXELS if settings.min_area is None else None,
        "stretched": describe_stretch(pair),
    }


class SceneWriter:
    """Writes the files of a scene: probability and mask row by row, then everything that is made from them."""

    def __init__(
        self,
        rows: RowReader,
        numbering: Numbering,
        folder: Path,
        *,
        settings: Settings,
        metadata: dict[str, Any],
        classes: Classes | None = None,
    ) -> None:
        """Prepare to write.

        Args:
            rows: the reader of the scene.
            numbering: numbers its connected changes.
            folder: where the files go.
            settings: how to predict, and what to write.
            metadata: metadata of the scene; the numbers of pixels and polygons are added to it.
            classes: the classes of change; None for none.
        """
        self.rows = rows
        self.numbering = numbering
        self.folder = folder
        self.settings = settings
        self.metadata = metadata
        self.classes = classes
        self.raw = RawFiles(folder / ".probability.tif", folder / ".mask.tif")

    def write_rows(self, predict: Predict, *, progress: bool) -> None:
        """Predict row by row, write the raw files with their metadata, and number the changes.

        A thread writes each row while the next one is predicted.
        """
        rasterio, pair, settings = geo("rasterio"), self.rows.pair, self.settings
        profile = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": 1,
            "nodata": NO_DATA,
            "BIGTIFF": "IF_SAFER",
            **pair.place,
        }
        name = Path(self.metadata["before"]).stem
        with (
            rasterio.open(self.raw.probability, "w", **profile) as probability,
            rasterio.open(self.raw.mask, "w", photometric="palette", **profile) as mask,
            ThreadPoolExecutor(1) as thread,
            tqdm(total=pair.height, desc=name, unit="row", leave=False, disable=not progress) as bar,
        ):
            probability.scales = (1 / HIGHEST,)
            mask.write_colormap(1, mask_colours(COLOURS, self.classes))
            for dataset in (probability, mask):
                dataset.update_tags(**{OWN_METADATA: json.dumps(self.metadata)})
            writing: Future[None] | None = None
            count = 0
            for values, data in predict_rows(
                self.rows, predict, tile=settings.tile, overlap=settings.overlap, batch=settings.batch
            ):
                if writing:
                    writing.result()
                writing = thread.submit(self.write_row, probability, mask, values=values, data=data)
                count += int(np.count_nonzero(data))
                bar.update(len(data))
            if writing:
                writing.result()
        for path in self.raw:
            check_whole(path, pair.height * pair.width)
        self.metadata["pixels"] = {"data": count}

    def write_row(self, probability: Any, mask: Any, *, values: torch.Tensor, data: NDArray[np.bool_]) -> None:
        """Write the next rows into two open datasets.

        Args:
            probability, mask: the datasets.
            values: probabilities (O, h, W), 0 to 1.
            data: (h, W), where both dates hold data.
        """
        levels, changed = to_levels(values, data, threshold=self.settings.threshold, name=self.metadata["before"])
        window = geo("rasterio.windows").Window(
            col_off=0, row_off=self.numbering.row, width=data.shape[1], height=len(data)
        )
        probability.write(levels, 1, window=window)
        mask.write(changed, 1, window=window)
        self.numbering.add(changed, levels)

    def write_rest(self, polygons: bool) -> None:
        """Write the final rasters, the pictures and, if wanted, `polygons`; then delete the raw files."""
        metadata = self.metadata
        if not metadata["pixels"]["data"]:
            log.warning(
                "%s and %s have no place where both hold data: nothing is compared",
                metadata["before"],
                metadata["after"],
            )
        with ThreadPoolExecutor(2) as threads:
            files = [threads.submit(write_cog, path, self.folder / path.name[1:]) for path in self.raw]
            changes = self.numbering.finish()
            metadata["pixels"]["changed"] = int(changes.pixels.sum())
            order, areas, frame = np.argsort(-changes.pixels[1:], kind="stable") + 1, None, None
            if polygons:
                frame = self.write_polygons(changes)
                order, areas = frame["id"].to_numpy(), frame["area_m2"].to_numpy()
            names, values = None, self.numbering.values
            if self.classes:
                metadata["classes"] = measure_classes(self.classes, values, changes.pixels, frame)
                names = name_changes(self.classes, values)
            found = Found(self.numbering.path, changes, HIGHEST, order, areas, names)
            write_pictures(self.rows, found, folder=self.folder, metadata=metadata)
            for file in files:
                file.result()
        for path in (*self.raw, self.numbering.path):
            path.unlink()

    def write_polygons(self, changes: Changes) -> Any:
        """Write the numbered changes as polygons, count them in the metadata, and return them as a GeoDataFrame."""
        frame = change_polygons(
            self.numbering.path,
            self.raw.mask,
            changes,
            highest=HIGHEST,
            min_area=self.settings.min_area,
            simplify=self.settings.simplify,
            outlines=self.settings.outlines,
        )
        if self.classes:
            frame.insert(1, CLASS, name_changes(self.classes, self.numbering.values[frame["id"].to_numpy()]))
        add_texts(frame, self.texts())
        pixel = abs(self.rows.pair.transform.determinant) ** 0.5
        write_vectors(frame, self.folder, self.settings.vectors, pixel=pixel)
        if self.classes:
            write_whole(self.folder / STYLE.name, class_style(self.classes).encode())
        self.metadata["polygons"] = {"count": len(frame), "area_m2": float(frame["area_m2"].sum())}
        if "squared" in frame:
            self.metadata["polygons"]["squared"] = int(frame["squared"].sum())
        return frame

    def texts(self) -> dict[str, str]:
        """Return the attributes that all polygons share: files, dates and checkpoint."""
        metadata = self.metadata
        return {
            "before": Path(metadata["before"]).name,
            "after": Path(metadata["after"]).name,
            "before_date": metadata["before_date"],
            "after_date": metadata["after_date"],
            "checkpoint": Path(metadata["checkpoint"].get("path", "")).name,
        }


def write_cog(raw: Path, out: Path) -> None:
    """Copy a GeoTIFF to a cloud-optimised one, with tiles and overviews."""
    geo("rasterio.shutil").copy(
        raw,
        out,
        driver="COG",
        COMPRESS="DEFLATE",
        OVERVIEW_RESAMPLING="MODE" if out.stem == "mask" else "AVERAGE",
        BIGTIFF="IF_SAFER",
        NUM_THREADS=max(1, torch.get_num_threads() // 2),  # two files are written at once
    )
