"""Bands: how they are chosen, and where they are found in another file."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from change.common.bands import Bands, Channels, Header, choose_bands, restore_bands
from change.common.errors import UserError

HEADER = Header("s2.tif", ("b03", "b04", "b08", "", ""), ("uint16",) * 5, (10, 20))


def test_bands_are_chosen_by_number_and_name() -> None:
    chosen = choose_bands("red=2, B03 nir=b08 4", "", HEADER)
    assert chosen == Bands(("red", "b03", "nir", "band4"), (2, 1, 3, 4), 5, "uint16", (0, None, None))
    assert choose_bands("all", "", HEADER).names == ("b03", "b04", "b08", "band4", "band5")
    assert restore_bands({**asdict(chosen), "names": list(chosen.names)}) == chosen and restore_bands(None) is None


def test_colours_are_found_or_given() -> None:
    """Those that are missing have no place, and pictures then show the first bands."""
    chosen = choose_bands("green=1 red=2 nir=3 blue=5", "", HEADER)
    assert chosen.colours == (1, 0, 3) and chosen.shown() == (1, 0, 3)
    assert chosen.colour_of_each() == (1, 0, None, 2)
    given = choose_bands("all", "b08 2 1", HEADER)
    assert given.colours == (2, 1, 0)
    assert choose_bands("3 2", "", HEADER).shown() == (0, 1, 1)


@pytest.mark.parametrize(
    ("text", "colours", "message"),
    [
        ("1 6", "", r"--bands 6: s2.tif has 5 bands \(b03, b04, b08\)"),
        ("blue", "", "--bands blue: s2.tif has 5 bands"),
        ("1 1", "", "b03 is chosen twice"),
        ("a=1 a=2", "", "a is chosen twice"),
        (",", "", "choose 1 to 32 bands"),
        ("1 2 3", "3 2", "--rgb_bands"),
        ("1 2 3", "3 2 4", "give three of the bands in --bands"),
        ("1 2 3", "3 2 9", "--rgb_bands 9: s2.tif has 5 bands"),
    ],
)
def test_choices_that_are_refused(text: str, colours: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_bands(text, colours, HEADER)


def test_types_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"s2\.tif has levels of type float64: save it as uint8, uint16, int16"):
        choose_bands("all", "", HEADER._replace(kinds=("float64",) * 5))
    with pytest.raises(UserError, match="type float32 and uint16"):
        choose_bands("all", "", HEADER._replace(kinds=("uint16",) * 4 + ("float32",)))


def test_bands_are_found_in_another_file() -> None:
    """By name if the file names all of them, else by number if it has as many bands; else it is refused."""
    bands = choose_bands("b08 b03", "", HEADER)
    assert bands.find(HEADER) == (3, 1)
    assert bands.find(Header("other.tif", ("b08", "b02", "b03"), ("uint16",) * 3, (1, 1))) == (1, 3)
    assert bands.find(Header("plain.tif", ("",) * 5, ("uint16",) * 5, (1, 1))) == (3, 1)
    few = Header("few.tif", ("",) * 3, ("uint16",) * 3, (1, 1))
    with pytest.raises(UserError, match=r"few\.tif has 3 bands, .* 2 bands of uint16 \(b08, b03\), from files of 5"):
        bands.find(few)
    assert bands.find(few, (2, 1)) == (2, 1)
    with pytest.raises(UserError, match="--bands names 3 bands, the checkpoint reads 2"):
        bands.find(few, (2, 1, 3))
    with pytest.raises(UserError, match=r"few\.tif has levels of type uint8: save it as uint16"):
        bands.find(few._replace(kinds=("uint8",) * 3), (2, 1))


def test_values_that_contradict_each_other() -> None:
    good = choose_bands("all", "", HEADER)
    for change in ({"names": ("a",) * 5}, {"numbers": (1, 2)}, {"count": 3}, {"kind": "int64"}, {"colours": (9, 0, 0)}):
        with pytest.raises(ValueError):
            replace(good, **change)


def test_pictures_show_levels_around_the_mean() -> None:
    channels = Channels(choose_bands("all", "3 2 1", HEADER), (100.0,) * 5, (10.0,) * 5)
    levels = np.zeros((1, 3, 5), np.uint16)
    levels[0, :, 2] = 80, 110, 130  # two standard deviations below the mean, one and three above
    levels[0, :, :2] = 1000
    picture = channels.picture(levels)
    assert picture.dtype == np.uint8 and picture[0, :, 0].tolist() == [0, 153, 255] and (picture[..., 1:] == 255).all()
