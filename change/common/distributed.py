"""One process or many: what the processes that torchrun starts say to each other.

Nothing here does anything where there is one process, so that the callers have one path. Values on the CPU travel by
gloo, those on a GPU by nccl. A process that ends takes the others along: none waits for it for ever.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from change.common.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # with a process that has more to do; gloo notices at once one that has ended


# --- who is there --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; leave together, when the slowest is done.

    After an error there is no leaving together: the others then notice that this process is gone.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes do not find each other ({error}): start them by torchrun") from error
    yield
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def neighbours() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


# --- what they say -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around every exchange. Raises UserError where another process has ended before it."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended, so this one does too; what is on disk is whole: "
            "see what that one says, then start again, in training with --continue_run"
        ) from error


def wait() -> None:
    """Until all have come here."""
    largest([0])


def largest(values: Sequence[int]) -> list[int]:
    """Each value's largest over the processes."""
    if processes() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    with together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return [int(value) for value in found.tolist()]


def summed(values: Tensor) -> Tensor:
    """A tensor on the CPU, summed over the processes."""
    if processes() > 1:
        with together():
            dist.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """Every process's value, by rank."""
    if processes() == 1:
        return [value]
    found: list[T] = [value] * processes()
    with together():
        dist.all_gather_object(found, value)
    return found


def collected(value: T) -> list[T]:
    """As `gathered` on process 0, for what is large; empty on the others."""
    if processes() == 1:
        return [value]
    found: list[T] = [value] * processes() if rank() == 0 else []
    with together():
        dist.gather_object(value, found or None)
    return found


# --- networks ------------------------------------------------------------------------------------------------------


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Replace the batch norms inside by such that take the statistics of all processes' pairs; names of weights stay.

    On the CPU, for which torch has none, each keeps its own: see `average_statistics`.
    """
    if processes() > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


def average_statistics(network: nn.Module) -> None:
    """Make the running statistics of batch norms that are not synchronised the mean over the processes.

    They are linear in the batches' own: the mean of all steps, taken late, is that taken after every step.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]  # no SyncBatchNorm is one
    running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat)
        flat /= processes()

    in_one(running, mean)


def share_weights(network: nn.Module) -> None:
    """Take process 0's: what the same seed gives on other hardware may differ in the last bit, and would for good."""
    in_one([t for t in network.state_dict().values() if t.is_floating_point()], lambda flat: dist.broadcast(flat, 0))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum every gradient over the processes."""
    in_one([parameter.grad for parameter in parameters if parameter.grad is not None], dist.all_reduce)


def in_one(tensors: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """Apply an exchange to tensors in place, as one: a few hundred small ones would take far longer."""
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with together():
        exchange(flat)
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        torch._foreach_copy_(list(tensors), [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)])
