"""Places on earth: each is right or refused, and polygons are valid wherever they lie."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as transform_points

from change.common.errors import UserError
from change.rasters.numbering import Numbering
from change.rasters.places import ground_size
from change.rasters.polygons import change_polygons, write_vectors
from change.rasters.raster import RasterPair
from tests.conftest import REPOSITORY
from tests.rasters.drawn import EAST, GRID, NORTH, UTM, WORLD, noise, write_raster

POLAR = CRS.from_epsg(3413)
ZONE_60 = CRS.from_epsg(32660)


@pytest.mark.parametrize(
    ("crs", "grid", "said"),
    [
        (UTM, Affine.identity(), r"1.tif has a coordinate reference system but no place in it \(geotransform\)"),
        (WORLD, GRID, r"1.tif has latitudes from 4999920 to 5000000 in EPSG:4326: assign the right"),
        (WORLD, from_origin(10, 95, 0.1, 0.1), r"1.tif has latitudes from 91 to 95"),
        (WORLD, from_origin(500, 50, 0.1, 0.1), r"1.tif has longitudes from 500 to 506"),
        (UTM, from_origin(15, 45, 1e-5, 1e-5), r"1.tif has pixels of 1e-05 m in EPSG:32633"),
        (UTM, Affine(np.nan, 0, EAST, 0, -2, NORTH), r"1.tif has a geotransform whose pixels have no area"),
        (UTM, from_origin(1e12, 1e12, 2, 2), r"1.tif has x from 1e\+12 to .* not valid coordinates in EPSG:32633:"),
    ],
    ids=["no geotransform", "metres as degrees", "above the pole", "beyond", "degrees as metres", "nan", "far"],
)
def test_impossible_places(tmp_path: Path, crs: CRS, grid: Affine, said: str) -> None:
    """They are refused; with --assume_aligned, rows and columns are compared and the result has no place."""
    bad = write_raster(tmp_path / "1.tif", noise(40, 60), crs, grid)
    for pair in ((bad, bad), (write_raster(tmp_path / "good.tif", noise(40, 60)), bad)):
        with pytest.raises(UserError, match=said + r".*--assume_aligned"):
            RasterPair(*pair)
    aligned = RasterPair(bad, bad, assume_aligned=True)
    assert aligned.crs is None and aligned.transform.is_identity and aligned.fault


def test_possible_places(tmp_path: Path) -> None:
    """Pixels centred on the pole, longitudes from 0 to 360, rows from the south, mirrored and turned grids."""
    first = noise(40, 60, seed=1)
    for crs, grid in (
        (WORLD, from_origin(-1.5, 91.5, 3, 3)),
        (WORLD, from_origin(330, 10, 0.5, 0.5)),
        (UTM, Affine(2, 0, EAST, 0, 2, NORTH)),
        (UTM, Affine(-2, 0, EAST, 0, -2, NORTH)),
        (UTM, Affine(1.6, -1.2, EAST, -1.2, -1.6, NORTH)),
        (CRS.from_user_input("EPSG:32633+5773"), GRID),
    ):
        path = write_raster(tmp_path / "1.tif", first, crs, grid)
        before, _, data = RasterPair(path, path).rows(0, 40)
        assert np.array_equal(before[0].numpy(), first) and data.all()


def test_places_that_need_warping(tmp_path: Path) -> None:
    """Ground control points are named, with the remedy."""
    path = write_raster(tmp_path / "1.tif", noise(40, 60), None, Affine.identity())
    corners = [(0, 0), (0, 60), (40, 0), (40, 60)]
    with rasterio.open(path, "r+") as dataset:
        points = [GroundControlPoint(row, column, EAST + 2 * column, NORTH - 2 * row) for row, column in corners]
        dataset.gcps = points, UTM
    with pytest.raises(UserError, match=r"1.tif is placed by ground control points: warp it to a grid"):
        RasterPair(path, path)


def test_ground_size() -> None:
    """In degrees, metres, feet and Web Mercator, at 60 degrees north; nothing for local systems."""
    width, height = ground_size(WORLD, from_origin(10, 60, 1e-5, 1e-5), column=0, row=0) or (0, 0)
    assert (width, height) == pytest.approx((0.556, 1.112), rel=0.005)
    (x,), (y,) = transform_points(WORLD, CRS.from_epsg(3857), [179.99999], [60.0])
    assert ground_size(CRS.from_epsg(3857), from_origin(x, y, 2, 2), column=0, row=0) == pytest.approx((1, 1), rel=0.01)
    feet = CRS.from_epsg(2263)  # New York, US survey feet
    assert ground_size(feet, from_origin(1e6, 2e5, 1, 1), column=0, row=0) == pytest.approx((0.305, 0.305), rel=0.01)
    assert ground_size(POLAR, from_origin(0, 0, 1000, 1000), column=0, row=0) == pytest.approx((1028, 1028), rel=0.01)
    assert ground_size(CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), GRID, column=0, row=0) is None


def test_a_machine_without_a_projection_database(tmp_path: Path) -> None:
    """The error names the variable that hides it."""
    path = write_raster(tmp_path / "1.tif", noise(40, 60))
    code = (
        "import sys; from pathlib import Path; from change.rasters.raster import RasterPair; "
        "RasterPair(Path(sys.argv[1]), Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PROJ_DATA": "/nowhere", "PROJ_LIB": "/nowhere"}
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    line = result.stderr.strip().splitlines()[-1]
    assert "1.tif is not placed, because PROJ's database cannot be read" in line and "unset PROJ_DATA=/nowhere" in line


def draw(folder: Path, changed: NDArray[np.uint8], grid: Affine, crs: CRS) -> geopandas.GeoDataFrame:
    """Return the polygons of a mask as GeoJSON gives them back, with their areas before and after."""
    mask = write_raster(folder / "mask.tif", changed[None], crs, grid)
    height, width = changed.shape
    numbering = Numbering(folder / "numbers.tif", {"height": height, "width": width, "crs": crs, "transform": grid})
    numbering.add(changed, changed)
    make = functools.partial(change_polygons, numbering.path, mask, numbering.finish())
    frame = make(highest=1, min_area=0, simplify=0)
    assert frame.is_valid.all() and (frame.geom_type == "MultiPolygon").all()
    write_vectors(frame, folder, "geojson", pixel=float(np.sqrt(abs(grid.determinant))))
    return geopandas.read_file(folder / "changes.geojson")


@pytest.mark.parametrize(
    ("crs", "grid", "changed", "square_metres"),
    [
        (
            ZONE_60,
            from_origin(*(v[0] for v in transform_points(WORLD, ZONE_60, [179.5], [1.0])), 1e4, 1e4),
            "all",
            4e10,
        ),
        (WORLD, from_origin(190, 1, 0.1, 0.1), "all", 4.946e10),
        (WORLD, from_origin(179, 1, 0.1, 0.1), "all", 4.946e10),
        (WORLD, from_origin(-181, 1, 0.1, 0.1), "hole", 4.451e10),
        (POLAR, from_origin(-1e5, 1e5, 1e4, 1e4), "all", 4.252e10),
        (POLAR, from_origin(-1e5, 1e5, 1e4, 1e4), "hole", 3.827e10),
        (POLAR, from_origin(0, 2e5, 1e4, 1e4), "all", 4.252e10),
        (POLAR, from_origin(-1e5, 2e5, 1e4, 1e4), "all", 4.252e10),
        (POLAR, from_origin(-1.1e6, 1.1e6, 1e4, 1e4), "all", 4.144e10),
        (CRS.from_epsg(3031), from_origin(-1e5, 1e5, 1e4, 1e4), "all", 4.227e10),
    ],
    ids=[
        "date line in metres",
        "190 degrees",
        "over 180 degrees",
        "hole over -180 degrees",
        "around the pole",
        "ring around the pole",
        "the pole as a corner",
        "the pole on an edge",
        "along the date line",
        "around the south pole",
    ],
)
def test_polygons_anywhere_on_earth(tmp_path: Path, crs: CRS, grid: Affine, changed: str, square_metres: float) -> None:
    """GeoJSON lies between -180 and 180 degrees, and has the area of the pixels; 20 x 20 pixels are changed."""
    mask = np.ones((20, 20), np.uint8)
    if changed == "hole":
        mask[8:12, 5:15] = 0
    frame = draw(tmp_path, mask, grid, crs)
    assert len(frame) == 1 and frame.is_valid.all() and frame.geometry[0].geom_type == "MultiPolygon"
    west, south, east, north = frame.total_bounds
    assert -180 <= west < east <= 180 and -90 <= south < north <= 90
    parts = shapely.get_parts(frame.geometry.to_numpy())
    assert all(ring.is_ccw for ring in shapely.get_exterior_ring(parts))
    areas = [Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(part, 0.5))[0] for part in parts]
    assert sum(areas) == pytest.approx(frame["area_m2"][0], rel=0.01) == pytest.approx(square_metres, rel=0.01)


@pytest.mark.parametrize("crs", [UTM, WORLD, ZONE_60], ids=["metres", "degrees", "date line"])
def test_random_masks_are_valid(tmp_path: Path, crs: CRS) -> None:
    """Outlines that touch themselves at corners are valid in both formats, also after simplifying."""
    grid = from_origin(179.9, 0.1, 0.01, 0.01) if crs == WORLD else from_origin(833_000, 10_000, 20, 20)
    rng = np.random.default_rng(0)
    for share in (0.2, 0.4, 0.6):
        changed = (rng.random((60, 60)) < share).astype(np.uint8)
        frame = draw(tmp_path, changed, grid, crs)
        assert frame.is_valid.all() and frame["area_m2"].notna().all()
        pixels = frame["area_m2"].sum() / frame["area_m2"].min()
        assert pixels == pytest.approx(changed.sum(), rel=0.01)
