"""The rows of tiles of a scene: read ahead, predicted where there is data, and blended from the top down.

A row of tiles is as high as a tile and as wide as the scene. Rows overlap, and no pixel is read twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from change.common.images import mirrored_data
from change.prediction.tiles import Predict, bands, weighted_starts
from change.rasters.raster import INSIDE, RasterPair

OVERVIEW = 1024  # longest side of the overview in pixels


class RowReader:
    """Reads the rows of tiles of a pair, one ahead, in a thread of its own until `close`.

    Attributes:
        pair: the pair of rasters.
        data: bool (tile, W), True where both dates hold data, and inside the area of interest, in the row of tiles
            that was yielded last.
        overviews: before and after, uint8 RGB (h, w, 3) with sides of at most `OVERVIEW` pixels. They are filled as
            rows are read, and black where either date holds no data.
    """

    def __init__(self, pair: RasterPair, tile: int, overlap: int) -> None:
        """Prepare to read; `tile` and `overlap` in pixels."""
        self.pair = pair
        self.starts = [start for start, _ in weighted_starts(pair.height, tile, overlap)]
        self.tall = min(tile, pair.height)
        self.thread = ThreadPoolExecutor(1)
        self.data = np.zeros((0, pair.width), np.bool_)
        scale = min(1.0, OVERVIEW / max(pair.height, pair.width))
        self.sampled_rows = sample_positions(pair.height, scale)
        self.sampled_columns = sample_positions(pair.width, scale)
        shape = len(self.sampled_rows), len(self.sampled_columns), 3
        self.overviews = [np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)]

    def read(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Read the rows of pixels from `first` to before `last`, and fill the overviews.

        Returns:
            Before (1, C + 1, last - first, W) and after (1, C, last - first, W), as in `RasterPair.rows_and_places`.
            The last channel of before holds the places.
        """
        before, after, places = self.pair.rows_and_places(first, last)
        inside = (self.sampled_rows >= first) & (self.sampled_rows < last)
        rows = (self.sampled_rows[inside] - first)[:, None]
        dates = (self.pair.before, before), (self.pair.after, after)
        for overview, (raster, image) in zip(self.overviews, dates, strict=True):
            sampled = image[0].numpy()[:, rows, self.sampled_columns]
            if raster.reads is not None:
                sampled = raster.to_picture(sampled, (sampled != 0).any(0))
            overview[inside] = sampled.transpose(1, 2, 0)
        return torch.cat((before, torch.from_numpy(places)[None, None].to(before.dtype)), dim=1), after

    def read_row(self, index: int, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Assemble a row of tiles, as in `read`, from the part it shares with the row above and from new pixels.

        Args:
            index: index of the row of tiles.
            before, after: the row of tiles above, or images without rows for the first one.
        """
        start = self.starts[index]
        above = self.starts[index - 1] if index else 0
        new_before, new_after = self.read(above + before.shape[2], start + self.tall)
        shared_before, shared_after = before[:, :, start - above :], after[:, :, start - above :]
        return torch.cat((shared_before, new_before), dim=2), torch.cat((shared_after, new_after), dim=2)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield before and after, as in `read`, for each row of tiles."""
        channels, kind = self.pair.channels, torch.uint8 if self.pair.kind == "uint8" else torch.float32
        before = torch.empty(1, channels + 1, 0, self.pair.width, dtype=kind)
        after = torch.empty(1, channels, 0, self.pair.width, dtype=kind)
        coming = self.thread.submit(self.read_row, 0, before, after)
        for following in range(1, len(self.starts) + 1):
            before, after = coming.result()
            if following < len(self.starts):
                coming = self.thread.submit(self.read_row, following, before, after)
            self.data = before[0, -1].numpy() == INSIDE
            yield before, after

    def close(self) -> None:
        """Wait for the thread to end, so that it does not read from closed files."""
        self.thread.shutdown(cancel_futures=True)


def sample_positions(length: int, scale: float) -> NDArray[np.int64]:
    """Return the positions of the pixels along a side that an overview of `scale`, at most 1, shows."""
    return (np.arange(max(1, round(length * scale))) / scale).astype(int)


class PredictWhereData:
    """Predicts the tiles that hold data; the others are unchanged.

    In each tile, pixels without data are filled as `mirrored_data` says.

    Attributes:
        seconds: how long the prediction has taken so far.
    """

    def __init__(self, predict: Predict, outputs: int = 1) -> None:
        """Wrap a function that returns `outputs` probabilities per pixel."""
        self.predict = predict
        self.outputs = outputs
        self.seconds = 0.0

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Turn before (B, C + 1, h, w), as in `RowReader.read`, and after (B, C, h, w) into probabilities (B, O, h, w).

        The result is float32 on the CPU.
        """
        began = time.perf_counter()
        places = before[:, -1]
        with_data = (places == INSIDE).flatten(1).any(1)
        probability = torch.zeros(len(before), self.outputs, *before.shape[2:])
        if self.outputs > 1:
            probability[:, 0] = 1  # unchanged
        if with_data.any():
            inputs = before[with_data, :-1], after[with_data]
            for index, data in enumerate(places[with_data] > 0):
                if not data.all():
                    rows, columns = map(torch.from_numpy, mirrored_data(data.numpy()))
                    for images in inputs:
                        images[index][:, ~data] = images[index][:, rows, columns]
            probability[with_data] = self.predict(*inputs).cpu()
        self.seconds += time.perf_counter() - began
        return probability


def predict_rows(
    rows: RowReader, predict: Predict, *, tile: int, overlap: int, batch: int
) -> Iterator[tuple[Tensor, NDArray[np.bool_]]]:
    """Predict a scene from the top down.

    Args:
        rows: the reader of its rows of tiles.
        predict: called with tiles as `rows` yields them; see `PredictWhereData`.
        tile: side of the tiles in pixels.
        overlap: overlap of the tiles in pixels.
        batch: number of tiles predicted at once.

    Yields:
        Probabilities, float32 (O, h, W), and bool (h, W), True where there is data, from the top down without gaps.
    """
    for part in bands(rows, predict, height=rows.pair.height, tile=tile, overlap=overlap, batch=batch):
        yield part[0], rows.data[: part.shape[2]]
