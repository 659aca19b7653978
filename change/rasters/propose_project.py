"""The QGIS project of a proposal: both rasters, the tiles, and the predicted polygons to correct.

The project is written from propose.qgs, a template. It opens in QGIS 3.22 and newer. Files are named relative to the
project, so a folder that holds the rasters and the scene can be moved as a whole.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from change.common.errors import UserError
from change.rasters.aligned_raster import AlignedRaster
from change.rasters.raster import RasterPair

TEMPLATE = Path(__file__).with_name("propose.qgs")
STYLE = Path(__file__).with_name("propose.qml")  # of the layer `changes`
COLOURS = ("red", "green", "blue")


def check_own_files() -> None:
    """Raise UserError if a file that a project is made from is missing."""
    for path in (TEMPLATE, STYLE):
        if not path.is_file():
            raise UserError(f"{path} is missing: it comes with PRX-Change; install it again or restore it with git")


def make_project(folder: Path, pair: RasterPair, extent: tuple[float, float, float, float]) -> str:
    """Make the content of a project.

    Args:
        folder: the folder for which it is made; propose.gpkg lies there as well.
        pair: the rasters.
        extent: what the map shows at first: left, bottom, right and top in the reference system of the pair.
    """
    values = {
        "title": f"{pair.before.path.stem} to {pair.after.path.stem}: tiles to label",
        "wkt": pair.crs.to_wkt(),
        **dict(zip(("xmin", "ymin", "xmax", "ymax"), map(repr, extent), strict=True)),
    }
    parts = {"renderer": style_renderer()}
    for date, raster in (("before", pair.before), ("after", pair.after)):
        crs = raster.source.dataset.crs
        values |= {
            date: place_from(folder, raster.path),
            f"{date}_name": raster.path.name,
            f"{date}_wkt": crs.to_wkt() if crs else "",
        }
        parts[f"{date}_pipe"] = describe_bands(raster)
    return fill_in(TEMPLATE.read_text(encoding="utf-8"), values, parts)


def fill_in(template: str, values: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """Replace the names in a template by values, which are escaped, and by parts, which are XML."""
    escaped = {name: escape(value, {'"': "&quot;"}) for name, value in values.items()}
    return string.Template(template).substitute(escaped | dict(parts))


def style_renderer() -> str:
    """Return the part of the style that draws the polygons."""
    renderer = ElementTree.parse(STYLE).find("renderer-v2")
    assert renderer is not None
    return ElementTree.tostring(renderer, encoding="unicode").strip()


def place_from(folder: Path, path: Path) -> str:
    """Return the path of a file relative to a folder; on another drive of Windows, the absolute path.

    Links are followed in folders, because QGIS does not follow them in "..", but the file may be a link.
    """
    target = path.parent.resolve() / path.name
    try:
        relative = Path(os.path.relpath(target, folder.resolve())).as_posix()
    except ValueError:
        return target.as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def describe_bands(raster: AlignedRaster) -> str:
    """Describe in XML how a raster is drawn: with the bands and the stretch that the network sees.

    The description is empty for a raster with a colour table, which QGIS draws by itself.
    """
    if raster.palette is not None:
        return ""
    bands = " ".join(f'{name}Band="{band}"' for name, band in zip(COLOURS, raster.bands, strict=True))
    ends = zip(COLOURS, raster.stretch.low, raster.stretch.high, strict=True)
    stretches = "".join(
        f"<{name}ContrastEnhancement><minValue>{float(low)!r}</minValue><maxValue>{float(high)!r}</maxValue>"
        f"<algorithm>StretchToMinimumMaximum</algorithm></{name}ContrastEnhancement>"
        for name, low, high in ends
    )
    alpha = raster.source.alpha or -1
    return (
        f'<pipe><rasterrenderer type="multibandcolor" opacity="1" alphaBand="{alpha}" {bands}>{stretches}'
        "</rasterrenderer></pipe>"
    )
