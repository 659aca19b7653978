"""Loaders: the order of an epoch, the share of each process, and the worker processes that read.

The batches do not depend on the number of workers, nor on the batch at which an epoch is continued.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from change.common.devices import count_cores
from change.common.errors import OUT_OF_MEMORY, UserError
from change.data.samples import Batch, TrainSamples, WholeSamples, join


class BatchShare(NamedTuple):
    """A process's share of a batch.

    Attributes:
        pairs: The number of pairs in the whole batch.
        own: The number of pairs of this process.
        parts: The number of micro-batches into which they are split.
    """

    pairs: int
    own: int
    parts: int


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """A process's share of every batch of an epoch, as keys (epoch, index). The order follows from seed and epoch.

    Set `epoch`, and `start` to skip the first batches. Every process must run the same number of forward passes.
    Therefore a share with fewer pairs than parts, which only occurs in the last batch, is filled up with other pairs of
    the batch. The caller must give these no weight.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, parts: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        """Check that there is a pair for every micro-batch.

        Args:
            samples: Number of samples in an epoch.
            batch_size: Global batch size, over all processes.
            seed: Random seed.
            parts: Micro-batches per step.
            process: Number of this process.
            processes: Number of processes.

        Raises:
            UserError: If a batch has fewer pairs than `processes` times `parts`.
        """
        if batch_size < processes * parts:
            raise UserError(
                f"--train_batchsize {batch_size}: choose {processes * parts} or more, a pair for each of "
                f"{processes} processes x {parts} parts (--grad_accum)"
            )
        self.samples, self.batch_size, self.seed, self.parts = samples, batch_size, seed, parts
        self.process, self.processes = process, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch, 0, 0)).permutation(self.samples)
        for step in range(self.start, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            first, end = self.bounds(len(batch))
            length = max(end - first, self.share(step).parts)
            filled_up = batch[first:end] + batch
            yield [(self.epoch, index) for index in filled_up[:length]]

    def bounds(self, pairs: int) -> tuple[int, int]:
        """Return the range of this process's own pairs in a batch of `pairs`: the first, and one after the last."""
        return pairs * self.process // self.processes, pairs * (self.process + 1) // self.processes

    def share(self, step: int) -> BatchShare:
        """Return this process's share of batch `step`. It has at most as many parts as the largest share has pairs."""
        pairs = min(self.batch_size, self.samples - step * self.batch_size)
        first, end = self.bounds(pairs)
        return BatchShare(pairs, end - first, min(self.parts, -(-pairs // self.processes)))

    def smallest(self) -> int:
        """Return the number of pairs in the smallest micro-batch of any process."""
        shares = [self.share(step) for step in (0, len(self) - 1)]
        return min(max(share.pairs // self.processes, share.parts) // share.parts for share in shares)


class TrainLoader:
    """Loads a process's share of every batch of augmented crops."""

    def __init__(
        self,
        samples: TrainSamples,
        batch_size: int,
        workers: int,
        pin: bool = False,
        parts: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """`pin`: whether to put batches into pinned memory; for the other arguments, see `EpochOrder`."""
        self.order = EpochOrder(len(samples), batch_size, samples.seed, parts, process, processes)
        self.loader = make_loader(samples, self.order, workers, pin)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch `start` on. Raises UserError for a file that does not decode."""
        self.order.epoch, self.order.start = epoch, start
        yield from or_raise(self.loader)


def whole_loader(
    samples: WholeSamples, batch_size: int, workers: int, pin: bool = False, process: int = 0, processes: int = 1
) -> DataLoader[Batch | UserError]:
    """Make a loader that reads every pair once. Iterate over it with `or_raise`.

    The order is that of the split, except that a batch only holds images of one size. The processes get the batches in
    turn, so that some may get one fewer than others.
    """
    return make_loader(samples, whole_batches(samples, batch_size)[process::processes], workers, pin)


def whole_batches(samples: WholeSamples, batch_size: int) -> list[list[int]]:
    """Return the numbers of the pairs of every batch. A batch holds images of one size."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in range(len(samples)):
        by_size[samples.shape(index)].append(index)
    batches = [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
    return sorted(batches)


def make_loader(
    samples: Dataset[Any],
    batches: Sampler[list[Any]] | list[list[int]],
    workers: int,
    pin: bool,
    collate: Callable[[list[Any]], Any] = join,
) -> DataLoader[Any]:
    """Make a DataLoader whose workers live as long as it does. `collate` joins samples into a batch."""
    ending = multiprocessing.RawValue("b", 0)
    if workers:
        atexit.register(setattr, ending, "value", 1)
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=functools.partial(start_worker, ending),
        generator=torch.Generator().manual_seed(0),  # otherwise it would draw from the global one
    )


def start_worker(ending: ctypes.c_byte, _: int) -> None:
    """Initialise a worker: one thread; Ctrl-C and SIGTERM, which all processes get, are left to the main process.

    `ending` is 1 once the main process exits. Then the workers of a loader that is still in use are sent SIGTERM, and
    must end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    sys.excepthook = show_unless_disconnected
    cv2.setNumThreads(0)


def show_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an exception of a worker, unless the main process has broken off the transfer of a batch.

    It does so if another worker dies at that moment, and reports that. The thread of `multiprocessing` that hands over
    the tensors passes its exceptions to `sys.excepthook`, and goes on.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def or_raise(batches: Iterable[Batch | UserError]) -> Iterator[Batch]:
    """Yield the batches of a loader. If it returns a UserError in place of a batch, raise that.

    Raises UserError also if a worker dies while it hands over a batch. Torch reports most other deaths of a worker with
    a RuntimeError, but this one with the error of the connection if it happens before the system lists the worker as
    dead.
    """
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise UserError(str(batch)) from batch  # `raise batch` would tie this frame and the workers in a cycle
            yield batch
    except (ConnectionError, EOFError) as error:
        raise UserError(OUT_OF_MEMORY["DataLoader worker"]) from error


def default_workers(processes: int = 1) -> int:
    """Return the number of CPU cores for each of `processes` on this machine, 1 to 8."""
    return max(1, min(8, count_cores() // processes))
