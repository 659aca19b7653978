"""One process or many: the exchanges between the processes that torchrun starts.

With one process nothing is exchanged, so callers need no separate path. Values on the CPU travel through gloo, those on
a GPU through nccl. If one process ends, the others end too, so none waits forever.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists: otherwise its functions keep the group as a default value
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from change.common.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # wait this long for a slower process; gloo notices at once if a process has ended


# --- processes -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Join the processes that torchrun started, if there are any; at the end, wait for the slowest and leave.

    After an error this process leaves at once, and the others notice that it is gone.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes do not find each other ({error}): start them with torchrun") from error
    with warnings.catch_warnings():
        # DistributedDataParallel also compares the strides of dimensions of size 1, which have no meaning.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield
    if dist.is_initialized():
        wait()
        # Collect cycles that hold the group: its gloo threads would abort Python if they freed a tensor at exit.
        gc.collect()
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def neighbours() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


# --- exchanges -----------------------------------------------------------------------------------------------------


# Words in the errors of gloo and nccl that mean that another process is gone.
LOST_PROCESS = ("connection closed", "connection reset", "broken pipe", "timed out", "remote process", "nccl error")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Guard an exchange. Raises UserError if another process has ended; other errors stay as they are."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(sign in text.lower() for sign in LOST_PROCESS):
            raise
        cause = text.strip().partition("\n")[0]
        raise UserError(
            f"another process of this run has ended, so this one ends too ({cause}); the files on disk are complete: "
            "see what that process reports, then start again, for training with --continue_run"
        ) from error


def wait() -> None:
    """Wait until all processes have reached this point."""
    largest([0])


def largest(values: Sequence[int]) -> list[int]:
    """Return the maximum of each value over the processes."""
    if processes() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    with together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return [int(value) for value in found.tolist()]


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor on the CPU over the processes, in place, and return it."""
    if processes() > 1:
        with together():
            dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """Return the value of every process, by rank."""
    if processes() == 1:
        return [value]
    found: list[T] = [value] * processes()
    with together():
        dist.all_gather_object(found, value)
    return found


def gather_on_first(value: T) -> list[T]:
    """Return the value of every process on process 0, and an empty list on the others; for large values."""
    if processes() == 1:
        return [value]
    found: list[T] = [value] * processes() if rank() == 0 else []
    with together():
        dist.gather_object(value, found or None)
    return found


# --- networks ------------------------------------------------------------------------------------------------------


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Let the batch norms of a network on a GPU use the statistics of all processes; weight names do not change.

    torch has no such batch norm for the CPU: there each process keeps its own, see `average_statistics`.
    """
    if processes() > 1 and device.type == "cuda":
        # Importing timm takes seconds. torch's own function would drop the activation in timm's batch norms.
        from timm.layers.norm_act import convert_sync_batchnorm

        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        network.train(network.training)  # timm 1.0.3 leaves the new layers in training mode


def average_statistics(network: nn.Module) -> None:
    """Average, over the processes, the running statistics of batch norms that are not synchronised.

    They are linear in the statistics of the batches, so averaging once at the end equals averaging after every step.
    """
    # SyncBatchNorm is not a subclass of BatchNorm2d.
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]

    def average(joined: Tensor) -> None:
        dist.all_reduce(joined)
        joined /= processes()

    exchange_at_once(running, average)


def share_weights(network: nn.Module) -> None:
    """Copy the weights of process 0: equal seeds may give slightly different weights on different hardware."""
    floats = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    exchange_at_once(floats, lambda joined: dist.broadcast(joined, 0))


def share_gradients(module: nn.Module) -> nn.Module:
    """Return a form of a module whose backward pass averages the gradients over the processes; the weights are shared.

    Gradients that are ready are exchanged while others are still computed. Call the returned module, and its backward
    pass, within `exchange_gradients`. Every backward pass must reach all parameters.
    """
    if processes() == 1:
        return module
    # Batch norms keep their own statistics, see `average_statistics`. torch 2.13 has renamed this option.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    with together():
        return DistributedDataParallel(module, **options)


@contextlib.contextmanager
def exchange_gradients(shared: nn.Module, last: bool) -> Iterator[None]:
    """Guard a forward and a backward pass of a module from `share_gradients`.

    Gradients add up in this process until the last micro-batch of a step, and are exchanged in its backward pass.
    Raises UserError if another process has ended.
    """
    with together(), contextlib.ExitStack() as stack:
        if isinstance(shared, DistributedDataParallel) and not last:
            stack.enter_context(shared.no_sync())
        yield


def exchange_at_once(tensors: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """Apply an exchange to all tensors joined into one, in place: hundreds of small exchanges take far longer."""
    if processes() == 1 or not tensors:
        return
    joined = torch.cat([tensor.detach().flatten() for tensor in tensors])
    with together():
        exchange(joined)
    pieces = torch.split(joined, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        torch._foreach_copy_(list(tensors), [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)])
