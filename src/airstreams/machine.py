"""The machine that a job runs on: what it is called, how much of it is ours, what is asked of its C library."""

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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


def in_bfloat16(device: "torch.device") -> bool:
    """Whether networks run in bfloat16 there: on CUDA cards that compute in it, which those before 2020 do not.

    These (V100, T4, RTX 20) take its numbers and convert them at each operation; they run in float32.
    """
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cpus() -> int:
    """How many CPUs this process may use: those of its affinity, or fewer where control groups ration their time."""
    there = _affinity()
    return max(1, min(there, math.ceil(min(_quotas(), default=there))))


def heed_cpu_quota() -> None:
    """Have torch, which will be imported and goes by the affinity alone, start no more threads than there are CPUs for.

    With 64 threads on a quota of half a CPU a training took 2.8 times as long as with one.
    """
    if cpus() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """CPUs' worth of time that Linux's control groups allow this process: its own and those above, versions 1 and 2."""
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = mounted / "cpu" if controllers else mounted
            # A container may see its own group's files at the root, under whatever name the group has outside.
            for folder in (root / group.lstrip("/"), *(root / group.lstrip("/")).parents):
                with suppress(OSError, ValueError):
                    if controllers:
                        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        quota, period = (folder / "cpu.max").read_text().split()
                    if int(quota) > 0:  # -1 and "max" are none
                        yield int(quota) / int(period)


def hardware(device: "torch.device") -> str:
    """What a job runs on, in words."""
    import torch
    from accelerate import PartialState

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
