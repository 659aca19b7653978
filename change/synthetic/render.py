"""Synthetic aerial scenes at two dates, with masks: `python -m change samples OUT --count 3 --size 1024 --seed 0`.

A scene is an invented piece of country (`change.synthetic.builder`), seen at two dates with different sun, season,
haze, exposure, focus and viewing angle, and a slight misregistration. The mask marks the roofs of buildings that exist
at only one date, with `--direction` as two classes, new and vanished. All other differences stay unmarked: crops, cars,
trees, paint, paved ground, shadows. The scenes are for tests and demonstrations. Scores on them say nothing about real
imagery.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from tqdm import tqdm

from change.common import classes
from change.common.errors import OneLineParser, UserError
from change.common.files import write_folder
from change.common.logs import start_logging
from change.common.pictures import mask_picture, save_classes, save_png
from change.synthetic.builder import Builder
from change.synthetic.canvas import Canvas, Crowns, Field, draw_look, draw_second_look, expose, noise
from change.synthetic.world import GONE, NEW, Building, Colour, Points, Rectangle, Tree, World, tint

log = logging.getLogger(__name__)

# Two colours of each material, which are mixed in patches: in the wet season and in the dry season.
MATERIALS: dict[str, tuple[tuple[Colour, Colour], tuple[Colour, Colour]]] = {
    "grass": (((0.34, 0.40, 0.23), (0.43, 0.44, 0.29)), ((0.53, 0.48, 0.36), (0.60, 0.54, 0.41))),
    "suburb": (((0.32, 0.39, 0.22), (0.42, 0.43, 0.29)), ((0.47, 0.44, 0.33), (0.56, 0.50, 0.39))),
    "industry": (((0.50, 0.49, 0.45), (0.60, 0.57, 0.51)), ((0.52, 0.50, 0.46), (0.63, 0.58, 0.51))),
    "forest": (((0.24, 0.29, 0.17), (0.33, 0.34, 0.22)), ((0.40, 0.36, 0.28), (0.47, 0.41, 0.33))),
    "scrub": (((0.35, 0.38, 0.24), (0.49, 0.45, 0.34)), ((0.47, 0.42, 0.33), (0.58, 0.50, 0.41))),
    "soil": (((0.62, 0.53, 0.41), (0.73, 0.64, 0.52)), ((0.66, 0.56, 0.44), (0.76, 0.67, 0.56))),
    "crop": (((0.25, 0.36, 0.17), (0.34, 0.42, 0.22)), ((0.40, 0.42, 0.26), (0.48, 0.46, 0.30))),
    "ripe": (((0.62, 0.55, 0.36), (0.69, 0.61, 0.42)), ((0.66, 0.58, 0.41), (0.72, 0.64, 0.47))),
    "ploughed": (((0.36, 0.30, 0.24), (0.45, 0.37, 0.30)), ((0.45, 0.37, 0.30), (0.53, 0.45, 0.37))),
    "water": (((0.16, 0.22, 0.20), (0.19, 0.26, 0.23)), ((0.21, 0.25, 0.22), (0.25, 0.29, 0.25))),
    "asphalt": (((0.36, 0.36, 0.36), (0.41, 0.41, 0.40)), ((0.39, 0.38, 0.38), (0.44, 0.43, 0.42))),
    "worn": (((0.52, 0.51, 0.49), (0.57, 0.56, 0.53)), ((0.54, 0.52, 0.50), (0.59, 0.57, 0.54))),
    "concrete": (((0.67, 0.65, 0.61), (0.72, 0.70, 0.66)), ((0.68, 0.66, 0.62), (0.74, 0.71, 0.67))),
    "dirt": (((0.62, 0.54, 0.43), (0.68, 0.60, 0.49)), ((0.66, 0.57, 0.46), (0.72, 0.64, 0.53))),
}
# The darkest and the brightest leaves: in the wet season and in the dry season.
LEAVES: tuple[tuple[Colour, Colour], tuple[Colour, Colour]] = (
    ((0.20, 0.27, 0.15), (0.36, 0.42, 0.23)),
    ((0.26, 0.28, 0.19), (0.50, 0.43, 0.33)),
)


def draw_ground(canvas: Canvas, world: World, date: int, rng: np.random.Generator, shared: np.random.Generator) -> None:
    """Draw districts, fields, roads and everything flat. `shared` is the generator of draws that both dates share."""
    height, width = canvas.light.shape
    scale = canvas.scale
    other = canvas.albedo.copy()
    stripes = np.zeros((height, width), np.float32)
    strips = [(road.line, road.width, road.material) for road in world.roads if road.dates[date]]
    areas: list[tuple[Points, str, float | None]] = [(g.outline, g.materials[date], g.rows) for g in world.ground]
    areas += [(strip(line, wide), material, None) for line, wide, material in strips]
    for outline, material, angle in areas:
        draw_area(canvas, other, stripes, canvas.pixels(outline), material, angle, rng)
    patchy = noise(height, width, 30 * scale, 4, shared) + 0.6 * noise(height, width, 25 * scale, 5, rng)
    mix = 1 / (1 + np.exp(-2.2 * patchy))
    canvas.albedo += mix[..., None] * (other - canvas.albedo)
    rough = 0.07 * noise(height, width, 3 * scale, 4, shared) + 0.06 * noise(height, width, 2.5 * scale, 3, rng)
    canvas.albedo *= (1 + rough + stripes)[..., None]
    for line, wide, material in strips:
        if material == "asphalt" and wide > 9:
            canvas.fill(canvas.pixels(strip(line, 0.35)), (0.72, 0.68, 0.5))
    for patch in world.patches:
        if patch.dates[date] and not patch.height:
            canvas.fill(canvas.pixels(patch.shape.corners()), patch.colour)


def draw_area(
    canvas: Canvas,
    other: Field,
    stripes: Field,
    outline: Points,
    material: str,
    angle: float | None,
    rng: np.random.Generator,
) -> None:
    """Lay one material over an area.

    Args:
        canvas: Gets the material's first colour.
        other: Gets its second colour, (H, W, 3).
        stripes: Gets the rows of a field, (H, W), as changes of brightness.
        outline: The area in pixels.
        material: One of MATERIALS.
        angle: The angle of a field's rows in radians; None for other areas.
        rng: Source of all random numbers.
    """
    covered = canvas.cover(outline)
    if covered is None:
        return
    place, alpha = covered
    wet, dry = MATERIALS[material]
    tone = 1 + rng.normal(0, 0.09)
    for target, start, end in zip((canvas.albedo, other), wet, dry, strict=True):
        season = np.clip(canvas.look.dry + rng.normal(0, 0.15), 0, 1)
        colour = tone * ((1 - season) * np.array(start) + season * np.array(end))
        target[place] += alpha[..., None] * (colour.astype(np.float32) - target[place])
    amount = 0.0 if angle is None or material not in ("crop", "ripe", "ploughed") else rng.uniform(0.02, 0.1)
    wave = 2 * np.pi / (canvas.scale * rng.uniform(1.2, 4.0))
    rows, columns = (part.astype(np.float32) for part in np.mgrid[place])
    phase = (columns * np.cos(angle or 0) + rows * np.sin(angle or 0)) * np.float32(wave)
    stripes[place] += alpha * (np.float32(amount) * np.sin(phase) - stripes[place])


def strip(line: Points, width: float) -> Points:
    """Return the outline of a band of `width` around a line."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([line + across * width / 2, (line - across * width / 2)[::-1]])


def draw_building(canvas: Canvas, building: Building, date: int, rng: np.random.Generator) -> None:
    """Draw the walls that the viewing angle shows, and then the roofs."""
    colour = building.colours[date]
    for wing in building.wings:
        hull = np.concatenate([canvas.pixels(wing.corners()), canvas.pixels(wing.corners(), building.height)])
        wall = cv2.convexHull(hull.astype(np.float32))[:, 0].astype(float)
        canvas.fill(wall, (0.62, 0.58, 0.52), canvas.look.ambient)
    for wing in building.wings:
        draw_roof(canvas, wing, building, colour, rng)


def draw_roof(canvas: Canvas, wing: Rectangle, building: Building, colour: Colour, rng: np.random.Generator) -> None:
    """Draw the roof of a wing."""
    if building.roof == "flat":
        draw_flat_roof(canvas, wing, building.height, colour, rng)
    else:
        draw_pitched_roof(canvas, wing, building, colour)


def draw_flat_roof(canvas: Canvas, wing: Rectangle, eaves: float, colour: Colour, rng: np.random.Generator) -> None:
    """Draw a flat roof with a rim, and machines that cast shadows. `eaves` is their height in metres."""
    canvas.fill(canvas.pixels(wing.corners(), eaves), tint(colour, rng, 0.05), 1.0)
    inner = Rectangle(wing.centre, wing.angle, wing.half_length - 0.5, wing.half_width - 0.5)
    canvas.fill(canvas.pixels(inner.corners(), eaves), colour, 1.0)
    for _ in range(rng.poisson(wing.half_length * wing.half_width / 120)):
        spot = inner.at(rng.uniform(-0.85, 0.85, 2))
        machine = Rectangle(spot, wing.angle, rng.uniform(0.7, 2.2), rng.uniform(0.7, 1.5))
        shadow = machine.corners() - canvas.look.sun[:2] * 1.2
        canvas.fill(canvas.pixels(shadow, eaves), colour, canvas.look.ambient)
        canvas.fill(canvas.pixels(machine.corners(), eaves + 1), tint((0.6, 0.6, 0.6), rng, 0.1), 1.0)


def draw_pitched_roof(canvas: Canvas, wing: Rectangle, building: Building, colour: Colour) -> None:
    """Draw a hip or gable roof: sloping planes, each lit by the sun."""
    eaves, pitch = building.height, 0.45
    inset = 1.0 - min(1.0, wing.half_width / wing.half_length) if building.roof == "hip" else 1.0
    top = eaves + wing.half_width * np.tan(pitch)
    ridge = canvas.pixels(wing.at([[-inset, 0], [inset, 0]]), top)
    corners = canvas.pixels(wing.corners(), eaves)
    long = np.array([np.cos(wing.angle), np.sin(wing.angle)])
    wide = np.array([-long[1], long[0]])
    planes = [
        (np.stack([corners[0], corners[1], ridge[1], ridge[0]]), -wide),
        (np.stack([corners[2], corners[3], ridge[0], ridge[1]]), wide),
    ]
    if building.roof == "hip":
        planes += [
            (np.stack([corners[1], corners[2], ridge[1]]), long),
            (np.stack([corners[3], corners[0], ridge[0]]), -long),
        ]
    canvas.fill(corners, colour, 0.8)  # so that no gaps show between the planes
    for plane, direction in planes:
        canvas.fill(plane, colour, canvas.slope_light(direction, pitch))


def draw_tree(canvas: Canvas, tree: Tree, crowns: Crowns) -> None:
    """Draw one tree's crown."""
    centre = canvas.pixels(tree.place, tree.radius)
    side = max(3, round(2 * tree.radius * canvas.scale))
    left, top = (np.round(centre - side / 2)).astype(int)
    height, width = canvas.light.shape
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 >= x1 or y0 >= y1:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    form = tree.shape % len(crowns.cover)
    how = cv2.INTER_AREA if side < Crowns.SIZE else cv2.INTER_LINEAR
    alpha = cv2.resize(crowns.cover[form], (side, side), interpolation=how)[part]
    light = cv2.resize(crowns.light[form], (side, side), interpolation=how)[part]
    dry = canvas.look.dry * (tree.tone > 0.45)  # the others are evergreen
    dark, bright = (np.array(wet) * (1 - dry) + np.array(end) * dry for wet, end in zip(*LEAVES, strict=True))
    colour = dark + tree.tone * (bright - dark)
    alpha = alpha * np.float32(1 - 0.35 * dry)
    place = (slice(y0, y1), slice(x0, x1))
    canvas.albedo[place] += alpha[..., None] * (colour.astype(np.float32) - canvas.albedo[place])
    canvas.light[place] += alpha * (light - canvas.light[place])


def draw_date(world: World, date: int, canvas: Canvas, rng: np.random.Generator, shared: np.random.Generator) -> None:
    """Draw everything that is there at a date, from the ground up."""
    draw_ground(canvas, world, date, rng, shared)
    buildings = [b for b in world.buildings if b.dates[date]]
    trees = clear_of([t for t in world.trees if t.dates[date]], buildings)
    cars = [p for p in world.patches if p.dates[date] and p.height]
    octagon = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
    for tree in trees:
        canvas.shade([tree.place + 0.8 * tree.radius * octagon], 1.6 * tree.radius)
    for building in buildings:
        canvas.shade([wing.corners() for wing in building.wings], building.height + 0.8)
    for car in cars:
        canvas.shade([car.shape.corners()], car.height)
        canvas.fill(canvas.pixels(car.shape.corners()), car.colour)
    for building in sorted(buildings, key=lambda b: b.height):
        draw_building(canvas, building, date, rng)
    crowns = Crowns(canvas.look)
    for tree in sorted(trees, key=lambda t: t.radius):
        draw_tree(canvas, tree, crowns)


def clear_of(trees: list[Tree], buildings: list[Building]) -> list[Tree]:
    """Return the trees that do not overlap a building."""
    if not trees or not buildings:
        return trees
    mains = [building.wings[0] for building in buildings]
    centres, halves = np.stack([main.centre for main in mains]), np.array([main.half_width for main in mains])
    return [t for t in trees if (np.hypot(*(centres - t.place).T) > 0.8 * t.radius + halves).all()]


def draw_mask(world: World, canvases: Sequence[Canvas]) -> NDArray[np.uint8]:
    """Draw the mask: roofs of buildings that exist at only one date, as they appear at it.

    Returns:
        uint8 (H, W): `classes.NEW` where a building appears, `classes.VANISHED` where one only vanishes, else 0.
    """
    mask = np.zeros(canvases[0].light.shape, np.uint8)
    for dates, value in ((GONE, classes.VANISHED), (NEW, classes.NEW)):
        canvas = canvases[dates.index(True)]
        for building in world.buildings:
            for wing in building.wings if building.dates == dates else ():
                covered = canvas.cover(canvas.pixels(wing.corners(), building.height))
                if covered is not None:
                    place, alpha = covered
                    mask[place][alpha > 0.5] = value
    return mask


def draw_scene(height: int, width: int, seed: Sequence[int], direction: bool = False) -> tuple[NDArray[np.uint8], ...]:
    """Draw a scene in which at least one building changes. The same `seed` gives the same scene.

    Args:
        height: Height in pixels of 0.4 to 0.7 metres.
        width: Width in pixels.
        seed: Numbers that seed all random draws.
        direction: Whether the mask tells new from vanished, as `draw_mask` does.

    Returns:
        Before and after, uint8 RGB (H, W, 3), and the mask, uint8 (H, W) of 0 and 1, or directions.
    """
    layout, shared, first, second = (np.random.default_rng([*seed, part]) for part in range(4))
    scale = 1 / layout.uniform(0.4, 0.7)
    world = Builder(width / scale, height / scale, layout).build()
    texture = int(shared.integers(2**31))
    before = draw_look(first)
    canvases = [Canvas(height, width, scale, look) for look in (before, draw_second_look(before, second))]
    for date, (canvas, rng) in enumerate(zip(canvases, (first, second), strict=True)):
        draw_date(world, date, canvas, rng, np.random.default_rng(texture))
    pictures = [expose(canvas, rng) for canvas, rng in zip(canvases, (first, second), strict=True)]
    mask = draw_mask(world, canvases)
    return pictures[0], pictures[1], mask if direction else (mask > 0).astype(np.uint8)


def write_samples(folder: Path, count: int, size: int, seed: int, direction: bool = False) -> None:
    """Write `count` square scenes of `size` pixels as folder/{A,B}/SEED_0000.jpg and folder/label/SEED_0000.png.

    Masks hold 0 and 255, with `direction` the values of the classes in folder/classes.txt. The folder is written
    completely or not at all. Raises UserError if it exists and is not empty.
    """

    def write(aside: Path) -> None:
        for sub in ("A", "B", "label"):
            (aside / sub).mkdir()
        if direction:
            classes.write_classes(aside, classes.parse_classes(classes.DIRECTIONS))
        for index in tqdm(range(count), desc=str(folder), unit="scene", disable=None):
            before, after, mask = draw_scene(size, size, (seed, index), direction)
            for sub, picture in (("A", before), ("B", after)):
                PIL.Image.fromarray(picture).save(aside / sub / f"{seed}_{index:04d}.jpg", quality=90, subsampling=0)
            label = aside / "label" / f"{seed}_{index:04d}.png"
            if direction:
                save_classes(mask, label)
            else:
                save_png(mask_picture(mask > 0), label)
        refuse_existing(folder)

    refuse_existing(folder)
    write_folder(folder, write)


def refuse_existing(folder: Path) -> None:
    """Raise UserError if `folder` exists, unless it is an empty folder, which may be replaced."""
    if not folder.name:
        raise UserError(f"OUT {folder}: choose a folder of its own")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists: choose another folder, or remove it")


def main(arguments: Sequence[str]) -> int:
    """Run `python -m change samples`; return the exit code."""
    parser = OneLineParser(prog="python -m change samples", description="Draw synthetic scenes with masks.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create, for A, B and label")
    parser.add_argument("--count", type=int, default=3, help="number of scenes (default: 3)")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--direction", action="store_true", help=f"masks with the classes {classes.DIRECTIONS}")
    given = parser.parse_args(arguments)
    for name, least in (("count", 1), ("size", 64), ("seed", 0)):
        if getattr(given, name) < least:
            raise UserError(f"--{name} {getattr(given, name)}: choose {least} or more")
    refuse_existing(given.out)
    start_logging()
    log.info("drawing %d scenes of %d x %d pixels", given.count, given.size, given.size)
    write_samples(given.out, given.count, given.size, given.seed, given.direction)
    log.info("written to %s", given.out)
    return 0
