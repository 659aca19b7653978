"""A canvas for synthetic scenes: draw polygons, shadows and tree crowns, and take the picture of a sensor at one date.

A canvas holds two maps: albedo (H, W, 3) of 0..1, and light (H, W), the share of full sun that falls on flat ground.
Polygons are (N, 2) float64, x to the right and y down, in pixels unless metres are stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from change.synthetic.world import Colour, Points

Field = NDArray[np.float32]
SHARP = 16  # polygon corners are rounded to 1/16 of a pixel


@dataclass(frozen=True)
class Look:
    """How the scene looks at one date."""

    azimuth: float  # of the sun, radians from x to y
    elevation: float  # radians
    ambient: float  # share of full sun that reaches the shade
    dry: float  # season, from wet (0) to dry (1)
    haze: float
    gain: Field  # (3,)
    gamma: float
    contrast: float
    blur: float  # sigma, pixels
    grain: float  # sigma, levels of 255
    lean: Points  # (2,) metres that a roof is displaced per metre of its height
    registration: Points  # (2, 3) affine, pixels

    @property
    def sun(self) -> Points:
        """The unit vector to the sun (x, y, up)."""
        flat = np.cos(self.elevation)
        return np.array([flat * np.cos(self.azimuth), flat * np.sin(self.azimuth), np.sin(self.elevation)])


def draw_look(rng: np.random.Generator) -> Look:
    """Draw the look of a date, without misregistration."""
    return Look(
        azimuth=rng.uniform(0, 2 * np.pi),
        elevation=rng.uniform(0.55, 1.15),
        ambient=rng.uniform(0.18, 0.45),
        dry=rng.random(),
        haze=rng.random() ** 2 * 0.3,
        gain=(rng.uniform(0.8, 1.35) * (1 + rng.normal(0, (0.03, 0.02, 0.06)))).astype(np.float32),
        gamma=rng.uniform(1.0, 1.7),
        contrast=rng.uniform(0.95, 1.4),
        blur=rng.uniform(0.45, 1.0),
        grain=rng.uniform(1.0, 4.0),
        lean=rng.normal(0, 0.09, 2),
        registration=np.eye(2, 3),
    )


def draw_second_look(first: Look, rng: np.random.Generator) -> Look:
    """Draw the look of the other date, at a random distance from the first, and misregistered by about a pixel."""
    other, distance = draw_look(rng), rng.uniform(0.1, 1.0) ** 1.5
    mixed = {
        spec.name: getattr(first, spec.name) + distance * (getattr(other, spec.name) - getattr(first, spec.name))
        for spec in fields(Look)
    }
    turn, shift = rng.normal(0, 0.0008), rng.uniform(-1.3, 1.3, 2)
    mixed["registration"] = np.array([[np.cos(turn), -np.sin(turn), shift[0]], [np.sin(turn), np.cos(turn), shift[1]]])
    return Look(**mixed)


def noise(height: int, width: int, cell: float, octaves: int, rng: np.random.Generator) -> Field:
    """Draw smooth noise (H, W) of unit variance.

    It is the sum of `octaves` random grids, with cells of `cell` pixels, of half as many, and so on.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(1.0, cell / 2**octave)
        rows, columns = int(height / size) + 3, int(width / size) + 3
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        large = cv2.resize(grid, None, fx=size, fy=size, interpolation=cv2.INTER_CUBIC) if size > 1 else grid
        total += large[:height, :width] * np.float32(0.6**octave)
    return total / max(float(total.std()), 1e-6)


class Canvas:
    """The canvas of one date, drawn from the ground up."""

    def __init__(self, height: int, width: int, scale: float, look: Look) -> None:
        """`scale`: pixels per metre."""
        self.albedo = np.full((height, width, 3), 0.4, np.float32)
        self.light = np.ones((height, width), np.float32)
        self.look, self.scale = look, scale

    def pixels(self, points: Points, height: float = 0.0) -> Points:
        """Convert points `height` metres above ground from metres to pixels."""
        flat = (points + height * self.look.lean) * self.scale
        return np.asarray(flat @ self.look.registration[:, :2].T + self.look.registration[:, 2])

    def cover(self, polygon: Points) -> tuple[tuple[slice, slice], Field] | None:
        """Find the part of the canvas that a polygon in pixels touches, and the share (0..1) of each pixel it covers.

        Returns None if the polygon is outside the canvas.
        """
        low = np.maximum(np.floor(polygon.min(0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(polygon.max(0)).astype(int) + 2, self.light.shape[::-1])
        if (low >= high).any():
            return None
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        corners = np.round((polygon - low) * SHARP).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, shift=SHARP.bit_length() - 1)
        return (slice(low[1], high[1]), slice(low[0], high[0])), np.asarray(mask / np.float32(255), np.float32)

    def fill(self, polygon: Points, colour: Colour, light: float = 1.0) -> None:
        """Paint a polygon in pixels."""
        if (covered := self.cover(polygon)) is not None:
            place, alpha = covered
            self.albedo[place] += alpha[..., None] * (np.array(colour, np.float32) - self.albedo[place])
            self.light[place] += alpha * (np.float32(light) - self.light[place])

    def shade(self, outlines: Sequence[Points], height: float) -> None:
        """Cast the shadow of something with a flat top. `outlines` on the ground and `height` are in metres."""
        reach = -self.look.sun[:2] / self.look.sun[2] * height
        for outline in outlines:
            hull = cv2.convexHull(np.concatenate([outline, outline + reach]).astype(np.float32))[:, 0]
            if (covered := self.cover(self.pixels(hull.astype(float)))) is not None:
                place, alpha = covered
                np.minimum(self.light[place], 1 - (1 - self.look.ambient) * alpha, out=self.light[place])

    def slope_light(self, direction: Points, pitch: float) -> float:
        """Return the light on a roof that slopes down towards the unit vector `direction` at `pitch` radians."""
        sun = self.look.sun
        facing = float(np.sin(pitch) * (direction @ sun[:2]) + np.cos(pitch) * sun[2]) / sun[2]
        return self.look.ambient + (1 - self.look.ambient) * float(np.clip(facing, 0.0, 1.7))


class Crowns:
    """Shapes of tree crowns at one date: `cover` is the share of each pixel that they cover, `light` their light."""

    SIZE = 32

    def __init__(self, look: Look, seed: int = 7, count: int = 24) -> None:
        rng = np.random.default_rng(seed)
        y, x = (np.mgrid[: self.SIZE, : self.SIZE] + 0.5) / (self.SIZE / 2) - 1
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        self.cover, self.light = [], []
        for _ in range(count):
            edge = 0.82 + sum(rng.normal(0, 0.06) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
            lumps = noise(self.SIZE, self.SIZE, 7, 2, rng)
            dome = np.sqrt(np.clip(1.05 - (radius / edge) ** 2, 0.0, None)) + 0.09 * lumps
            slope_y, slope_x = np.gradient(dome * self.SIZE / 2.6)
            facing = (look.sun[2] - slope_x * look.sun[0] - slope_y * look.sun[1]) / np.sqrt(
                1 + slope_x**2 + slope_y**2
            )
            self.cover.append(np.clip((edge - radius) * 7, 0, 1).astype(np.float32))
            lit = look.ambient + (1 - look.ambient) * np.clip(facing / look.sun[2], 0, 1.25)
            self.light.append(lit.astype(np.float32))


def expose(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture that a sensor takes of a canvas: uint8 (H, W, 3)."""
    look = canvas.look
    height, width = canvas.light.shape
    light = cv2.GaussianBlur(canvas.light, (0, 0), 0.5)
    sky = np.array([0.92, 0.97, 1.06], np.float32)  # the light in the shade is bluish
    tint = 1 + (1 - np.clip(light, 0, 1))[..., None] * (sky - 1)
    picture = canvas.albedo * light[..., None] * tint
    picture *= (1 + 0.03 * noise(height, width, 2, 2, rng))[..., None]
    picture = np.clip(picture * look.gain, 0, None) ** np.float32(look.gamma)
    picture = 0.4 + look.contrast * (picture - 0.4)
    air = np.float32(look.haze) * np.clip(1 + 0.25 * noise(height, width, max(height, width) / 3, 2, rng), 0, 2)
    picture += air[..., None] * (np.array([0.62, 0.66, 0.70], np.float32) - picture)
    picture = cv2.GaussianBlur(picture, (0, 0), look.blur)
    picture = 255 * picture + look.grain * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.clip(np.round(picture), 0, 255), np.uint8)
