"""Tiles and symmetries against what they must equal."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from change.prediction.tiles import Protocol, weighted_starts


def pixelwise(before: Tensor, after: Tensor) -> Tensor:
    """Depend only on the pixel."""
    table = torch.rand(512, generator=torch.Generator().manual_seed(1))
    return table[before[:, :1].long() + after[:, 1:2].long()]


def directed(before: Tensor, after: Tensor) -> Tensor:
    """Depend on the place in the tile, so that tiles differ where they overlap."""
    height, width = before.shape[-2:]
    plane = torch.linspace(0, 0.5, height)[:, None] + torch.linspace(0, 0.4, width)
    return plane.expand(len(before), 1, height, width) + 0 * pixelwise(before, after)


def pair(height: int, width: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, height, width)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("size", [(64, 64), (100, 71), (31, 200), (20, 20)])
@pytest.mark.parametrize("tile", [(32, 0), (32, 8), (48, 24), (33, 32)])
@pytest.mark.parametrize("tta", [False, True])
def test_a_pixelwise_network_passes_bit_for_bit(size: tuple[int, int], tile: tuple[int, int], tta: bool) -> None:
    images = pair(*size)
    result = Protocol("slide", *tile, tta).apply(pixelwise)(*images)
    assert result.dtype == torch.float32
    assert torch.equal(result, pixelwise(*images))


def test_tiles_cover_the_image_and_end_with_it() -> None:
    for length in (32, 33, 64, 100, 1024):
        for tile, overlap in ((32, 0), (32, 16), (256, 64)):
            begin = [start for start, _ in weighted_starts(length, tile, overlap)]
            assert begin[0] == 0 and begin == sorted(set(begin))
            assert begin[-1] + min(tile, length) == length
            assert all(b - a <= tile - overlap for a, b in itertools.pairwise(begin))
    assert [start for start, _ in weighted_starts(1024, 256, 0)] == [0, 256, 512, 768]


def test_weights() -> None:
    """The weights of two tiles add up to about 1 in the overlap; they do not fall towards the border of the image."""
    first, middle, last = (weight for _, weight in weighted_starts(160, 64, 16))
    assert torch.allclose(first[-16:] + middle[:16], torch.ones(16, dtype=torch.float64), atol=0.002)
    assert (first[:48] == 1).all() and (last[16:] == 1).all() and (middle > 0).all() and middle[0] < 0.01


def test_tiles_without_overlap_are_predicted_one_by_one() -> None:
    images = pair(64, 96)
    result = Protocol("tile256", 32, 0).apply(directed)(*images)
    for row in (0, 32):
        for column in (0, 32, 64):
            area = (..., slice(row, row + 32), slice(column, column + 32))
            assert torch.equal(result[area], directed(images[0][area], images[1][area]))


def test_blending_leaves_no_seam() -> None:
    """If tiles disagree by up to 0.9, neighbouring pixels differ little after blending."""
    images = pair(128, 128, 1)
    hard = Protocol("slide", 64, 0).apply(directed)(*images)
    soft = Protocol("slide", 64, 32).apply(directed)(*images)
    assert hard.diff(dim=-1).abs().max() > 0.35
    assert soft.diff(dim=-1).abs().max() < 0.04


def test_tta_is_the_mean_over_the_symmetries() -> None:
    images = pair(40, 40)
    mean = Protocol(tta=True).apply(directed)(*images)
    plane = directed(*images)
    parts = [torch.rot90(flipped, turns, (-2, -1)) for flipped in (plane, plane.flip(-1)) for turns in range(4)]
    assert torch.allclose(mean, torch.stack(parts).mean(0), atol=1e-6)
    wide = pair(40, 60)
    assert Protocol(tta=True).apply(directed)(*wide).shape == (2, 1, 40, 60)


def test_batches_of_tiles_are_no_larger_than_the_image() -> None:
    sizes = []

    def watched(before: Tensor, after: Tensor) -> Tensor:
        sizes.append(before.shape)
        return pixelwise(before, after)

    Protocol("slide", 32, 16).apply(watched)(*pair(64, 64))
    assert sum(shape[0] for shape in sizes) == 2 * 9
    assert max(shape.numel() for shape in sizes) <= 2 * 3 * 64 * 64


def test_the_protocol_in_metrics_json_keeps_its_keys() -> None:
    """Files of earlier versions say window, and compare reads both."""
    expected = {"name": "slide", "window": 512, "overlap": 128, "tta": True}
    assert list(Protocol("slide", 512, 128, True).as_dict().items()) == list(expected.items())
