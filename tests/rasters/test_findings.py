"""What predict says at its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import geopandas
import pytest

from change.rasters.findings import describe_files, describe_findings
from change.rasters.predict import main
from tests.rasters.drawn import noise, read_band, scene, write_raster
from tests.rasters.test_predict import arguments


def test_the_end_of_a_scene(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of the files, and paths are relative to the current folder."""
    pair = scene(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("change.rasters.predict_pairs.start_logging", lambda process: None)
    with caplog.at_level(logging.INFO):
        assert main(arguments(*pair, "-o", "results/../out")) == 0
    found, files = caplog.messages[-2:]
    frame = geopandas.read_file(tmp_path / "out" / "changes.gpkg")
    changed = read_band(tmp_path / "out" / "mask.tif") == 1
    area = frame["area_m2"].sum()
    assert found.startswith(f"{len(frame)} polygon") and f" {area:,.0f} m²; {changed.sum():,} of 12,288 pixels" in found
    assert found.endswith(f"({changed.mean():.1%})")
    assert files == "written to out; open out/report.html"


def test_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("change.rasters.predict_pairs.start_logging", lambda process: None)
    path = write_raster(tmp_path / "1.tif", noise(64, 64))
    with caplog.at_level(logging.INFO):
        main(arguments(path, path, "-o", tmp_path / "out", "--threshold=0.99"))
    assert "no change found in 4,096 pixels" in caplog.messages
    assert caplog.messages[-1] == f"written to {tmp_path / 'out'}; open {tmp_path / 'out' / 'report.html'}"


@pytest.mark.parametrize(
    ("changed", "polygons", "said"),
    [
        (4, None, "4 of 200 pixels changed (2.0%)"),
        (4, {"count": 1, "area_m2": 1234.4}, "1 polygon, 1,234 m²; 4 of 200 pixels changed (2.0%)"),
        (4, {"count": 2, "area_m2": 3.456e6}, "2 polygons, 3.46 km²; 4 of 200 pixels changed (2.0%)"),
        (
            4,
            {"count": 2, "area_m2": 80.0, "squared": 1},
            "2 polygons, 1 of them square, 80 m²; 4 of 200 pixels changed (2.0%)",
        ),
        (
            4,
            {"count": 0, "area_m2": 0.0},
            "4 of 200 pixels changed (2.0%), but no polygon has 50 m² or more (--min_area)",
        ),
    ],
)
def test_sentences(changed: int, polygons: dict[str, Any] | None, said: str) -> None:
    metadata = {"pixels": {"data": 200, "changed": changed}, "min_area": 50.0}
    assert describe_findings(metadata | ({} if polygons is None else {"polygons": polygons})) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(2, "2 polygons of 4 pixels or more, 80 m²; 4 of "), (0, "(2.0%), but no polygon has 4 pixels or more (--min")],
)
def test_the_default_area_is_stated(count: int, said: str) -> None:
    metadata = {"pixels": {"data": 200, "changed": 4}, "min_area": None, "min_pixels": 4}
    assert said in describe_findings(metadata | {"polygons": {"count": count, "area_m2": 80.0}})


def test_extremes(tmp_path: Path) -> None:
    assert describe_findings({"pixels": {"data": 0, "changed": 0}}) == (
        "nothing was compared: no place has data at both dates"
    )
    assert describe_findings({"pixels": {"data": 10**7, "changed": 1}}).endswith("(less than 0.1%)")
    assert describe_files(tmp_path) == f"written to {tmp_path}"
