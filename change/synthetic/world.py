"""The contents of a synthetic scene at two dates: ground, roads, buildings, trees and small things.

`change.synthetic.builder` invents them, `change.synthetic.render` draws them.

Points are (N, 2) float64, x to the right and y down, in metres from the scene's upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = tuple[float, float, float]  # RGB reflectance, 0..1
Dates = tuple[bool, bool]  # whether something is there before, and after

BOTH: Dates = (True, True)
NEW: Dates = (False, True)
GONE: Dates = (True, False)

ROOFS: tuple[Colour, ...] = (
    (0.52, 0.50, 0.48),
    (0.40, 0.39, 0.38),
    (0.47, 0.41, 0.36),
    (0.55, 0.47, 0.40),
    (0.36, 0.32, 0.29),
    (0.58, 0.42, 0.34),
    (0.48, 0.34, 0.29),
    (0.66, 0.64, 0.61),
    (0.44, 0.47, 0.50),
    (0.80, 0.79, 0.77),
)
FLAT_ROOFS: tuple[Colour, ...] = ((0.86, 0.86, 0.84), (0.72, 0.71, 0.68), (0.55, 0.54, 0.53), (0.62, 0.58, 0.52))
PAINTS: tuple[Colour, ...] = (
    (0.88, 0.88, 0.88),
    (0.15, 0.15, 0.16),
    (0.5, 0.51, 0.53),
    (0.5, 0.12, 0.1),
    (0.15, 0.2, 0.4),
)
PAVED: tuple[Colour, ...] = ((0.70, 0.68, 0.64), (0.62, 0.61, 0.59), (0.44, 0.43, 0.43))
POOL: Colour = (0.30, 0.58, 0.66)
SLAB: Colour = (0.76, 0.74, 0.70)
EARTH: Colour = (0.64, 0.53, 0.41)

# Kinds of district with their weights: districts that stay as they are, and districts that are built on.
STABLE = {"suburb": 3, "industry": 1, "forest": 2.5, "scrub": 2.5, "field": 1.5, "grass": 1, "soil": 1, "water": 0.2}
BUILT_ON = {"scrub": 3, "soil": 3, "forest": 2, "grass": 2, "field": 2}
TREES = {  # trees per square metre
    "forest": 0.024,
    "scrub": 0.009,
    "grass": 0.0008,
    "suburb": 0.003,
    "industry": 0.0003,
    "soil": 0.0003,
}


@dataclass(frozen=True)
class Rectangle:
    """A rectangle: centre, angle of the long side in radians, half the length and half the width in metres."""

    centre: Points
    angle: float
    half_length: float
    half_width: float

    def corners(self) -> Points:
        """Return the four corners, in order."""
        return self.at([[-1, -1], [1, -1], [1, 1], [-1, 1]])

    def at(self, shares: object) -> Points:
        """Convert points from half lengths and half widths, relative to the centre, to metres in the scene."""
        local = np.asarray(shares, float) * (self.half_length, self.half_width)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.asarray(local @ np.array([[cos, sin], [-sin, cos]]) + self.centre)


@dataclass(frozen=True)
class Ground:
    """An area covered by one material at each date. `rows`: the angle of a field's rows in radians."""

    outline: Points
    materials: tuple[str, str]
    rows: float | None = None


@dataclass(frozen=True)
class Road:
    """A strip along a line."""

    line: Points
    width: float
    material: str
    dates: Dates


@dataclass(frozen=True)
class Patch:
    """A small object of one colour: a car, or something flat such as paved ground or a pool. `height`: in metres."""

    shape: Rectangle
    colour: Colour
    dates: Dates
    height: float = 0.0


@dataclass(frozen=True)
class Building:
    """A building.

    Attributes:
        wings: Its parts, the largest first.
        height: The height of the eaves in metres.
        roof: "hip", "gable" or "flat".
        colours: The colour of the roof at each date.
        dates: The dates at which it stands.
    """

    wings: tuple[Rectangle, ...]
    height: float
    roof: str
    colours: tuple[Colour, Colour]
    dates: Dates


@dataclass(frozen=True)
class Tree:
    """A tree's crown. `shape` chooses its form, `tone` (0..1) its colour."""

    place: Points
    radius: float
    shape: int
    tone: float
    dates: Dates


@dataclass
class World:
    """Everything in view."""

    ground: list[Ground] = field(default_factory=list)
    roads: list[Road] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)


@dataclass(frozen=True)
class District:
    """What an area is used for at the two dates. `streets`: whether streets exist before the houses along them."""

    before: str
    after: str
    streets: bool = True

    def dates(self) -> Dates:
        """Return the dates at which the area is built up."""
        built = [kind in ("suburb", "industry") for kind in (self.before, self.after)]
        return built[0], built[1]


def one_date(rng: np.random.Generator) -> Dates:
    """Draw the date at which something is there: only before, or only after."""
    return GONE if rng.random() < 0.5 else NEW


def tint(colour: Colour, rng: np.random.Generator, strength: float) -> Colour:
    """Draw a similar colour, with another brightness and a slightly different hue."""
    red, green, blue = np.clip(
        np.array(colour) * (1 + rng.normal(0, 2 * strength)) + rng.normal(0, strength / 3, 3), 0, 1
    )
    return float(red), float(green), float(blue)
