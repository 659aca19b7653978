"""The bands of images that are not 8-bit RGB: which a network reads, and where they are in a file.

Nothing here needs torch or rasterio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from change.common.errors import UserError, list_names

COLOURS = ("red", "green", "blue")
KINDS = ("uint8", "uint16", "int16", "float32")
MOST = 32  # bands of a network
ALL = "all"
BELOW, ABOVE = 2.0, 3.0  # standard deviations: levels have long tails to the bright side
EXAMPLE = '--bands "green=1 red=2 nir=3"'


class Header(NamedTuple):
    """The bands and the size that a file declares.

    Attributes:
        source: the path of the file, for errors.
        names: the description of each band, in lower case; "" where there is none.
        kinds: the type of each band, such as "uint16".
        size: width and height in pixels.
    """

    source: object
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Bands:
    """The bands that a network reads, in order.

    Attributes:
        names: their names, in lower case, without duplicates.
        numbers: their numbers in the training files, from 1.
        count: the number of bands in these files.
        kind: the type of their levels, one of `KINDS`.
        colours: the positions, from 0, of the bands that are red, green and blue; None for a colour that is missing.

    Raises:
        ValueError: the values contradict each other.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    count: int
    kind: str
    colours: tuple[int | None, int | None, int | None] = (None, None, None)

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) == len(self.numbers) <= MOST or len(set(self.names)) < len(self.names):
            raise ValueError(f"the bands {self.names} with the numbers {self.numbers}")
        if not 1 <= min(self.numbers) <= max(self.numbers) <= self.count or self.kind not in KINDS:
            raise ValueError(f"the numbers {self.numbers} of {self.count} bands of type {self.kind}")
        if len(self.colours) != 3 or any(place not in (None, *range(len(self.names))) for place in self.colours):
            raise ValueError(f"the colours {self.colours}")

    def colour_of_each(self) -> tuple[int | None, ...]:
        """Return for each band 0 for red, 1 for green, 2 for blue, or None."""
        return tuple(self.colours.index(place) if place in self.colours else None for place in range(len(self.names)))

    def shown(self) -> tuple[int, int, int]:
        """Return the positions of the bands that pictures show as red, green and blue.

        They are the colours if there are all three, else the first three bands; the last one is repeated if there are
        fewer.
        """
        red, green, blue = self.colours
        if red is None or green is None or blue is None:
            last = len(self.names) - 1
            return 0, min(1, last), min(2, last)
        return red, green, blue

    def find(self, header: Header, numbers: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the numbers of the bands in a file, from 1.

        They are `numbers` if these are given. Else they are found by name, if the file names all of them. Else they are
        those of training, if the file has as many bands as the training files.

        Raises:
            UserError: the bands cannot be found, or have another type.
        """
        count = len(header.kinds)
        if numbers and len(numbers) != len(self.names):
            raise UserError(
                f"--bands names {len(numbers)} bands, the checkpoint reads {len(self.names)}: {self.described()}"
            )
        found = tuple(numbers)
        if not found and set(self.names) <= set(header.names):
            found = tuple(1 + header.names.index(name) for name in self.names)
        if not found and count == self.count:
            found = self.numbers
        if not found or max(found) > count:
            raise UserError(
                f"{header.source} has {count} band{'s' * (count > 1)}, and this network reads {self.described()}, from "
                f"files of {self.count}: give a file with these bands"
            )
        check_kind(header, found, self.kind)
        return found

    def described(self) -> str:
        """Return the names and the type, as in "5 bands of uint16 (green, red, nir, swir1, swir2)"."""
        return f"{len(self.names)} band{'s' * (len(self.names) > 1)} of {self.kind} ({list_names(self.names, MOST)})"


class Channels(NamedTuple):
    """The bands of a network, with the mean and the standard deviation of each in the units of the files."""

    bands: Bands
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def picture(self, levels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return levels (H, W, C) as RGB (H, W, 3), stretched around the mean of each band."""
        places = list(self.bands.shown())
        return stretch_levels(levels[..., places], np.array(self.mean)[places], np.array(self.std)[places])


def restore_bands(stored: Mapping[str, Any] | None) -> Bands | None:
    """Make bands from the dict of a file, which may hold lists. Raises KeyError, TypeError or ValueError for others."""
    if stored is None:
        return None
    names, numbers, colours = (tuple(stored[name]) for name in ("names", "numbers", "colours"))
    return Bands(names, numbers, int(stored["count"]), str(stored["kind"]), colours=colours)


def check_kind(header: Header, numbers: Sequence[int], kind: str = "") -> str:
    """Return the type of some bands of a file. Raises UserError if they differ, or are not `kind` or one of `KINDS`."""
    kinds = sorted({header.kinds[number - 1] for number in numbers})
    wanted = (kind,) if kind else KINDS
    if len(kinds) > 1 or kinds[0] not in wanted:
        raise UserError(
            f"{header.source} has levels of type {' and '.join(kinds)}: save it as {list_names(wanted, len(KINDS))}"
        )
    return kinds[0]


def choose_bands(text: str, colours: str, header: Header) -> Bands:
    """Choose the bands of a new network from its first image.

    Args:
        text: "all", or the bands in order, each as a number from 1, a name in the file, or NAME=NUMBER, which gives the
            band a name.
        colours: the bands that are red, green and blue, as names or numbers in the file; "" for the bands so named.
        header: what the file says about its bands.

    Raises:
        UserError: a band does not exist, is chosen twice, or has an unknown type.
    """
    count = len(header.kinds)
    entries = [str(number) for number in range(1, count + 1)] if text == ALL else text.replace(",", " ").split()
    if not 1 <= len(entries) <= MOST:
        raise UserError(f'--bands "{text}": choose 1 to {MOST} bands')
    names, numbers = [], []
    for entry in entries:
        given, _, place = entry.rpartition("=")
        number = find_number(place, header, "--bands")
        numbers.append(number)
        names.append((given or header.names[number - 1] or f"band{number}").lower())
    for values in (names, numbers):
        twice = [value for position, value in enumerate(values) if value in values[:position]]
        if twice:
            raise UserError(f'--bands "{text}": {twice[0]} is chosen twice')
    places: list[int | None] = [names.index(name) if name in names else None for name in COLOURS]
    if colours:
        places = list(read_colours(colours, names, numbers, header))
    return Bands(
        tuple(names), tuple(numbers), count, check_kind(header, numbers), colours=(places[0], places[1], places[2])
    )


def read_colours(text: str, names: Sequence[str], numbers: Sequence[int], header: Header) -> list[int]:
    """Read which of the chosen bands are red, green and blue. Raises UserError for anything but three of them."""
    entries = text.replace(",", " ").lower().split()
    found = [
        names.index(entry) if entry in names else position(find_number(entry, header, "--rgb_bands"), numbers)
        for entry in entries
    ]
    if len(found) != len(COLOURS) or None in found:
        raise UserError(f'--rgb_bands "{text}": give three of the bands in --bands, such as "3 2 1"')
    return [place for place in found if place is not None]


def position(number: int, numbers: Sequence[int]) -> int | None:
    """Return the position of a band among the chosen ones, from 0, or None."""
    return numbers.index(number) if number in numbers else None


def find_number(text: str, header: Header, option: str) -> int:
    """Find a band of a file by its number from 1 or by its name. Raises UserError if there is none."""
    if text.lower() in header.names:
        return 1 + header.names.index(text.lower())
    count = len(header.kinds)
    if text.isdecimal() and 1 <= int(text) <= count:
        return int(text)
    known = [name for name in header.names if name]
    named = f" ({list_names(known, MOST)})" if known else f", without names; name them as in {EXAMPLE}"
    raise UserError(f"{option} {text}: {header.source} has {count} band{'s' * (count > 1)}{named}")


def stretch_levels(levels: NDArray[Any], mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Stretch levels (H, W, 3) to 8 bits: `BELOW` standard deviations under the mean become 0, `ABOVE` over it 255."""
    scaled = (levels.astype(np.float32) - (mean - BELOW * std)) * (255 / ((BELOW + ABOVE) * std))
    return np.asarray(np.clip(scaled + 0.5, 0, 255), np.uint8)


def has_data(levels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the pixels that hold data, bool (h, W).

    Args:
        levels: any type (C, h, W).
        valid: bool (C, h, W), which of them are valid.

    An integer that stands for nodata may also be a valid level of one band, such as a red of 0. So a pixel holds data
    if any band is valid. Floats have separate values for nodata, so all bands must be valid.
    """
    found = np.all if levels.dtype.kind == "f" else np.any
    return np.asarray(found(valid, 0), np.bool_)


def blank(levels: NDArray[Any], data: NDArray[np.bool_]) -> NDArray[Any]:
    """Return levels (C, h, w) with 0 where `data`, bool (h, w), is False, also in place of NaN."""
    return np.where(data, levels, levels.dtype.type(0))
