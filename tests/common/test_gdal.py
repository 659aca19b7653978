"""The date of a raster, read from the metadata of its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio

from change.common.gdal import open_raster, read_date
from tests.rasters.drawn import noise, write_raster


@pytest.mark.parametrize(
    ("tiff", "imagery", "date"),
    [
        ("2020:07:15 10:30:00", "", "2020-07-15T10:30:00"),
        ("2020:07:15 10:30:00", "2019-06-01 23:59:59", "2019-06-01T23:59:59"),
        ("2009:08:02", "", "2009-08-02"),
        ("0000:00:00 00:00:00", "", ""),
        ("2020:07:15 10:30:00", "2020-13-01 00:00:00", "2020-07-15T10:30:00"),
        ("last summer", "", ""),
        ("", "", ""),
    ],
)
def test_dates(tmp_path: Path, tiff: str, imagery: str, date: str) -> None:
    path = write_raster(tmp_path / "1.tif", noise(8, 8))
    with rasterio.open(path, "r+") as dataset:
        if tiff:
            dataset.update_tags(TIFFTAG_DATETIME=tiff)
        if imagery:
            dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=imagery)
    dataset = open_raster(path)
    assert read_date(dataset) == date
    dataset.close()
