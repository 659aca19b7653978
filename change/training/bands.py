"""The bands that a run reads, if its images are not 8-bit RGB."""

from __future__ import annotations

import logging
from pathlib import Path

from change.change_dataloader import Split, find_first_image
from change.checkpoint import load_checkpoint
from change.common.band_files import measure, read_header
from change.common.bands import Bands, Channels, choose_bands
from change.common.errors import UserError, list_names
from change.options.train import TrainOptions
from change.training.run_state import RunState

log = logging.getLogger(__name__)


def known_channels(options: TrainOptions, state: RunState | None) -> Channels | None:
    """Return the channels of the interrupted run or of the checkpoint that the run starts from, if they are bands."""
    if state is None and not options.start.resume:
        return None
    source = state or load_checkpoint(Path(options.start.checkpoint_path))
    return None if source.bands is None else Channels(source.bands, source.mean, source.std)


def refuse_for_bands(options: TrainOptions) -> None:
    """Raise UserError for an option that only works for 8-bit RGB."""
    if options.data.cache == "device":
        raise UserError("--cache device keeps 8-bit RGB images: use --cache disk for other bands")
    if options.augmentation.degrade:
        raise UserError("--degrade imitates cameras and JPEG, for RGB: leave it out for other bands")


def choose_run_bands(options: TrainOptions) -> Bands | None:
    """Return the bands that --bands names in the first image of train; None for 8-bit RGB.

    Raises UserError if there is no image, or if it lacks one of the bands.
    """
    if not options.data.bands:
        return None
    lists = options.data.list
    first = find_first_image(Path(options.data.root), "train", Path(lists) / "train.txt" if lists else None)
    return choose_bands(options.data.bands, options.data.rgb_bands, read_header(first))


def measure_channels(train: Split) -> Channels | None:
    """Measure and log the statistics of the bands of `train`; None for 8-bit RGB. Raises UserError as `measure` does.

    Every process of a run measures the same files, so that they agree.
    """
    if train.bands is None:
        return None
    found = measure([path for pair in train.pairs for path in (pair.before, pair.after)], train.bands)
    names = train.bands.names
    described = [f"{name} {mean:.4g} +- {std:.4g}" for name, mean, std in zip(names, *found[1:], strict=True)]
    log.info("mean and standard deviation of the bands of train: %s", list_names(described, len(names)))
    return found
