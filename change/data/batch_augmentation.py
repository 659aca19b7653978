"""Augment a whole batch at once with torch, on any device: what `transforms` does sample by sample with OpenCV.

The draws are those of `transforms`, made on the CPU. A sample's draws are one row of `COLUMNS` numbers:
    0 to 12     number of the pair, then the fields of `Crop`
    13 to 20    before: brightness, contrast, saturation, steps of the hue, and the order of the four changes
    21 to 28    after: the same
    29 to 43    before: the matrix of `Degradation`, row by row, and its other fields
    44 to 58    after: the same

Without scale and colours, the results are those of OpenCV bit for bit. Scaling differs by at most one level, because
OpenCV enlarges in fixed-point arithmetic. Masks are always the same. The colour changes repeat the arithmetic of
OpenCV, but a difference of one level before a change of hue can be several levels after it. Degradations differ by a
few levels where JPEG rounds a coefficient to another value.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from change.common.images import LUMA
from change.data.degradation import KERNEL, Degradation
from change.data.transforms import BRIGHTNESS, CONTRAST, HUE, Colours, Crop, hue_step

SWAP = 7  # the column that says whether the dates are exchanged
CROP_COLUMNS, COLOUR_COLUMNS, DEGRADATION_COLUMNS = 13, 8, 15
DEGRADATIONS = CROP_COLUMNS + 2 * COLOUR_COLUMNS  # the first column of the degradations
COLUMNS = DEGRADATIONS + 2 * DEGRADATION_COLUMNS


def as_row(
    pair: int, crop: Crop, colours: Sequence[Colours | None], degradations: Sequence[Degradation | None]
) -> NDArray[np.float64]:
    """Write the draws of a sample as one row (COLUMNS,); `colours` and `degradations` are those of before and after."""
    row = np.zeros(COLUMNS)
    row[:CROP_COLUMNS] = pair, *crop
    for date, drawn in enumerate(colours):
        if drawn is not None:
            start = CROP_COLUMNS + date * COLOUR_COLUMNS
            row[start : start + COLOUR_COLUMNS] = *drawn.amounts[:HUE], hue_step(drawn.amounts[HUE]), *drawn.order
    for date, degradation in enumerate(degradations):
        if degradation is not None:
            start = DEGRADATIONS + date * DEGRADATION_COLUMNS
            row[start : start + DEGRADATION_COLUMNS] = *degradation.matrix.flat, *degradation[1:]
    return row


# --- geometry ------------------------------------------------------------------------------------------------------


def weigh(side: int, crop: int, taps: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Compute which pixels of a line OpenCV combines into each pixel of a resized line, and their weights.

    Args:
        side: Length of the line.
        crop: Length of the resized line. OpenCV averages areas if it is shorter, and interpolates if it is longer.
        taps: Number of neighbouring pixels to list, at least as many as are needed.

    Returns:
        Pixels (crop, taps), and their weights, which add up to 1.
    """
    place = np.arange(crop)[:, None]
    if side == crop:
        pixels = place + np.arange(taps)
        weights = pixels == place
    elif side > crop:  # measured in 1 / crop of a pixel, so that all borders are whole numbers
        pixels = place * side // crop + np.arange(taps)
        overlap = np.minimum((pixels + 1) * crop, (place + 1) * side) - np.maximum(pixels * crop, place * side)
        weights = np.maximum(overlap, 0) / side
    else:  # centres of pixels, in 1 / (2 * crop) of a pixel
        centre = np.clip((2 * place + 1) * side - crop, 0, 2 * crop * (side - 1))
        pixels = centre // (2 * crop) + np.arange(taps)
        weights = np.maximum(1 - np.abs(pixels - centre / (2 * crop)), 0)
    return np.minimum(pixels, side - 1), weights.astype(np.float32)


def nearest(side: int, crop: int) -> NDArray[np.int64]:
    """Return the pixels (crop,) of a line of length `side` that OpenCV picks when it resizes a mask."""
    line = np.arange(side, dtype=np.float32)[None]
    return np.asarray(cv2.resize(line, (crop, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0], np.int64)


class BatchCrop(nn.Module):
    """Cuts, resizes, turns and flips the squares of a batch."""

    pixels: Tensor
    weights: Tensor
    mask_pixels: Tensor

    def __init__(self, crop: int, smallest: int, largest: int) -> None:
        """Make the tables. `crop`: side of the results; `smallest`, `largest`: bounds of the sides of the squares."""
        super().__init__()
        self.crop, self.smallest = crop, smallest
        sides = range(smallest, largest + 1)
        taps = max((2 if smallest < crop else 1), (-(-largest // crop) + 1 if largest > crop else 1))
        tables = [weigh(side, crop, taps) for side in sides]
        self.register_buffer("pixels", torch.from_numpy(np.stack([pixels for pixels, _ in tables])))
        self.register_buffer("weights", torch.from_numpy(np.stack([weights for _, weights in tables])))
        masks = np.stack([nearest(side, crop) for side in sides])[..., None]
        self.register_buffer("mask_pixels", torch.from_numpy(masks))

    def forward(self, images: Tensor, masks: Tensor, layout: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Make the crops of a batch.

        Args:
            images: Pixels of all images, uint8 (2 * P, 3); the two dates of a pair follow each other.
            masks: Pixels of all masks, uint8 (P,).
            layout: First pixel in `masks`, width and number of pixels of every pair, int64 (pairs, 3).
            draws: Draws of the samples (B, COLUMNS or fewer).

        Returns:
            Images of both dates, uint8 (2, B, crop, crop, 3), and masks (B, crop, crop).
        """
        pair, top, left, side, flip_x, flip_y, turn, swap, *shifts, copied = draws[:, :CROP_COLUMNS].long().T[..., None]
        start, width, area = layout[pair[:, 0]][:, :, None].unbind(1)  # each (B, 1)
        place = torch.arange(self.crop, device=draws.device)
        rows, columns = (torch.where(flip > 0, self.crop - 1 - place, place) for flip in (flip_y, flip_x))
        size = side - self.smallest
        down, across, turned = top[:, :, None], left[:, :, None], turn[:, :, None] > 0

        def offsets(table: Tensor) -> tuple[Tensor, Tensor]:
            """Return, for each row and each column of the crops, offsets (B, crop, taps) that add up to a pixel's."""
            along, over, wide = table[size, rows], table[size, columns], width[:, :, None]
            by_row = torch.where(turned, across + along, (down + along) * wide)
            by_column = torch.where(turned, (down + over) * wide, across + over)
            return by_row, by_column

        by_row, by_column = offsets(self.mask_pixels)
        cut_masks = masks[start[:, :, None] + by_row + by_column.transpose(1, 2)]
        cut_masks = torch.where(copied[:, :, None] > 0, 0, cut_masks)
        by_row, by_column = offsets(self.pixels)
        shift = torch.stack(shifts[::2]) * width + torch.stack(shifts[1::2])
        first = 2 * start + torch.stack([swap, torch.where(copied > 0, swap, 1 - swap)]) * area + shift  # (2, B, 1)
        taps = by_row.shape[2]
        if taps == 1:
            return images[first[..., None] + by_row + by_column.transpose(1, 2)], cut_masks
        row_weights, column_weights = self.weights[size, rows], self.weights[size, columns]
        total = torch.zeros((), device=draws.device)
        for i in range(taps):
            for j in range(taps):
                index = by_row[:, :, None, i] + by_column[:, None, :, j]
                weight = row_weights[:, :, None, i] * column_weights[:, None, :, j]
                total = torch.addcmul(total, images[first[..., None] + index].float(), weight[..., None])
        return total.round().to(torch.uint8), cut_masks


# --- colours -------------------------------------------------------------------------------------------------------


class BatchColours(nn.Module):
    """Changes the colours of a batch, each image in its own order."""

    by_value: Tensor
    by_range: Tensor
    luma: Tensor
    first_sectors: Tensor

    def __init__(self) -> None:
        super().__init__()
        # OpenCV's tables for 8-bit HSV: 4096 times the factors of saturation and hue.
        levels = np.arange(1, 256)
        for name, whole in (("by_value", 255), ("by_range", 256 / 6)):
            table = np.concatenate([[0], np.rint(4096 * whole / levels)])
            self.register_buffer(name, torch.from_numpy(table.astype(np.float32)))
        self.register_buffer("luma", torch.from_numpy(LUMA.astype(np.float32)))
        self.register_buffer("first_sectors", torch.tensor([5.0, 3.0, 1.0]))

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change colours: images uint8 (N, H, W, 3), draws float (N, COLOUR_COLUMNS); returns images.

        The hue is shifted once for all images. The other changes of an image come before or after that.
        """
        amounts, order = draws[:, :4, None, None].float(), draws[:, 4:, None, None].long()
        when = (order == HUE).long().argmax(1)  # (N, 1, 1)
        pixels = images.float()
        for step in range(3):
            pixels = self.blend(pixels, order[:, step], amounts, step < when)
        pixels = self.shift_hue(pixels, amounts[:, HUE])
        for step in range(1, 4):
            pixels = self.blend(pixels, order[:, step], amounts, step > when)
        return pixels.to(torch.uint8)

    def blend(self, pixels: Tensor, change: Tensor, amounts: Tensor, now: Tensor) -> Tensor:
        """Change brightness, contrast or saturation of some images.

        Args:
            pixels: Images of whole numbers from 0 to 255, float (N, H, W, 3).
            change: Number of the change of each image (N, 1, 1).
            amounts: Amount of every change (N, 4, 1, 1).
            now: Which images are changed (N, 1, 1).
        """
        grey = (pixels * self.luma).sum(-1)
        target = torch.where(change == CONTRAST, grey.mean((1, 2), keepdim=True), grey)
        target = torch.where(change == BRIGHTNESS, 0.0, target)
        factor = torch.where(now, amounts.gather(1, change[:, None])[:, 0], 1.0)
        shift = torch.where(now & (change != BRIGHTNESS), 1 / 3, 0.0)
        return (torch.lerp(target[..., None], pixels, factor[..., None]) - shift[..., None]).round().clamp(0, 255)

    def shift_hue(self, pixels: Tensor, step: Tensor) -> Tensor:
        """Shift the hue of `pixels` as in `blend` by `step` (N, 1, 1), 0 to 255, in OpenCV's 8-bit HSV (FULL)."""
        red, green, blue = pixels.unbind(-1)
        value = pixels.amax(-1)
        spread = value - pixels.amin(-1)
        saturation = ((spread * self.by_value[value.long()] + 2048) / 4096).floor() / 255
        sixth = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
        sixth = torch.where(value == red, green - blue, sixth)
        hue = ((sixth * self.by_range[spread.long()] + 2048) / 4096).floor() + step
        hue = hue - 256 * (hue / 256).floor()
        # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
        sectors = (hue * (6 / 255))[..., None] + self.first_sectors
        sectors = sectors - 6 * (sectors / 6).floor()
        share = torch.minimum(sectors, 4 - sectors).clamp(0, 1)
        return (value[..., None] * (1 - saturation[..., None] * share)).round()


# --- degradations --------------------------------------------------------------------------------------------------

# The quantisation tables of JPEG, and the factors of its colours Y, Cb and Cr (ITU-T T.81, annex K.1; T.871, 7).
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = np.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = (17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99)
TO_YCC = np.stack([LUMA, ([0, 0, 1] - LUMA) / 1.772, ([1, 0, 0] - LUMA) / 1.402])
BLOCK = 8


class BatchDegradations(nn.Module):
    """Degrades a batch: what `degrade` does image by image."""

    places: Tensor
    tables: Tensor
    cosines: Tensor
    to_ycc: Tensor
    to_rgb: Tensor
    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        place, frequency = np.arange(BLOCK), np.arange(BLOCK)[:, None]
        cosines = np.sqrt((1 + (frequency > 0)) / BLOCK) * np.cos((2 * place + 1) * frequency * np.pi / (2 * BLOCK))
        buffers = {
            "places": np.arange(KERNEL) - KERNEL // 2,
            "tables": np.stack([LUMA_TABLE, CHROMA_TABLE, CHROMA_TABLE]),
            "cosines": cosines,
            "to_ycc": TO_YCC,
            "to_rgb": np.linalg.inv(TO_YCC),
            "zero": np.array([0, 128, 128]),
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Degrade images: images uint8 (N, H, W, 3), draws float (N, DEGRADATION_COLUMNS); returns images.

        H and W are multiples of 8.
        """
        matrix = draws[:, :12].float().view(-1, 1, 3, 4)
        sigma, details, quality = draws[:, 12:].float()[:, :, None, None, None].unbind(1)
        pixels = images.flatten(1, 2).float() @ matrix[:, 0, :, :3].mT + matrix[..., 3]
        pixels = pixels.round().clamp(0, 255).view(images.shape)
        sharp = torch.lerp(self.smooth(pixels, sigma.flatten()), pixels, 1 + details).round().clamp(0, 255)
        pixels = torch.where(sigma > 0, sharp, pixels)
        return torch.where(quality > 0, self.compress(pixels, quality), pixels).to(torch.uint8)

    def smooth(self, pixels: Tensor, sigma: Tensor) -> Tensor:
        """Convolve images (N, H, W, 3) with Gaussians; `sigma` (N,); 0 is read as 1."""
        spread = torch.where(sigma > 0, sigma, 1.0)[:, None]
        kernel = torch.softmax(-(self.places**2) / (2 * spread**2), 1)
        margin = KERNEL // 2
        maps = nn.functional.pad(pixels.permute(3, 0, 1, 2), (margin,) * 4, mode="reflect")  # (3, N, H, W)
        down = nn.functional.conv2d(maps, kernel[:, None, :, None], groups=len(kernel))
        across = nn.functional.conv2d(down, kernel[:, None, None], groups=len(kernel))
        return across.permute(1, 2, 3, 0).round()

    def compress(self, pixels: Tensor, quality: Tensor) -> Tensor:
        """Round the frequencies of images (N, H, W, 3) as JPEG does at `quality` (N, 1, 1, 1)."""
        count, height, width, _ = pixels.shape
        factor = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality)
        table = ((self.tables * factor + 50) / 100).floor().clamp(1, 255)[:, :, None, None]  # (N, 3, 1, 1, 8, 8)
        ycc = (pixels @ self.to_ycc.T + self.zero).round().clamp(0, 255) - 128
        grid = (count, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
        blocks = ycc.view(grid).permute(0, 5, 1, 3, 2, 4)  # (N, 3, H / 8, W / 8, 8, 8)
        rounded = (self.cosines @ blocks @ self.cosines.T / table).round() * table
        blocks = (self.cosines.T @ rounded @ self.cosines + 128).round().clamp(0, 255)
        ycc = blocks.permute(0, 2, 4, 3, 5, 1).reshape(pixels.shape)
        rgb: Tensor = (ycc - self.zero) @ self.to_rgb.T
        return rgb.round().clamp(0, 255)
