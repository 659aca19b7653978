"""The data of a run, found and loaded as its options say."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from change.change_dataloader import Split, find_split, shared_images
from change.common import distributed
from change.common.bands import Bands, Channels
from change.common.classes import NO_CLASSES, MaskClasses
from change.common.errors import UserError, list_names
from change.data.cache import DecodedCache, decode_pairs
from change.data.degradation import Degradations
from change.data.loaders import TrainLoader, default_workers, whole_batches, whole_loader
from change.data.on_device import (
    WORKING_BYTES,
    DeviceTrainLoader,
    DeviceWholeLoader,
    PairsInMemory,
    decode_into_memory,
    require_memory,
)
from change.data.samples import Batch, TrainSamples, WholeSamples
from change.data.transforms import BandJitter, ColorJitter, Geometry
from change.options.train import AugmentationOptions, DataOptions, TrainOptions
from change.prediction.compiling import Compiled, worth_compiling
from change.training.bands import choose_run_bands, known_channels, measure_channels, refuse_for_bands
from change.training.checks import report_stretch, require_batch_norm, require_change
from change.training.classes import choose_run_classes
from change.training.recorded import Recorded
from change.training.run_state import RunState
from change.training.start import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The splits of a run, the loaders of this process, and the channels of the images; None for 8-bit RGB."""

    train: Split
    val: Split
    train_loader: TrainLoader | DeviceTrainLoader
    val_loader: DataLoader[Batch | UserError] | DeviceWholeLoader
    channels: Channels | None = None

    @functools.cached_property
    def contents(self) -> list[str]:
        """The fingerprints of all pairs' files, of train and then of val, at the first access."""
        return self.train.fingerprints() + self.val.fingerprints()

    def digest(self) -> str:
        """Return a digest of the names and sizes of the pairs, which distinguishes them from others."""
        return digest_of(self.train, self.val)

    def require_same(self, state: RunState, path: Path) -> None:
        """Raise UserError if the state of a run, read from `path`, belongs to other pairs or to changed files.

        States of earlier versions do not record which files they belong to.
        """
        if state.data != self.digest():
            raise UserError(
                f"{path} was trained on other pairs than those in --root now (names or sizes differ): "
                "choose the --root of the run"
            )
        if not state.contents:
            log.warning("%s does not record which files the run began with, so they are not compared", path)
            return
        keys = [f"{split.name}/{pair.name}" for split in (self.train, self.val) for pair in split.pairs]
        for what, part in (("images", slice(0, 16)), ("masks", slice(16, 32))):
            pairs = zip(keys, state.contents, self.contents, strict=True)
            changed = [key for key, then, now in pairs if then[part] != now[part]]
            if changed:
                raise UserError(
                    f"{path} was trained on {what} that differ from those in --root now: {list_names(changed)}; "
                    "restore the files, or start a new run with another --save_path"
                )


def digest_of(train: Split, val: Split) -> str:
    """Return the digests of two splits as one string."""
    return train.digest() + val.digest()


def find_splits(
    options: DataOptions, bands: Bands | None = None, holds: MaskClasses = NO_CLASSES
) -> tuple[Split, Split]:
    """Find the pairs of train and val. Raises UserError as `find_split` does."""
    lists = Path(options.list) if options.list else None
    train, val = (
        find_split(Path(options.root), part, lists / f"{part}.txt" if lists else None, bands=bands, holds=holds)
        for part in ("train", "val")
    )
    return train, val


def check_same_pairs(plan: Plan, given: Mapping[str, Any]) -> None:
    """Raise UserError if a finished run is continued with a --root that holds other pairs."""
    if plan.state is None or "root" not in given:
        return
    data = plan.options.data
    train, val = find_splits(data, plan.state.bands, choose_run_classes(data, plan.state))
    if plan.state.data != digest_of(train, val):
        raise UserError(
            f"{plan.folder} holds a finished run on other pairs than those in --root {data.root} now: "
            "choose another --save_path"
        )


def open_data(options: TrainOptions, device: torch.device, state: RunState | None) -> Data:
    """Find the pairs and make the loaders of this process. A warning is logged if train and val share images.

    `state`: the state of an interrupted run; None for a new run.

    Raises UserError as `find_split` does, if no train mask marks a change, if a crop is larger than an image, if a
    batch is too small for the network, and for options that do not work for bands.
    """
    process, processes = distributed.rank(), distributed.processes()
    channels = known_channels(options, state)
    bands = channels.bands if channels else choose_run_bands(options)
    train, val = find_splits(options.data, bands, choose_run_classes(options.data, state))
    if train.bands is not None:
        refuse_for_bands(options)
    channels = channels or measure_channels(train)
    require_change(train, options.data.root)
    augmentation = options.augmentation
    samples = TrainSamples(
        train,
        options.data.cropsize,
        make_jitter(augmentation, channels),
        options.run.seed,
        geometry=make_geometry(augmentation, train),
        degradations=Degradations(augmentation.degrade),
    )
    workers = options.compute.workers
    if workers < 0:
        workers = default_workers(distributed.neighbours())
    pin = device.type == "cuda"
    train_loader = TrainLoader(
        samples,
        options.optimizer.train_batchsize,
        workers,
        pin,
        parts=options.optimizer.grad_accum,
        process=process,
        processes=processes,
    )
    require_batch_norm(options, train_loader.order, device)
    val_samples = WholeSamples(val, options.data.trainsize)
    report_stretch(val, options.data.trainsize)
    val_loader = whole_loader(
        val_samples, options.validation.val_batchsize, workers, pin, process=process, processes=processes
    )
    if shared := shared_images(train, val):
        log.warning(
            "val is no independent test: %d of its pairs share an image file with train: %s; "
            "run python -m change check %s",
            len(shared),
            list_names(shared),
            options.data.root,
        )
    return Data(train, val, train_loader, val_loader, channels)


def make_geometry(options: AugmentationOptions, train: Split) -> Geometry:
    """Make the random changes of the shape of crops, and of the classes of swapped dates."""
    opposites = train.classes.opposites if train.classes else ()
    return Geometry(*options.scales(), options.symmetries, options.swap, options.shift, opposites, options.unchanged)


def make_jitter(options: AugmentationOptions, channels: Channels | None) -> ColorJitter | BandJitter:
    """Make the random changes of the colours, or of the levels of bands."""
    jitter = options.jitter()
    return ColorJitter(*jitter) if channels is None else BandJitter(jitter[0], jitter[1], channels.std)


def use_cache(data: Data, options: TrainOptions, device: torch.device) -> Data:
    """Return `data` with loaders that read decoded pairs, as --cache says. Decoding all pairs can take minutes.

    Raises UserError if the decoded pairs do not fit on the disk or into memory, or if a file does not decode.
    """
    train, val = data.train_loader.loader.dataset, data.val_loader
    assert isinstance(train, TrainSamples) and isinstance(val, DataLoader)
    whole = val.dataset
    assert isinstance(whole, WholeSamples)
    if options.data.cache == "disk":
        folder = Path(options.data.cache_path or f"{options.data.root}/.cache")
        train.read, whole.read = (DecodedCache(split, folder).read for split in (data.train, data.val))
    elif options.data.cache == "device" and makes_batches(device):
        return keep_on_device(data, train, whole, options, device)
    elif options.data.cache == "device":
        sizes = [pair.size for split in (data.train, data.val) for pair in split.pairs]
        memory = torch.device("cpu")
        require_memory(sizes, 0, memory, copies=distributed.neighbours())
        train.read, whole.read = (decode_into_memory(split, memory).read for split in (data.train, data.val))
    return data


def makes_batches(device: torch.device) -> bool:
    """Return whether batches are made on a device. On a CPU, OpenCV is faster; others have not been tested."""
    return device.type == "cuda"


def keep_on_device(
    data: Data, train: TrainSamples, val: WholeSamples, options: TrainOptions, device: torch.device
) -> Data:
    """Return `data` with loaders that make batches from pairs in the memory of `device`. Raises as `use_cache` does."""
    order = data.train_loader.order
    batches = whole_batches(val, options.validation.val_batchsize)[distributed.rank() :: distributed.processes()]
    validated = [index for batch in batches for index in batch]
    val_sizes = [val.shape(index) for index in validated]
    working = WORKING_BYTES * 2 * order.batch_size * train.crop**2 // order.processes
    require_memory([*(pair.size for pair in data.train.pairs), *val_sizes], working, device)
    train_pairs = decode_into_memory(data.train, device)
    val_pairs = PairsInMemory(val_sizes, decode_pairs(val.pixels, validated), device)
    # The augmentation has no batch norms, so several processes do not matter.
    compiles = worth_compiling(options.compute.compile, device, options.run.epoch * len(order))
    workers = data.train_loader.loader.num_workers
    return replace(
        data,
        train_loader=DeviceTrainLoader(
            train,
            train_pairs,
            order,
            workers,
            wrap=Compiled if compiles else None,
            record=Recorded if options.compute.cuda_graphs and device.type == "cuda" and not compiles else None,
        ),
        val_loader=DeviceWholeLoader(val, val_pairs, batches),
    )
