"""Small pairs whose masks have three classes: houses that are new, houses that vanished, and roofs of a new colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from change.checkpoint import Checkpoint
from change.common.classes import CLASSES, parse_classes
from change.synthetic.canvas import Canvas, draw_look
from change.synthetic.render import draw_building
from change.synthetic.world import BOTH, GONE, NEW, Building, Colour, Dates, Rectangle, tint
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import SMALL

LINES = "new <-> vanished, recoloured"
CLASSES_OF_PAIRS = parse_classes(LINES.split(","))
VALUES: dict[Dates, int] = {NEW: 1, GONE: 2}
RECOLOURED = 3
GREY: Colour = (0.75, 0.74, 0.72)
RED: Colour = (0.62, 0.2, 0.15)
SCALE = 2.0  # pixels per metre


class ClassPair(NamedTuple):
    """Before and after, uint8 RGB (H, W, 3), and a mask (H, W) of class values."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def draw_class_pair(rng: np.random.Generator, height: int = 64, width: int = 64) -> ClassPair:
    """Draw houses on a lawn, one in each quarter: new, vanished, recoloured or unchanged."""
    look = draw_look(rng)
    canvases = [Canvas(height, width, SCALE, look) for _ in range(2)]
    for canvas in canvases:
        canvas.albedo[:] = (0.30, 0.40, 0.20)
        canvas.albedo *= (1 + rng.normal(0, 0.05, (height, width, 1))).astype(np.float32)
    mask = np.zeros((height, width), np.uint8)
    kinds = rng.permutation(4)
    for quarter, kind in enumerate(kinds):
        centre = np.array([width * (0.25 + 0.5 * (quarter % 2)), height * (0.25 + 0.5 * (quarter // 2))]) / SCALE
        shape = Rectangle(centre + rng.uniform(-1, 1, 2), 0.0, rng.uniform(4.5, 6), rng.uniform(3.5, 4.5))
        dates = {0: NEW, 1: GONE}.get(int(kind), BOTH)
        first = GREY if rng.random() < 0.5 else RED
        second = (RED if first == GREY else GREY) if kind == 2 else first
        house = Building((shape,), 1.0, "flat", (tint(first, rng, 0.02), tint(second, rng, 0.02)), dates)
        for date, canvas in enumerate(canvases):
            if dates[date]:
                draw_building(canvas, house, date, rng)
        value = VALUES.get(dates, RECOLOURED if kind == 2 else 0)
        covered = canvases[1].cover(canvases[1].pixels(shape.corners(), house.height))
        if value and covered is not None:
            place, alpha = covered
            mask[place][alpha > 0.5] = value
    before, after = (np.clip(255 * canvas.albedo * 1.1, 0, 255).astype(np.uint8) for canvas in canvases)
    return ClassPair(before, after, mask)


def write_class_pairs(folder: Path, count: int, seed: int = 0, height: int = 64, width: int = 64) -> Path:
    """Write `count` pairs as PNG into folder/{A,B,label}/0.png, 1.png, ..."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        pair = draw_class_pair(rng, height, width)
        for sub, picture in zip(("A", "B", "label"), pair, strict=True):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(picture).save(folder / sub / f"{index}.png")
    return folder


def write_class_set(folder: Path, train: int = 4, val: int = 2) -> Path:
    """Write a data set with classes.txt, train and val."""
    write_class_pairs(folder / "train", train, seed=1)
    write_class_pairs(folder / "val", val, seed=2)
    (folder / CLASSES).write_text("\n".join(LINES.split(",")) + "\n")
    return folder


def write_class_checkpoint(path: Path, **values: Any) -> Path:
    """Write a checkpoint of random weights that tells the three classes apart, and finds some of them.

    `values`: those of `NetworkConfig`; `SMALL` if there are none.
    """
    torch.manual_seed(0)
    config = NetworkConfig(**(values or SMALL), classes=3)
    network = build_network(config)
    network.head.start_at_shares([0.4, 0.2, 0.2, 0.2])
    path.parent.mkdir(parents=True, exist_ok=True)
    Checkpoint(config, network.state_dict(), classes=CLASSES_OF_PAIRS).save(path)
    return path
