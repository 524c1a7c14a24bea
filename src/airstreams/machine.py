"""The machine that a job runs on: what it is called, and what a long computation asks of its C library."""

import ctypes
import platform
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep the memory of freed tensors for the next ones.

    By default it gives large blocks back to the system, and each step then pays for fresh pages: 6 to 20 % of a
    training step's time on a CPU, and a third of a Mask R-CNN's. Elsewhere this does nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def hardware(device: torch.device) -> str:
    """What a job runs on, in words."""
    name = f"{_cpu()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    processes = PartialState().num_processes
    return name if processes == 1 else f"{processes} x {name}"


def _cpu() -> str:
    with suppress(OSError):  # Linux alone has this file; elsewhere Python knows the name
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
