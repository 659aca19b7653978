"""Pseudo-change: training pairs made from single images, to learn what is *no* change, and what is, from few labels.

Two views of one crop, shifted by up to two pixels, one of them hazy or blurred, are a pair without change. Into it go
regions: pieces of another image, plain or textured polygons, houses with shadows. A region in one date alone, or with
another content in each, is a change; the same in both dates is none, so that borders of pasting give nothing away.

Shapes: images uint8 (S, S, 3) RGB 0..255, masks uint8 (S, S) of 0 and 1. Every draw comes from the given generator.
Source: after Zheng et al., "Change is Everywhere: Single-Temporal Supervised Object Change Detection", ICCV 2021, and
Dwibedi et al., "Cut, Paste and Learn", ICCV 2017; written from the idea.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from change.common.images import Image

SHIFT = 2.0  # pixels between the dates, at most
SMALLEST = 5.0  # side of a region in pixels; the largest is half the crop
Field = NDArray[np.float32]


@dataclass(frozen=True)
class PseudoShare:
    """The share of samples that are pseudo-changes: `start` in the first epoch, falling evenly to 0 after `epochs`."""

    start: float = 0.0
    epochs: int = 1

    def at(self, epoch: int) -> float:
        """The share in the epoch that follows `epoch` finished ones."""
        return self.start * max(0.0, 1 - epoch / self.epochs)


NO_PSEUDO = PseudoShare()


def pseudo_pair(image: Image, donor: Image, rng: np.random.Generator) -> tuple[Image, Image, Image]:
    """A pair and its mask from a crop and, for what is pasted, another one, (S, S, 3) each."""
    side = len(image)
    dates = [image.astype(np.float32), image.astype(np.float32)]
    mask = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(0, 7)):
        size = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(side / 2))))
        centre = rng.uniform(0, side, 2)
        house = size < side / 6 and rng.random() < 0.5
        outline = rectangle(centre, size, rng) if house else polygon(centre, size, rng)
        region = filled(outline, side)
        contents = [content(image, donor, region, house, rng) for _ in range(2)]
        both = rng.random()
        if both < 0.35:  # the same in both dates: no change
            pasted = [(0, contents[0]), (1, contents[0])]
        elif both < 0.55:  # another in each
            pasted = [(0, contents[0]), (1, contents[1])]
        else:
            pasted = [(int(rng.integers(2)), contents[0])]
        soft = cv2.GaussianBlur(region, (0, 0), rng.uniform(0.4, 1.2))[..., None]
        for date, what in pasted:
            if house:
                shadow = filled(outline + rng.uniform(-0.3, 0.3, 2) * size, side)[..., None]
                dates[date] *= 1 - np.float32(0.5) * shadow
            dates[date] += soft * (what - dates[date])
        inside = region > 0.5
        mask[inside] = both >= 0.35
    second = int(rng.integers(2))
    dates[second] = displaced(dates[second], rng)
    if rng.random() < 0.4:
        date = int(rng.integers(2))
        dates[date] = hazy(dates[date], rng)
    if rng.random() < 0.3:
        date = int(rng.integers(2))
        dates[date] = np.asarray(cv2.GaussianBlur(dates[date], (0, 0), rng.uniform(0.4, 1.2)), np.float32)
    before, after = (np.clip(np.rint(date), 0, 255).astype(np.uint8) for date in dates)
    return before, after, mask


def polygon(centre: NDArray[np.float64], size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The corners (N, 2), x and y, of an irregular region about `size` wide: a stretched star of 3 to 9 corners."""
    corners = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    around = rng.uniform(0.5, 1, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    outline: NDArray[np.float64] = centre + turned(around * (1, rng.uniform(0.3, 1)), rng) * size / 1.5
    return outline


def rectangle(centre: NDArray[np.float64], size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The corners (4, 2) of a rectangle, `size` long."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, rng.uniform(0.4, 1))
    outline: NDArray[np.float64] = centre + turned(corners, rng) * size / 2
    return outline


def turned(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Points (N, 2), turned about the origin by any angle."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(points @ np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))]))


def filled(outline: NDArray[np.float64], side: int) -> Field:
    """A polygon as a field (S, S) of 0 and 1."""
    field = np.zeros((side, side), np.uint8)
    cv2.fillPoly(field, [np.rint(outline).astype(np.int32)], (1,))
    return field.astype(np.float32)


def content(image: Image, donor: Image, region: Field, house: bool, rng: np.random.Generator) -> Field:
    """What a region is filled with, (S, S, 3): the donor there, in part with the image's colours, or paint with the
    donor's texture."""
    theirs = donor.astype(np.float32)
    theirs = np.roll(theirs, tuple(rng.integers(0, len(image), 2)), (0, 1))
    inside = region.astype(np.uint8)
    if not house and rng.random() < 0.7:
        own, mean = (np.array(cv2.mean(i, inside)[:3], np.float32) for i in (image, theirs))
        return np.asarray(theirs + np.float32(rng.uniform(0, 0.8)) * (own - mean))
    texture = theirs - np.asarray(cv2.blur(theirs, (9, 9)), np.float32)
    paint = rng.uniform(30, 235) + rng.normal(0, 20, 3)
    return np.asarray(texture * np.float32(rng.uniform(0, 0.7)) + paint.astype(np.float32))


def displaced(image: Field, rng: np.random.Generator) -> Field:
    """Shifted by up to `SHIFT` pixels each way, between pixels too."""
    (x, y), (height, width) = rng.uniform(-SHIFT, SHIFT, 2), image.shape[:2]
    matrix = np.array([(1, 0, x), (0, 1, y)])
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT), np.float32)


def hazy(image: Field, rng: np.random.Generator) -> Field:
    """Behind haze of uneven density."""
    height, width = image.shape[:2]
    coarse = rng.uniform(0, 0.5, (4, 4)).astype(np.float32)
    density = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)[..., None]
    return np.asarray(image + density.clip(0, 1) * (np.float32(rng.uniform(170, 240)) - image))
