"""Invent the world of a synthetic scene.

A plane is divided along a rotated, bent street grid into districts (suburb, industry, forest, scrub, fields, grass,
bare soil, water). Suburbs are divided further into blocks, and blocks into lots with one house each. Between the dates
some districts are built on or cleared, and single houses appear and vanish. Many other things change too: crops, cars,
paint, pools, paved ground, trees.

Points of the grid, and boxes (x0, y0, x1, y1) on it, are in metres in the frame of the street grid; `Builder.place`
moves them to the scene. Do not change the order of the random draws: a seed would then give other scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from change.synthetic.world import (
    BOTH,
    BUILT_ON,
    EARTH,
    FLAT_ROOFS,
    GONE,
    NEW,
    PAINTS,
    PAVED,
    POOL,
    ROOFS,
    SLAB,
    STABLE,
    TREES,
    Building,
    Dates,
    District,
    Ground,
    Patch,
    Points,
    Rectangle,
    Road,
    Tree,
    World,
    one_date,
    tint,
)

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 on the grid

MARGIN = 25.0  # metres around the view; things in this margin may cast shadows into it


class Style(NamedTuple):
    """Common properties of the houses of a suburb.

    Attributes:
        lot: The width of a lot in metres.
        size: A factor for the size of the houses.
        alike: Whether all roofs have similar colours.
    """

    lot: float
    size: float
    alike: bool


class Builder:
    """Invents a `World` of `width` x `height` metres from a random generator."""

    def __init__(self, width: float, height: float, rng: np.random.Generator) -> None:
        self.rng, self.world, self.size = rng, World(), np.array([width, height])
        self.angle = rng.uniform(0, np.pi)
        self.bends = rng.uniform(-1, 1, (3, 2)) * (14, 14)  # amplitudes of three waves, in metres
        self.waves = rng.normal(0, 1 / 420, (3, 2)) * 2 * np.pi
        self.turnover = float(rng.choice([0.02, 0.08, 0.2]))  # share of single houses that appear or vanish
        self.growth = rng.uniform(0.35, 0.85)  # share of districts that are built on
        self.roofs = [ROOFS[i] for i in rng.choice(len(ROOFS), 4, replace=False)]
        self.street = str(rng.choice(["asphalt", "concrete", "worn"]))

    def build(self) -> World:
        """Divide and fill the plane, then make sure that at least one building in view changes."""
        reach = 0.6 * float(np.hypot(*self.size)) + MARGIN
        self.divide((-reach, -reach, reach, reach))
        self.traffic()
        world, rng = self.world, self.rng
        in_view = [i for i, b in enumerate(world.buildings) if self.inside(b.wings[0].centre, 0.0)]
        if all(world.buildings[i].dates == BOTH for i in in_view):
            if in_view:
                chosen = int(rng.choice(in_view))
                world.buildings[chosen] = replace(world.buildings[chosen], dates=NEW)
            else:
                self.house(rng.uniform(0.3, 0.7, 2) * self.size, self.angle, NEW)
        return world

    def place(self, points: object) -> Points:
        """Move points from the grid to the scene: turned, shifted and bent."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = np.asarray(points, float) @ np.array([[cos, sin], [-sin, cos]]) + self.size / 2
        return np.asarray(turned + np.sin(turned @ self.waves.T) @ self.bends)

    def direction(self, point: Points) -> float:
        """Return the angle of the grid's first axis at a point of the grid, in radians."""
        step = self.place(point + np.array([1.0, 0.0])) - self.place(point)
        return float(np.arctan2(step[1], step[0]))

    def inside(self, point: Points, margin: float = MARGIN) -> bool:
        """Return whether a point of the scene is in view, or at most `margin` metres outside it."""
        return bool((point > -margin).all() and (point < self.size + margin).all())

    def pick(self, weights: Mapping[str, float]) -> str:
        """Draw one of the keys with a probability proportional to its weight."""
        shares = np.array([*weights.values()])
        return str(self.rng.choice([*weights], p=shares / shares.sum()))

    def turn_over(self, dates: Dates) -> Dates:
        """Let some of the buildings that stand at both dates appear or vanish."""
        if dates == BOTH and self.rng.random() < self.turnover:
            return NEW if self.rng.random() < 0.85 else GONE
        return dates

    # --- areas -----------------------------------------------------------------------------------------------------

    def divide(self, box: Box) -> None:
        """Halve an area by roads until it has the size of a district."""
        rng = self.rng
        if max(box[2] - box[0], box[3] - box[1]) < rng.uniform(170, 420):
            self.district(box)
            return
        first, second, road = self.halve(box, rng.uniform(0.35, 0.65))
        self.divide(first)
        self.divide(second)
        material = str(rng.choice(["asphalt", "worn", "dirt"], p=[0.5, 0.25, 0.25]))
        width = rng.uniform(5, 8) if material == "dirt" else rng.uniform(8, 15)
        self.road(road, width, material, BOTH)

    def halve(self, box: Box, share: float) -> tuple[Box, Box, Points]:
        """Cut a box across its longer side; return both parts and the line of the cut."""
        x0, y0, x1, y1 = box
        if x1 - x0 > y1 - y0:
            x = x0 + share * (x1 - x0)
            return (x0, y0, x, y1), (x, y0, x1, y1), np.array([[x, y0], [x, y1]])
        y = y0 + share * (y1 - y0)
        return (x0, y0, x1, y), (x0, y, x1, y1), np.array([[x0, y], [x1, y]])

    def road(self, line: Points, width: float, material: str, dates: Dates) -> None:
        """Add a road along a line of the grid."""
        points = self.place(np.linspace(line[0], line[1], 24))
        if any(self.inside(point) for point in points):
            self.world.roads.append(Road(points, width, material, dates))

    def outline(self, box: Box) -> Points:
        """Return the outline of a box in the scene, as a bent polygon."""
        x0, y0, x1, y1 = box
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        return self.place(np.concatenate([np.linspace(a, b, 12) for a, b in pairwise(corners)]))

    def district(self, box: Box) -> None:
        """Draw what an area is used for, and fill it."""
        rng = self.rng
        if rng.random() < self.growth:
            before = self.pick(BUILT_ON)
            after = "suburb" if rng.random() < 0.8 else "industry"
            use = District(before, after, streets=rng.random() < 0.35)
        else:
            kind = self.pick(STABLE)
            use = District(kind, kind)
            if kind in ("suburb", "industry") and rng.random() < 0.06:
                use = District(kind, "soil")
            elif kind in ("forest", "scrub", "grass") and rng.random() < 0.15:
                use = District(kind, "soil")  # cleared, and nothing built yet
        built = next((kind for kind in (use.after, use.before) if kind in ("suburb", "industry")), None)
        if built == "suburb":
            self.blocks(box, use)
        else:
            self.cover(box, use)
            if built:
                self.industry(box, use.dates())

    def cover(self, box: Box, use: District) -> None:
        """Add the ground of an area, its trees, and patches that are paved or laid bare at one date."""
        rng = self.rng
        cuts = 0
        while use.before == use.after == "field" and min(box[2] - box[0], box[3] - box[1]) > 90 and cuts < 3:
            part, box, _ = self.halve(box, rng.uniform(0.3, 0.6))
            self.field(part, use)
            cuts += 1
        if "field" in (use.before, use.after):
            self.field(box, use)
        else:
            self.world.ground.append(Ground(self.outline(box), (use.before, use.after)))
        area = (box[2] - box[0]) * (box[3] - box[1])
        for kind, dates in ((use.before, GONE), (use.after, NEW)):
            if kind in TREES and (use.before != use.after or dates == NEW):
                self.trees(box, rng.poisson(TREES[kind] * area), BOTH if use.before == use.after else dates, kind)
        for _ in range(rng.poisson(area / 30000)):  # paved or bare ground without a building
            point, sides = rng.uniform(box[:2], box[2:]), rng.uniform(5, 22, 2)
            self.patch(point, sides, rng.choice([*PAVED, EARTH]), one_date(rng))

    def field(self, box: Box, use: District) -> None:
        """Add a field with rows. Its crop is drawn separately for each date."""
        crops = ("crop", "ripe", "ploughed", "grass")
        materials = [str(self.rng.choice(crops)) if kind == "field" else kind for kind in (use.before, use.after)]
        self.world.ground.append(Ground(self.outline(box), (materials[0], materials[1]), self.rng.uniform(0, np.pi)))

    def trees(self, box: Box, count: int, dates: Dates, kind: str) -> None:
        """Scatter trees, in clumps for scrub. About 3% are felled or planted between the dates."""
        rng = self.rng
        places = self.place(rng.uniform(box[:2], box[2:], (count, 2)))
        large = rng.uniform(1.8, 3.4) if kind in ("forest", "scrub") else rng.uniform(1.6, 2.6)
        clumps = np.sin(places @ rng.normal(0, 0.09, (2, 3))).sum(1) if kind == "scrub" else np.full(count, 3.0)
        for place, clump in zip(places, clumps, strict=True):
            if self.inside(place, 10) and clump > 0.4 + 0.4 * rng.normal():
                there = one_date(rng) if dates == BOTH and rng.random() < 0.03 else dates
                radius = large * float(rng.lognormal(0, 0.35))
                self.world.trees.append(Tree(place, radius, int(rng.integers(1000)), float(rng.random()), there))

    def blocks(self, box: Box, use: District) -> None:
        """Add a suburb: blocks of two rows of lots, between streets."""
        rng = self.rng
        self.cover(box, use)
        dates = use.dates()
        streets: Dates = (dates[0] or use.streets, True) if dates[1] else BOTH
        style = Style(lot=rng.uniform(15, 24), size=rng.uniform(0.85, 1.25), alike=rng.random() < 0.25)
        depth, length = rng.uniform(52, 76), rng.uniform(90, 220)
        todo = [box]
        while todo:
            x0, y0, x1, y1 = part = todo.pop()
            short, long = sorted((x1 - x0, y1 - y0))
            if long > length or short > 1.5 * depth:
                share = 0.5 if long > 2.5 * depth else 0.5 + rng.uniform(-0.06, 0.06)
                first, second, line = self.halve(part, share)
                todo += [first, second]
                self.road(line, rng.uniform(7.5, 9.5), self.street, streets)
            else:
                self.lots(part, dates, style)

    def lots(self, box: Box, dates: Dates, style: Style) -> None:
        """Add houses along the two long sides of a block."""
        rng, lot = self.rng, style.lot
        x0, y0, x1, y1 = box
        along, across = (0, 1) if x1 - x0 >= y1 - y0 else (1, 0)
        low, high = np.array(box[:2]), np.array(box[2:])
        for side in (-1, 1):
            edge = low[across] if side < 0 else high[across]
            for place in np.arange(low[along] + 6 + lot / 2, high[along] - 6 - lot / 2, lot):
                if rng.random() < 0.07:
                    continue
                point = np.empty(2)
                point[along] = place + rng.normal(0, 0.6)
                point[across] = edge - side * rng.uniform(15, 19)
                centre = self.place(point)
                if not self.inside(centre):
                    continue
                angle = self.direction(point)
                angle += 0 if along == 0 else np.pi / 2
                angle += np.pi if side > 0 else 0
                there = self.turn_over(dates)
                if dates == NEW and rng.random() < 0.06:
                    self.patch_at(centre, angle, rng.uniform(9, 14, 2), SLAB, NEW)  # a foundation, not yet a house
                    continue
                self.lot(centre, angle + rng.normal(0, 0.02), there, min(style.size, lot / 15.5), style.alike)

    def lot(self, centre: Points, angle: float, dates: Dates, size: float, alike: bool) -> None:
        """Add a house and its surroundings: earth, drive, patio, pool, cars."""
        rng = self.rng
        front = np.array([np.sin(angle), -np.cos(angle)])
        side = np.array([np.cos(angle), np.sin(angle)])
        if dates == NEW and rng.random() < 0.4:
            self.patch_at(centre, angle, rng.uniform(12, 18, 2), EARTH, GONE)
            if rng.random() < 0.2:
                self.patch_at(centre, angle, rng.uniform(9, 14, 2), SLAB, GONE)
        if dates == GONE and rng.random() < 0.5:
            self.patch_at(centre, angle, rng.uniform(9, 16, 2), EARTH if rng.random() < 0.6 else SLAB, NEW)
        offset = rng.uniform(2, 5) * (1 if rng.random() < 0.5 else -1)
        drive = Rectangle(centre + front * 10 + side * offset, angle + np.pi / 2, 6, rng.uniform(1.6, 3.2))
        self.world.patches.append(Patch(drive, PAVED[int(rng.integers(2))], dates))
        if rng.random() < 0.3:
            self.patch_at(centre - front * rng.uniform(8, 11), angle, rng.uniform(3, 7, 2), PAVED[0], dates)
        if rng.random() < 0.12:
            pool = centre - front * rng.uniform(11, 14)
            self.patch_at(pool, angle, rng.uniform(3, 7, 2), POOL, NEW if dates[1] else GONE)
        for _ in range(rng.poisson(0.5)):
            self.car(drive.at([rng.uniform(-0.8, 0.8), 0]), drive.angle, one_date(rng))
        self.house(centre, angle, dates, size, alike)

    def house(self, centre: Points, angle: float, dates: Dates, size: float = 1.0, alike: bool = False) -> None:
        """Add a house of one to three wings."""
        rng = self.rng
        length, width = size * rng.uniform(5.4, 8.2), size * rng.uniform(4.2, 6.4)
        main = Rectangle(centre, angle, length, width)
        wings = [main]
        for share in (0.75, 0.35):
            if rng.random() < share:
                along = rng.choice([-1, 1]) * rng.uniform(0.35, 0.65)
                across = rng.choice([-1, 1]) * rng.uniform(0.7, 1.0)
                sides = width * rng.uniform(0.55, 0.9), length * rng.uniform(0.32, 0.5)
                wings.append(Rectangle(main.at([along, across]), angle + np.pi / 2, sides[0], sides[1]))
        roof = str(rng.choice(["hip", "gable", "flat"], p=[0.6, 0.33, 0.07]))
        base = self.roofs[0 if alike else int(rng.integers(len(self.roofs)))]
        colour = tint(base, rng, 0.03)
        painted = tint(ROOFS[int(rng.integers(len(ROOFS)))], rng, 0.03) if rng.random() < 0.08 else colour
        self.world.buildings.append(Building(tuple(wings), rng.uniform(2.8, 6.0), roof, (colour, painted), dates))
        if rng.random() < 0.15:  # a shed
            shed = Rectangle(main.at([rng.uniform(-0.8, 0.8), 2.2]), angle, rng.uniform(1.5, 3), rng.uniform(1.2, 2))
            self.world.buildings.append(Building((shed,), 2.3, "gable", (colour, colour), dates))

    def industry(self, box: Box, dates: Dates) -> None:
        """Add large buildings on paved ground, with parked cars."""
        rng = self.rng
        columns, rows = (max(1, round((box[i + 2] - box[i]) / rng.uniform(75, 130))) for i in (0, 1))
        cell = np.array([(box[2] - box[0]) / columns, (box[3] - box[1]) / rows])
        for column in range(columns):
            for row in range(rows):
                point = np.array(box[:2]) + cell * (column + rng.uniform(0.4, 0.6), row + rng.uniform(0.4, 0.6))
                centre = self.place(point)
                if rng.random() < 0.15 or not self.inside(centre, 60):
                    continue
                self.hall(centre, self.direction(point), cell, dates)

    def hall(self, centre: Points, angle: float, cell: Points, dates: Dates) -> None:
        """Add a large building of one or two wings, the paved ground around it, and parked cars.

        `cell`: length and width in metres of the ground it stands on.
        """
        rng = self.rng
        there = self.turn_over(dates)
        half = cell * rng.uniform(0.18, 0.36, 2)
        paved = PAVED[int(rng.integers(len(PAVED)))]
        self.world.patches.append(Patch(Rectangle(centre, angle, *(cell * 0.45)), paved, dates))
        first = Rectangle(centre, angle, half[0], half[1])
        wings = [first]
        if rng.random() < 0.4:
            place = first.at([rng.uniform(-0.6, 0.6), 1])
            wings.append(Rectangle(place, angle, *(half * rng.uniform(0.3, 0.6))))
        colour = tint(FLAT_ROOFS[int(rng.integers(len(FLAT_ROOFS)))], rng, 0.03)
        painted = tint(FLAT_ROOFS[int(rng.integers(len(FLAT_ROOFS)))], rng, 0.03)
        colours = (colour, painted if rng.random() < 0.12 else colour)
        roof = "flat" if rng.random() < 0.75 else "gable"
        self.world.buildings.append(Building(tuple(wings), rng.uniform(4, 11), roof, colours, there))
        long = np.array([np.cos(angle), np.sin(angle)])
        wide = np.array([-np.sin(angle), np.cos(angle)])
        for _ in range(rng.poisson(10)):
            side = rng.choice([-1, 1])
            spot = centre + long * rng.integers(-12, 13) * 2.7
            spot = spot + wide * side * (half[1] + rng.choice([5.0, 11.0]))
            self.car(spot, angle + np.pi / 2, one_date(rng) if dates == BOTH else dates)

    # --- small things ----------------------------------------------------------------------------------------------

    def patch(self, point: Points, sides: Points, colour: object, dates: Dates) -> None:
        """Add a patch at a point of the grid."""
        self.patch_at(self.place(point), self.direction(point), sides, colour, dates)

    def patch_at(self, centre: Points, angle: float, sides: Points, colour: object, dates: Dates) -> None:
        """Add a patch at a point of the scene."""
        red, green, blue = np.asarray(colour, float)
        shape = Rectangle(centre, angle, float(np.max(sides)) / 2, float(np.min(sides)) / 2)
        self.world.patches.append(Patch(shape, tint((red, green, blue), self.rng, 0.02), dates))

    def car(self, centre: Points, angle: float, dates: Dates) -> None:
        """Add a car, or now and then a lorry."""
        rng = self.rng
        long, wide, high = (6.0, 1.3, 3.2) if rng.random() < 0.06 else (2.2, 0.9, 1.5)
        colour = PAINTS[int(rng.choice(len(PAINTS), p=[0.35, 0.2, 0.25, 0.1, 0.1]))]
        self.world.patches.append(Patch(Rectangle(centre, angle, long, wide), colour, dates, high))

    def traffic(self) -> None:
        """Add cars on the roads, different ones at each date."""
        rng = self.rng
        for road in self.world.roads:
            steps = np.diff(road.line, axis=0)
            for _ in range(rng.poisson(0.012 * np.hypot(*steps.T).sum())):
                i = int(rng.integers(len(steps)))
                angle = float(np.arctan2(steps[i, 1], steps[i, 0]))
                lane = np.array([-np.sin(angle), np.cos(angle)]) * road.width * rng.choice([-0.25, 0.25])
                dates = one_date(rng)
                if all(there or not car for there, car in zip(road.dates, dates, strict=True)):
                    self.car(road.line[i] + rng.random() * steps[i] + lane, angle, dates)
