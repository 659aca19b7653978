"""`--align`: shifts are measured in windows, undone while after is read, and reported; faults are one line each."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import geopandas
import numpy as np
import PIL.Image
import pytest
import shapely
from numpy.typing import NDArray
from rasterio.transform import from_origin
from torch import Tensor

from change import ChangeDetector
from change.common.errors import UserError
from change.rasters.aligned_raster import AlignedRaster, Block
from change.rasters.alignment import explain
from change.rasters.predict import main
from change.rasters.raster import RasterPair
from change.rasters.registration import FLAT, ShiftField
from change.rasters.scene import Settings, predict_rasters
from change.rasters.shift_grid import ShiftGrid
from change.rasters.training_set import TileSettings, write_training_set
from tests.rasters.drawn import EAST, NORTH, UTM, write_raster
from tests.rasters.test_registration import HEIGHT, WIDTH, ground, view
from tests.rasters.test_scene import ABOUT

Image = NDArray[np.uint8]


def write_pair(folder: Path, before: Image, after: Image, **after_profile: Any) -> tuple[Path, Path]:
    """Write two images (H, W, 3) as rasters in which 0 is nodata."""
    folder.mkdir(exist_ok=True)
    first, second = (np.ascontiguousarray(image.transpose(2, 0, 1)) for image in (before, after))
    profile = {"nodata": 0, **after_profile}
    return write_raster(folder / "1.tif", first, nodata=0), write_raster(folder / "2.tif", second, **profile)


def visible(image: Image) -> Image:
    """Return an image without black, which is nodata."""
    return np.maximum(image, 1)


def drawn_pair(x: float, y: float) -> tuple[Image, Image]:
    """Draw the same ground twice, the second time shifted."""
    image = ground()
    return visible(view(image, 0, 0)), visible(view(image, x, y))


def rows_of(pair: RasterPair) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Read a whole pair: levels (H, W, 3) of before and after, and where both hold data (H, W)."""
    before, after, data = pair.rows(0, pair.height)
    first, second = (np.asarray(image[0].permute(1, 2, 0).numpy(), np.int64) for image in (before, after))
    return first, second, data


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (3.0, -5.0), (-7.5, 2.25), (30.0, -28.0)])
def test_a_shift_is_undone(tmp_path: Path, x: float, y: float) -> None:
    """After equals before where it is covered; what it does not cover is no data."""
    paths = write_pair(tmp_path, *drawn_pair(x, y))
    with closing(RasterPair(*paths, align=True)) as pair:
        before, after, data = rows_of(pair)
        assert pair.alignment and pair.alignment.warnings() == []
        shift, residual = pair.alignment.metadata()["shift"], pair.alignment.metadata()["residual"]
    assert shift["pixels"] == pytest.approx(np.hypot(x, y), abs=0.05) and residual["pixels"] < 0.1
    assert shift["metres"] == pytest.approx(2 * shift["pixels"], rel=0.01)
    rest = np.abs(before - after)[data]
    assert np.median(rest) <= 2 and rest.mean() < 2.5
    rows, columns = np.nonzero(data)
    covered = HEIGHT - abs(y), WIDTH - abs(x)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == pytest.approx(covered, abs=1.5)
    assert data.mean() == pytest.approx(covered[0] * covered[1] / data.size, abs=0.01)


def test_nodata_stays_nodata(tmp_path: Path) -> None:
    """A hole moves with the image, and its colour does not reach the pixels beside it."""
    before, after = drawn_pair(6, 4)
    after[100:140, 200:260] = 0
    with closing(RasterPair(*write_pair(tmp_path, before, after), align=True)) as pair:
        first, second, data = rows_of(pair)
    assert not data[96:136, 194:254].any() and data[90:93, 188:260].all()
    beside = np.zeros_like(data)
    beside[92:140, 190:258] = True
    assert np.abs(first - second)[beside & data].max() < 40 and not second[~data].any()


def test_a_smooth_warp_is_undone(tmp_path: Path) -> None:
    """The shift may grow from 0 to 8 pixels; the field follows it to a fraction of a pixel."""
    image = np.asarray(cv2.resize(ground(3)[40:-40, 40:-40], (1040, 800)), np.float32)
    columns, rows = np.meshgrid(np.arange(1040, dtype=np.float32), np.arange(800, dtype=np.float32))
    x, y = columns / 130, 2 * np.sin(rows / 300)
    after = cv2.remap(image, columns - x, rows - y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    pictures = [visible(np.asarray(np.clip(part, 0, 255), np.uint8)) for part in (image, after)]
    with closing(RasterPair(*write_pair(tmp_path, *pictures), align=True)) as pair:
        assert pair.alignment and pair.alignment.warnings() == []
        found = pair.after.shifts
        assert found
        shift_x, shift_y = found.at(np.arange(800.0), np.arange(1040.0))
        residual = pair.alignment.metadata()["residual"]["pixels"]
    expected_x = x / (1 - 1 / 130)  # the shift is known where after is, and is read where before is
    error = np.hypot(shift_x - expected_x, shift_y - 2 * np.sin((rows + y) / 300))
    assert np.median(error) < 0.25 and error[64:-64, 64:-64].max() < 0.8 and residual < 0.2


def test_blocks_agree(tmp_path: Path) -> None:
    """Strips and blocks at any place are parts of the whole, also if the whole is warped in several parts."""
    x = np.array([[3.0, 9.0], [-2.0, 5.0]])
    grid = ShiftGrid(np.array([0.0, 1100.0]), np.array([0.0, HEIGHT]), x, -x)
    _, after = drawn_pair(5, 0)
    after = np.tile(after, (1, 3, 1))[:, :1100]
    after[:60, :90] = 0
    with closing(RasterPair(*write_pair(tmp_path, after, after))) as pair:
        pair.after.shifts = grid
        whole, data = pair.after.read(Block(0, 0, HEIGHT, 1100))
        for block in (Block(0, 0, 100, 1100), Block(100, 0, 300, 1100), Block(37, 951, 90, 149)):
            part, part_data = pair.after.read(block)
            rows, columns = slice(block.top, block.top + block.height), slice(block.left, block.left + block.width)
            assert np.array_equal(part_data, data[rows, columns])
            assert np.abs(part.astype(int) - whole[:, rows, columns]).max() <= 8  # points are rounded to 1/32 pixel


def test_other_grids(tmp_path: Path) -> None:
    """A raster in another system is warped first, and what is still shifted is undone."""
    image = ground()
    place = from_origin(EAST + 6, NORTH - 4, 2, 2)  # the file says that it lies 3 columns and 2 rows further
    before, after = write_pair(tmp_path, *(visible(view(image, 0, 0)),) * 2, transform=place)
    with closing(RasterPair(before, after, align=True)) as pair:
        found = pair.alignment
        assert found and found.measured and found.measured.median() == pytest.approx((3, 2), abs=0.03)
        first, second, data = rows_of(pair)
        assert (first - second)[data].std() < 2
    coarse = cv2.resize(view(image, 0, 0), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    place = from_origin(EAST + 6, NORTH - 4, 4, 4)
    before, after = write_pair(
        tmp_path / "coarse", visible(view(image, 0, 0)), visible(np.asarray(coarse, np.uint8)), transform=place
    )
    with closing(RasterPair(before, after, align=True)) as pair:
        assert pair.after.is_warped and pair.alignment and pair.alignment.measured
        assert pair.alignment.measured.median() == pytest.approx((3, 2), abs=0.1)


FAULTS = [
    ("small", "the scene has 520 x 100 pixels, too few for 3 windows of 128 x 128"),
    ("square", "the scene has 180 x 180 pixels, too few for 3 windows of 128 x 128"),
    ("flat", "the images show too little structure, as water does (0 of 35 windows agree)"),
    ("apart", "too little of the scene holds data at both dates (0 of 35 windows agree)"),
    ("far", "no shift of at most 32 pixels is clear, so the dates are shifted further or differ too much"),
    ("other", "no shift of at most 32 pixels is clear, so the dates are shifted further or differ too much"),
]


@pytest.mark.parametrize(("kind", "reason"), FAULTS)
def test_faults(tmp_path: Path, kind: str, reason: str) -> None:
    """If nothing can be measured, one warning says why, and the pair is read as without the option."""
    before, after = drawn_pair(39, -39) if kind == "far" else drawn_pair(2, 1)
    if kind == "small":
        before, after = before[:100], after[:100]
    elif kind == "square":
        before, after = before[:180, :180], after[:180, :180]
    elif kind == "flat":
        before[:], after[:] = 90, 110
    elif kind == "apart":
        before[:, 260:] = after[:, :250] = 0
    elif kind == "other":
        after = visible(view(ground(8), 0, 0))
    paths = write_pair(tmp_path, before, after)
    with closing(RasterPair(*paths, align=True)) as pair, closing(RasterPair(*paths)) as plain:
        assert pair.alignment
        (warning,) = pair.alignment.warnings()
        assert warning.startswith(f"--align has no effect: {reason}")
        assert "\n" not in warning and pair.alignment.notes() == [] and not pair.alignment.metadata()["applied"]
        aligned, unaligned = rows_of(pair), rows_of(plain)
        assert np.array_equal(aligned[1], unaligned[1]) and np.array_equal(aligned[2], unaligned[2])


@pytest.mark.parametrize("noise", [True, False])
def test_noise_is_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool) -> None:
    """A field is only undone if it explains the shifts in windows that it was not made from."""
    draw = np.random.default_rng(2)

    def measured(*_: Any, tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int) -> ShiftField:
        shape = len(tops), len(lefts)
        x, y = draw.normal(0 if noise else 2, 0.8, (2, *shape))
        columns, rows = (starts.astype(np.float64) + side / 2 for starts in (lefts, tops))
        return ShiftField(columns, rows, x, y, np.ones(shape, np.bool_), Counter())

    monkeypatch.setattr("change.rasters.alignment.measure_field", measured)
    with closing(RasterPair(*write_pair(tmp_path, *drawn_pair(0, 0)), align=True)) as pair:
        assert pair.alignment and pair.alignment.warnings() == [] and pair.alignment.applied == (not noise)
        assert (pair.after.shifts is None) == noise
        (note,) = pair.alignment.notes()
        assert note.startswith("--align: result not aligned, because" if noise else "--align: result aligned; windows")


def test_reads_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of windows does not grow with the scene, and none of them is large."""
    seen: list[int] = []
    read = AlignedRaster.read_levels

    def watched(self: AlignedRaster, block: Block) -> Any:
        seen.append(block.height * block.width)
        return read(self, block)

    before_image, after_image = (np.tile(image, (10, 10, 1)) for image in drawn_pair(2, 1))
    paths = write_pair(tmp_path, before_image, after_image)
    monkeypatch.setattr(AlignedRaster, "read_levels", watched)
    monkeypatch.setattr("change.rasters.alignment.MOST", 5)
    with closing(RasterPair(*paths)) as plain:
        before = len(seen)
        assert plain.after.shifts is None and plain.alignment is None
    seen.clear()
    with closing(RasterPair(*paths, align=True)) as pair:
        assert pair.after.shifts is not None
    assert len(seen) == before + 2 * (5 * 5 + 4 * 4) and max(seen) <= (256 + 2 * 64 + 9) ** 2


def test_predict(tmp_path: Path) -> None:
    """The result, the layer, the report and metadata.json are those of the aligned dates."""
    before, after = drawn_pair(9, -6)
    paths = write_pair(tmp_path / "in", before, after)
    found = {}
    for align in (False, True):
        out = tmp_path / f"out-{align}"
        out.mkdir()
        settings = Settings(0.5, 256, 64, align=align, vectors="none")
        found[align] = predict_rasters(*paths, out, predict=difference, settings=settings, about=ABOUT)
    page = (tmp_path / "out-True" / "report.html").read_text()
    aligned = found[True]["alignment"]
    assert found[True]["pixels"]["changed"] < 0.02 * found[False]["pixels"]["changed"]
    assert np.nanmedian(np.array(aligned["x"], float)) == pytest.approx(9, abs=0.05)
    assert np.array(aligned["kept"]).all() and aligned["residual"]["pixels"] < 0.1 and found[True]["warnings"] == []
    assert '"median_shift":"+9.00 columns, -6.00 rows"' in page and '"residual_there":"0.0' in page
    (warning,) = found[False]["warnings"]
    assert "shifted by about +9.0 columns and -6.0 rows (21.6 m)" in warning and warning.endswith("--align corrects it")
    assert "alignment" not in found[False] and '"Alignment"' not in (tmp_path / "out-False" / "report.html").read_text()


def difference(before: Tensor, after: Tensor) -> Tensor:
    """Predict change where the levels differ by more than 64."""
    return ((before.int() - after.int()).abs().amax(1, keepdim=True) / 128).clamp(max=1)


def test_tiles(tmp_path: Path) -> None:
    """The tiles of a training set show both dates in one place."""
    paths = write_pair(tmp_path, *drawn_pair(-8, 5))
    outlines = [shapely.box(EAST + 2 * x, NORTH - 2 * y - 20, EAST + 2 * x + 20, NORTH - 2 * y) for x, y in CHANGES]
    geopandas.GeoDataFrame(geometry=outlines, crs=UTM.to_wkt()).to_file(tmp_path / "changes.gpkg")
    (tmp_path / "out").mkdir()
    settings = TileSettings(size=32, reading={"align": True})
    metadata = write_training_set(*paths, tmp_path / "changes.gpkg", tmp_path / "out", settings=settings)
    assert metadata["alignment"]["applied"] and metadata["counts"]["without_data"] > 0
    for path in sorted((tmp_path / "out" / "train" / "A").iterdir()):
        first, second = (np.asarray(PIL.Image.open(path.parents[1] / date / path.name), int) for date in "AB")
        assert np.abs(first - second).mean() < 3


CHANGES = [(x, y) for x in range(20, 500, 40) for y in range(20, 380, 40)]


def test_pictures_are_refused(tmp_path: Path) -> None:
    """Images have no warping to a grid, so the option is refused as the others for rasters are."""
    for name in ("1.png", "2.png"):
        PIL.Image.fromarray(drawn_pair(0, 0)[0]).save(tmp_path / name)
    with pytest.raises(UserError, match="--align does nothing with PNG"):
        main([str(tmp_path / "1.png"), str(tmp_path / "2.png"), "-o", str(tmp_path / "out"), "--align"])


def score(changed: NDArray[np.bool_], label: NDArray[np.bool_]) -> float:
    """Return F1 in percent."""
    return 200 * float((changed & label).sum()) / max(1, float(changed.sum() + label.sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levir_subset/val/{}/test_5", "ms_bcd/val/{}/56_48"])
def test_real_pairs(real_data: Path, tmp_path: Path, name: str) -> None:
    """A known shift is found to 0.3 pixels, beside that of the pair, and undone at a cost below one point of F1.

    Only pixels that both dates cover are scored. The labels were drawn on after, so they move with it.
    """
    before, after = (visible(read_picture(real_data / f"{name.format(date)}.jpg")) for date in "AB")
    label = read_picture(real_data / f"{name.format('label')}.png")[..., 0] > 0
    detector = ChangeDetector(device="cpu", amp="off")
    own: ShiftGrid | None = None
    rows, columns = (np.arange(float(length)) for length in label.shape)
    for shift in (0, 8):
        moved = np.zeros_like(after)
        moved[: len(rows) - shift, shift:] = after[shift:, : len(columns) - shift]  # to the right and up
        with closing(RasterPair(*write_pair(tmp_path / str(shift), before, moved), align=True)) as pair:
            first, second, data = rows_of(pair)
            field = pair.after.shifts
        assert field
        own = own or field
        x, y = field.at(rows, columns)
        own_x, own_y = own.at(rows, columns)
        assert np.median(np.hypot(x - own_x - shift, y - own_y + shift)) < 0.3
        places = (columns + x - shift).astype(np.float32), (rows[:, None] + y + shift).astype(np.float32)
        truth = cv2.remap(label.astype(np.uint8), *places, cv2.INTER_NEAREST) > 0
        changed = detector.predict(first.astype(np.uint8), second.astype(np.uint8)) > detector.threshold
        plain = detector.predict(before * data[..., None], after * data[..., None]) > detector.threshold
        assert score(changed & data, truth & data) > score(plain & data, label & data) - 1


def read_picture(path: Path) -> Image:
    return np.asarray(PIL.Image.open(path).convert("RGB"))


def test_windows_that_disagree_are_a_reason() -> None:
    """One flat window does not explain why 34 others contradict each other."""
    x = np.arange(35.0).reshape(5, 7) * 50 % 31
    x[0, 0] = np.nan
    places = np.arange(7.0)
    field = ShiftField(places, places[:5], x, x.copy(), np.zeros((5, 7), bool), Counter({FLAT: 1}))
    assert explain(field, 32).startswith("no shift of at most 32 pixels is clear")
