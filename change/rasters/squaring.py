"""Square outlines: polygons whose edges are parallel or perpendicular to one direction, as most walls are.

An outline is simplified. Its edges are snapped to the direction of the smallest rectangle around it or to one near it,
and to the normal of this direction. Short edges are merged into their neighbours. All edges then move outwards or
inwards by the same distance, which restores the area. If the result differs too much from the outline, the mean
direction of the edges is tried. If that does not fit either, or if the result touches another polygon, the outline
stays as it is.

Polygons are squared in metres on the ground, so right angles are right in any coordinate reference system.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.gdal import geo
from change.rasters.places import Outlines

# Lengths in pixels.
BRIDGE = 0.1  # outlines grow by this length, so that parts that touch at a corner become one
TOLERANCE = 1.0  # tolerance of the simplification: the steps of a slanted wall disappear
COARSE, FINE = 6, 4  # the shortest edges: the coarser outline is taken if it fits
MOST_MOVED = 1.0  # mean distance by which an outline may move

TURNS = np.radians((0, -3, 3, -6, 6))  # the direction of the smallest rectangle is imprecise if corners are rounded
LEAST_DETAIL = 0.12  # shortest edges relative to the square root of the area
LEAST_IOU = 0.85  # IoU of the polygons before and after
MOST_AREA = 0.05  # relative change of the area
MOST_POINTS = 1000  # a simplified polygon with more points is not a building
STEPS = 3  # steps of Newton's method for the distance that restores the area

Points = NDArray[np.float64]


def square_outlines(outlines: Outlines, crs: Any, pixel: float) -> tuple[Outlines, NDArray[np.bool_]]:
    """Square polygons where possible.

    Args:
        outlines: multipolygons (N,) in `crs` that do not touch each other, as traced along pixel edges. Their parts
            may touch at corners.
        crs: a coordinate reference system on earth.
        pixel: side of a pixel, in the units of `crs`.

    Returns:
        The outlines, and bool (N,), True for those that are squared. Squared polygons have one part and as many holes
        as before, and do not touch any other polygon.
    """
    squares, moved = outlines.copy(), np.full(len(outlines), -np.inf)
    centres, frames = ground_frames(outlines, crs, pixel)
    with np.errstate(invalid="ignore"):
        determinants = np.linalg.det(frames)
    for index in np.flatnonzero(np.isfinite(determinants) & (determinants != 0)):
        square, distance = square_in_place(outlines[index], centres[index], frames[index], pixel)
        if square is not None:
            squares[index], moved[index] = square, distance
    return keep_clear(outlines, squares, moved)


def ground_frames(outlines: Outlines, crs: Any, pixel: float) -> tuple[Points, Points]:
    """Measure a step in a coordinate reference system on the ground.

    Args:
        outlines: polygons or multipolygons (N,) in `crs`.
        crs: a coordinate reference system on earth.
        pixel: length of the step.

    Returns:
        The centres of the polygons in `crs`, (N, 2), and matrices (N, 2, 2) that turn an offset from the centre into
        metres to the east and to the north. They are not finite where `crs` cannot be converted.
    """
    shapely, pyproj = geo("shapely"), geo("pyproj")
    centres = shapely.get_coordinates(shapely.centroid(outlines))
    transformer = pyproj.Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True)
    start = transformer.transform(*centres.T)
    frames = np.empty((len(centres), 2, 2))
    for axis, step in enumerate(np.eye(2) * pixel):
        end = transformer.transform(*(centres + step).T)
        azimuth, _, distance = pyproj.Geod(ellps="WGS84").inv(*start, *end)
        frames[:, 0, axis] = distance * np.sin(np.radians(azimuth)) / pixel
        frames[:, 1, axis] = distance * np.cos(np.radians(azimuth)) / pixel
    return centres, frames


def square_in_place(outline: Any, centre: Points, frame: Points, pixel: float) -> tuple[Any, float]:
    """Square one multipolygon in a coordinate reference system.

    Args:
        outline: the multipolygon.
        centre: its centre, (2,), as `ground_frames` returns it.
        frame: its matrix, (2, 2), finite and invertible.
        pixel: side of a pixel in the units of the system.

    Returns:
        As `square_outline`, but a multipolygon in the system.
    """
    shapely = geo("shapely")
    back = np.linalg.inv(frame)
    on_ground = shapely.transform(outline, lambda points: (points - centre) @ frame.T)
    square, moved = square_outline(on_ground, pixel * float(np.sqrt(abs(np.linalg.det(frame)))))
    if square is None:
        return None, np.inf
    placed = shapely.multipolygons([shapely.transform(square, lambda points: points @ back.T + centre)])
    return (placed, moved) if shapely.is_valid(placed) else (None, np.inf)


def keep_clear(outlines: Outlines, squares: Outlines, moved: Points) -> tuple[Outlines, NDArray[np.bool_]]:
    """Restore the outlines of polygons that would touch another polygon.

    Args:
        outlines: (N,), as they were.
        squares: (N,), squared where `moved` is finite.
        moved: (N,), how far an outline has moved. If two squares touch, the one that has moved farther is given up.

    Returns:
        As `square_outlines`.
    """
    shapely = geo("shapely")
    while True:
        first, second = shapely.STRtree(squares).query(squares, predicate="intersects")
        worse = np.where(moved[first] > moved[second], first, second)[first < second]
        worse = worse[np.isfinite(moved[worse])]
        if not len(worse):
            return squares, np.isfinite(moved)
        squares[worse], moved[worse] = outlines[worse], -np.inf


def square_outline(outline: Any, pixel: float) -> tuple[Any, float]:
    """Square one outline.

    Args:
        outline: multipolygon in metres on the ground.
        pixel: side of a pixel in metres.

    Returns:
        A valid polygon with right angles and the same number of holes, and the mean distance in metres by which the
        outline has moved; (None, inf) if there is none that is close enough.
    """
    shapely = geo("shapely")
    joined = shapely.buffer(outline, BRIDGE * pixel, join_style="mitre")
    simple = shapely.simplify(joined, TOLERANCE * pixel)
    if shapely.get_type_id(simple) != shapely.GeometryType.POLYGON or shapely.get_num_points(simple.exterior) < 4:
        return None, np.inf
    if shapely.get_num_coordinates(simple) > MOST_POINTS:
        return None, np.inf
    simple = shapely.orient_polygons(simple, exterior_cw=False)
    box, edges = directions(shapely.get_coordinates(simple.exterior))
    near = box + TURNS
    # Fine details at a wrong angle look like stairs, so the less reliable angle has none.
    for angles, detail in ((near, COARSE), (near, FINE), ((edges,), COARSE)):
        shortest = max(detail * pixel, LEAST_DETAIL * np.sqrt(outline.area))
        squares = [snap(simple, angle, shortest=shortest, area=outline.area) for angle in angles]
        moved = [distance_moved(outline, square) for square in squares]
        best = int(np.argmin(moved))
        if moved[best] <= MOST_MOVED * pixel:
            return squares[best], moved[best]
    return None, np.inf


def distance_moved(outline: Any, square: Any) -> float:
    """Return the mean distance between two outlines.

    It is inf if there is no square, or if the area or the intersection over union differ too much.
    """
    if square is None:
        return np.inf
    common = geo("shapely").intersection(outline, square).area
    union = outline.area + square.area - common
    if abs(square.area / outline.area - 1) > MOST_AREA or common / union < LEAST_IOU:
        return np.inf
    return float((union - common) / square.length)


def directions(points: Points) -> tuple[float, float]:
    """Return two candidates for the direction of a building, in radians.

    The first is that of the smallest rectangle around the points. It is less affected by rounded corners. The second is
    the mean direction of the edges modulo a right angle, weighted by their squared lengths. It is better for buildings
    with wings.

    Args:
        points: (N, 2), a closed ring.
    """
    shapely = geo("shapely")
    corners = shapely.get_coordinates(shapely.oriented_envelope(shapely.polygons(points)))
    across, up = corners[1] - corners[0]
    x, y = np.diff(points, axis=0).T
    fourfold = 4 * np.arctan2(y, x)
    weight = x**2 + y**2
    edges = np.arctan2((weight * np.sin(fourfold)).sum(), (weight * np.cos(fourfold)).sum()) / 4
    return float(np.arctan2(up, across)), float(edges)


def rotate(points: Points, angle: float) -> Points:
    """Rotate points (N, 2) clockwise by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cos, -sin], [sin, cos]]))


class Edges(NamedTuple):
    """The edges of a ring in order, alternately upright and level, (N,) each.

    Attributes:
        upright: True for an edge along y, False for one along x.
        offset: x of an upright edge, y of a level one.
        sign: 1 if the edge runs towards larger coordinates, else -1.
        weight: how much its offset counts when edges are merged.
    """

    upright: NDArray[np.bool_]
    offset: Points
    sign: Points
    weight: Points

    def following(self) -> Points:
        """Return for each edge the offset of the next one, (N,)."""
        return np.concatenate((self.offset[1:], self.offset[:1]))

    def lengths(self) -> Points:
        """Return the lengths (N,); an edge that runs against its sign has a negative one."""
        return np.asarray(self.sign * (self.following() - np.concatenate((self.offset[-1:], self.offset[:-1]))))

    def points(self) -> Points:
        """Return the corners (N, 2) at which the edges end."""
        following = self.following()
        x = np.where(self.upright, self.offset, following)
        y = np.where(self.upright, following, self.offset)
        return np.stack((x, y), axis=1)

    def select(self, kept: NDArray[np.bool_]) -> Edges:
        """Return some of the edges; `kept` is (N,)."""
        return Edges(self.upright[kept], self.offset[kept], self.sign[kept], self.weight[kept])

    def move(self, distance: float) -> Edges:
        """Move all edges to their right: outwards if the ring is counter-clockwise, else inwards."""
        return self._replace(offset=self.offset + np.where(self.upright, self.sign, -self.sign) * distance)


def snap(polygon: Any, angle: float, *, shortest: float, area: float) -> Any:
    """Make all angles of a polygon right.

    Args:
        polygon: its outer ring is counter-clockwise.
        angle: the direction of its edges, in radians.
        shortest: the shortest edge to keep.
        area: the area that the result should have.

    Returns:
        A valid polygon with the same number of holes, or None.
    """
    shapely = geo("shapely")
    turned = [rotate(shapely.get_coordinates(ring), angle) for ring in (polygon.exterior, *polygon.interiors)]
    rings = [merge_short(snap_ring(points), shortest) or box_edges(points) for points in turned]
    square = build(rings)
    for _ in range(STEPS):
        distance = (area - square.area) / square.length
        rings = [edges.move(distance) for edges in rings]
        square = build(rings)
    if min(edges.lengths().min() for edges in rings) <= 0 or not shapely.is_valid(square):
        return None
    return shapely.transform(square, lambda points: rotate(points, -angle))


def build(rings: list[Edges]) -> Any:
    """Build a polygon, which may be invalid, from its outer ring and its holes."""
    outer, *holes = [edges.points() for edges in rings]
    return geo("shapely").Polygon(outer, holes)


def snap_ring(points: Points) -> Edges | None:
    """Snap the edges of a closed ring (N, 2) to x and y; None if all are nearest to the same one.

    Edges that follow each other in the same direction become one. Slanted edges have less influence on its offset.
    """
    steps = np.diff(points, axis=0)
    upright = np.abs(steps[:, 1]) > np.abs(steps[:, 0])
    turns = np.flatnonzero(upright != np.roll(upright, 1))
    if not len(turns):
        return None
    upright = np.roll(upright, -turns[0])
    steps = np.roll(steps, -turns[0], axis=0)
    middle = np.roll((points[1:] + points[:-1]) / 2, -turns[0], axis=0)
    run = np.cumsum(upright != np.roll(upright, 1)) - 1
    along = np.where(upright, steps[:, 1], steps[:, 0])
    across = np.where(upright, steps[:, 0], steps[:, 1])
    offset = np.where(upright, middle[:, 0], middle[:, 1])
    weight = np.abs(along) - np.abs(across) + np.finfo(np.float64).tiny
    total = np.bincount(run, weight).astype(np.float64)
    return Edges(
        upright=np.arange(len(total)) % 2 == (0 if upright[0] else 1),
        offset=np.bincount(run, weight * offset) / total,
        sign=np.where(np.bincount(run, along) < 0, -1.0, 1.0),
        weight=total,
    )


def merge_short(edges: Edges | None, shortest: float) -> Edges | None:
    """Remove edges shorter than `shortest`, beginning with the shortest one; None if fewer than four are left.

    The two neighbours of a removed edge become one.
    """
    while edges is not None:
        lengths = edges.lengths()
        short = int(lengths.argmin())
        if lengths[short] >= shortest:
            break
        count = len(lengths)
        if count <= 4:
            return None
        offset, sign, weight = edges.offset.copy(), edges.sign.copy(), edges.weight.copy()
        first, second = (short - 1) % count, (short + 1) % count
        total = weight[first] + weight[second]
        offset[first] = (weight[first] * offset[first] + weight[second] * offset[second]) / total
        sign[first] = -1.0 if weight[first] * sign[first] + weight[second] * sign[second] < 0 else 1.0
        weight[first] = total
        kept = np.ones(count, np.bool_)
        kept[[short, second]] = False
        edges = Edges(edges.upright, offset, sign, weight).select(kept)
    return edges


def box_edges(points: Points) -> Edges:
    """Return a rectangle with the area, the centre and the proportions of the box around a closed ring (N, 2)."""
    shapely = geo("shapely")
    ring = shapely.linearrings(points)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = np.sqrt(shapely.area(shapely.polygons(ring)) / np.prod(high - low))
    left, bottom = (low + high - scale * (high - low)) / 2
    right, top = (low + high + scale * (high - low)) / 2
    order = slice(None) if shapely.is_ccw(ring) else slice(None, None, -1)
    sign = np.array([1.0, -1.0, -1.0, 1.0])[order]
    return Edges(
        upright=np.array([True, False, True, False])[order],
        offset=np.array([right, top, left, bottom])[order],
        sign=sign if shapely.is_ccw(ring) else -sign,
        weight=np.ones(4),
    )
