"""Classes of change in the files of a scene: the colours of the mask, the style of the polygons, counts and areas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from change.common.classes import Classes
from change.common.errors import UserError
from change.common.pictures import class_colours
from change.rasters.findings import format_area

CLASS = "class"  # the column of the polygons
MOST = 254  # classes, because mask.tif needs a value for no data
SYMBOL = (
    '      <symbol name="{number}" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">\n'
    '        <prop k="color" v="{colour},60"/><prop k="outline_color" v="{colour},255"/>'
    '<prop k="outline_width" v="0.5"/><prop k="style" v="solid"/>\n'
    "      </layer></symbol>"
)
STYLE = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
  <renderer-v2 type="categorizedSymbol" attr="{column}" enableorderby="0">
    <categories>
{categories}
    </categories>
    <symbols>
{symbols}
    </symbols>
  </renderer-v2>
</qgis>
"""


def require_few(classes: Classes | None) -> None:
    """Raise UserError if there are too many classes for a raster with no data."""
    if classes and len(classes.names) > MOST:
        raise UserError(f"the checkpoint tells apart {len(classes.names)} classes: mask.tif can hold at most {MOST}")


def mask_colours(colours: Mapping[int, tuple[int, ...]], classes: Classes | None) -> dict[int, tuple[int, ...]]:
    """Return the colour table of a mask: `colours`, with those of the classes in place of that of change, 1."""
    own = class_colours(len(classes.names)) if classes else []
    return {**colours, **{value: (*colour, 255) for value, colour in enumerate(own, start=1)}}


def class_style(classes: Classes) -> str:
    """Return a style for QGIS that gives the polygons of each class the colour that it has in the mask."""
    categories, symbols = [], []
    for number, (name, colour) in enumerate(zip(classes.names, class_colours(len(classes.names)), strict=True)):
        shown = quoteattr(name)
        categories.append(f'      <category symbol="{number}" value={shown} label={shown} render="true"/>')
        symbols.append(SYMBOL.format(number=number, colour=",".join(map(str, colour))))
    return STYLE.format(column=CLASS, categories="\n".join(categories), symbols="\n".join(symbols))


def name_changes(classes: Classes, values: NDArray[np.int64]) -> NDArray[Any]:
    """Return the names (N,) of class values (N,); "" for 0."""
    return np.array(["", *classes.names], object)[values]


def measure_classes(
    classes: Classes, values: NDArray[np.int64], pixels: NDArray[np.int64], frame: Any | None
) -> list[dict[str, Any]]:
    """Count the changed pixels and the polygons of each class, for metadata.json.

    Args:
        classes: the classes.
        values: the class value of each connected change (N,).
        pixels: its number of pixels (N,).
        frame: the polygons with the columns class and area_m2; None if there are none.
    """
    counts = np.zeros(1 + len(classes.names), np.int64)
    np.add.at(counts, values, pixels)
    rows: list[dict[str, Any]] = []
    for value, name in enumerate(classes.names, start=1):
        rows.append({"value": value, "name": name, "pixels": int(counts[value])})
        if frame is not None:
            own = frame[frame[CLASS] == name]
            rows[-1] |= {"polygons": len(own), "area_m2": float(own["area_m2"].sum())}
    return rows


def describe_classes(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Describe the result of `measure_classes` for the report, by name."""
    described = {}
    for row in rows:
        parts = [f"{row['pixels']:,} pixels"]
        if "polygons" in row:
            parts.append(f"{row['polygons']:,} polygons of {format_area(row['area_m2'])} in total")
        described[row["name"]] = ", ".join(parts)
    return described
