"""The pictures of a scene: preview.png, and report.html with the whole scene and its largest changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from change.common.logs import versions
from change.common.pictures import panel, save_png
from change.evaluation.report import ImageCase, write_report
from change.rasters.gdal import geo
from change.rasters.numbering import Changes, strips
from change.rasters.raster import Block
from change.rasters.rows import RowReader

DETAIL = 768  # side in pixels of a part that shows a change at full resolution
DETAILS = 8  # maximum number of such parts
TRIED = 200  # maximum number of changes that are considered, the largest first


def scene_cases(rows: RowReader, mask: Path, changes: Changes) -> list[ImageCase]:
    """Return the pictures to show: first the overview, then the largest changes at full resolution.

    Args:
        rows: the reader of the scene, after all rows were read.
        mask: the raster of the mask.
        changes: the measures of the connected changes.
    """
    pair = rows.pair
    before, after = rows.overviews
    changed = shrink_mask(mask, before.shape[:2])
    cases = [ImageCase("the whole scene", before=before, after=after, changed=changed, mask=None)]
    if before.shape[:2] == (pair.height, pair.width):
        return cases  # the overview has full resolution
    for block in detail_blocks(changes, pair.height, pair.width):
        before, after = (raster.read(block)[0].transpose(1, 2, 0) for raster in (pair.before, pair.after))
        name = f"row {block.top}, column {block.left}"
        cases.append(ImageCase(name, before=before, after=after, changed=read_changed(mask, block), mask=None))
    return cases


def detail_blocks(changes: Changes, height: int, width: int) -> list[Block]:
    """Choose parts of a scene of `height` x `width` pixels that show the largest changes and overlap little."""
    tall, wide = min(DETAIL, height), min(DETAIL, width)
    order = np.argsort(-changes.pixels[1:], kind="stable")[:TRIED] + 1
    blocks: list[Block] = []
    for number in order.tolist():
        if len(blocks) == DETAILS:
            break
        y = int(changes.rows[number] / changes.pixels[number])
        x = int(changes.columns[number] / changes.pixels[number])
        top = min(max(0, y - tall // 2), height - tall)
        left = min(max(0, x - wide // 2), width - wide)
        if not any(abs(top - other.top) < tall // 2 and abs(left - other.left) < wide // 2 for other in blocks):
            blocks.append(Block(top=top, left=left, height=tall, width=wide))
    return blocks


def read_changed(mask: Path, block: Block) -> NDArray[np.bool_]:
    """Read a block of a mask: bool (height, width), True where changed."""
    window = geo("rasterio.windows").Window(
        col_off=block.left, row_off=block.top, width=block.width, height=block.height
    )
    with geo("rasterio").open(mask) as dataset:
        return np.asarray(dataset.read(1, window=window) == 1)


def shrink_mask(mask: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Shrink a mask to `shape` (h, w); a pixel is changed if any pixel of its area is, so no change is lost."""
    small = np.zeros(shape, np.bool_)
    with geo("rasterio").open(mask) as dataset:
        for row, window in strips(dataset):
            y, x = np.nonzero(dataset.read(1, window=window) == 1)
            small[(y + row) * shape[0] // dataset.height, x * shape[1] // dataset.width] = True
    return small


def write_pictures(cases: list[ImageCase], folder: Path, metadata: dict[str, Any]) -> None:
    """Write preview.png, which shows the first case, and report.html, which shows all."""
    overview = cases[0]
    save_png(panel(overview.before, overview.after, overview.changed, None), folder / "preview.png")
    shares = [float(case.changed.mean()) for case in cases]
    # The overview makes changes look larger than they are, so its share is that of the scene itself.
    shares[0] = metadata["pixels"]["changed"] / (metadata["height"] * metadata["width"])
    rows = [{"image": case.name, "predicted_share": share} for case, share in zip(cases, shares, strict=True)]
    summary = f"{metadata['width']} x {metadata['height']} pixels, {metadata['pixels']['changed']} of them changed"
    if polygons := metadata.get("polygons"):
        summary += f" · {polygons['count']} polygons, {polygons['area_m2']:.0f} m²"
    result = {
        "title": f"Change from {Path(metadata['before']).stem} to {Path(metadata['after']).stem}",
        "summary": summary,
        "protocol": {name: metadata[name] for name in ("threshold", "tile", "overlap", "precision")},
        "checkpoint": metadata["checkpoint"],
        "versions": versions(),
        "images": len(cases),
        "warnings": metadata["warnings"],
    }
    write_report(folder / "report.html", result, rows, cases)
