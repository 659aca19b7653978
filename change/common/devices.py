"""Devices and number formats: what the machine has, and what `auto` stands for on it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from change.common import distributed
from change.common.errors import UserError

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Choose the device of this process: `name` is auto, cpu, cuda, mps or the number of a GPU.

    If several processes run, each takes its own GPU. Raises UserError if there is no such device.
    """
    device = find_device(name)
    if distributed.processes() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(f"--device {name}: with several processes each takes its own GPU; use --device cuda or cpu")
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise UserError(
            f"{distributed.neighbours()} processes, but torch sees {count} GPUs here: start one per GPU, or use "
            "--device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def find_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda, mps or the number of a GPU into a device. Raises UserError if there is no such device."""
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto" and cuda:
        return torch.device("cuda")
    if name == "auto":
        return torch.device("mps" if mps else "cpu")
    if name == "cpu" or (name == "mps" and mps) or (name == "cuda" and cuda):
        return torch.device(name)
    if name.isdecimal() and int(name) < torch.cuda.device_count():
        return torch.device("cuda", int(name))
    if name in ("cuda", "mps") or name.isdecimal():
        found = f"{torch.cuda.device_count()} CUDA devices" if cuda else "no CUDA device"
        raise UserError(f"--device {name}: torch sees {found}{' and MPS' if mps else ''}; use --device auto or cpu")
    raise UserError(f"--device {name}: choose auto, cpu, cuda, mps or the number of a GPU")


def choose_amp(name: str, device: torch.device, training: bool = False) -> str:
    """Replace `auto` by the number format for `device`; return every other `name` as it is.

    With CUDA, prediction uses fp16, whose masks are closer to those of float32 than those of bf16 (IoU 0.999 against
    0.992). Training uses bf16 if the hardware has it, because its range needs no loss scaling, else fp16. On a CPU both
    use bf16 if the CPU has instructions for it, else float32 ("off"). Other devices use float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if training and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if cpu_has_bf16() else "off"
    return "off"


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware_name(device: torch.device) -> str:
    """Name the hardware of a device: a GPU, or a CPU and the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return f"{name}, {threads} thread{plural}" if device.type == "cpu" else f"{device.type} of {name}"


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a CUDA device, or the free RAM for any other; None if it is unknown.

    The limits of a container are not considered.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


@contextlib.contextmanager
def exact_float32(dtype: torch.dtype) -> Iterator[None]:
    """If `dtype` is float32, let cuDNN compute convolutions in float32, not in TF32, inside this context."""
    before = torch.backends.cudnn.allow_tf32
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX); else bf16 is slower."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests if test is not None)
