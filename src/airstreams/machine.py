"""The machine that a job runs on: its name, the CPUs that the job may use, and settings of its C library."""

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from airstreams.errors import InputError, one_line, require
from airstreams.plural import count_of

if TYPE_CHECKING:
    import torch

DEVICE_NAMES = r"auto|cpu|cuda(:\d+)?|mps"
Precision = Literal["float32", "bfloat16"]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make the C library (glibc) keep the memory of freed tensors for the next ones.

    By default glibc returns large blocks to the system, and each step pays for fresh pages: 6 to 20 % of a training
    step's time on a CPU, and a third of Mask R-CNN's. With another C library this does nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_named(name: str, key: str = "device") -> "torch.device":
    """The torch device of a name: `cpu`, `cuda`, `cuda:1` or `mps`. `auto` is CUDA where there is a card, else the CPU.

    InputError: no such name, or this machine has no such device. `key` is how the message calls the name.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require(re.fullmatch(DEVICE_NAMES, name) is not None, key, name, "auto, cpu, cuda, cuda:N or mps")
    device, cards = torch.device(name), torch.cuda.device_count()
    there = {"cpu": True, "cuda": (device.index or 0) < cards, "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        seen = "no Apple GPU" if name == "mps" else f"{count_of(cards, 'CUDA card')} ({_why_no_card(device)})"
        advice = f"Give {'' if key == 'device' else f'--{key} '}cpu, or leave it out to take what there is."
        raise InputError(f"{key}: got {name}, but torch sees {seen}. {advice}")
    return device


def _why_no_card(device: "torch.device") -> str:
    """What torch says about a CUDA card that it does not find."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # an AssertionError where torch was built without CUDA
        return one_line(error)[:100]
    return "it is there by now"


def computes_in_bfloat16(device: "torch.device") -> bool:
    """Whether a device has instructions for bfloat16.

    CUDA cards from before 2020 (V100, T4, RTX 20) and CPUs without AVX512-BF16 or AMX convert bfloat16 numbers at each
    operation.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch does not document them
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)


def precision_on(
    device: "torch.device", asked: str = "auto", is_full_size: bool = False, key: str = "precision"
) -> Precision:
    """The precision in which a network runs on a device.

    asked: `float32`, `bfloat16` or `auto`: bfloat16 where the device computes in it. On a CPU the network must also be
        full size, because a small one is hardly faster in bfloat16.
    InputError: bfloat16 on a device of Apple. `key` is how the message calls the precision.
    """
    require(asked in ("auto", "float32", "bfloat16"), key, asked, "auto, float32 or bfloat16")
    if asked == "bfloat16" and device.type not in ("cpu", "cuda"):
        raise InputError(f"{key}: got {asked}, but networks run in float32 on {device.type}. Give float32.")
    gains = computes_in_bfloat16(device) and (device.type == "cuda" or is_full_size)
    return "bfloat16" if asked == "bfloat16" or (asked == "auto" and gains) else "float32"


def autocast(device: "torch.device", precision: Precision) -> "torch.autocast":
    """The context in which a network runs in a precision. Losses and optical flow stay in float32 in it."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def cpus() -> int:
    """How many CPUs this process may use: those of its affinity, or fewer if a control group limits its CPU time."""
    available = _affinity()
    return max(1, min(available, math.ceil(min(_quotas(), default=available))))


def heed_cpu_quota() -> None:
    """Limit the threads that torch starts to the CPUs of the quota. Call it before torch is imported.

    torch looks at the affinity alone. A training with 64 threads on a quota of half a CPU took 2.8 times as long as
    with one thread.
    """
    if cpus() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """The CPU time, in CPUs, that each of the process's control groups on Linux allows (versions 1 and 2)."""
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = mounted / "cpu" if controllers else mounted
            # In a container the files of its own group may stand at the root, whatever the group is called outside.
            for folder in (root / group.lstrip("/"), *(root / group.lstrip("/")).parents):
                quota = _quota(folder, version=1 if controllers else 2)
                if quota is not None:
                    yield quota


def _quota(folder: Path, version: int) -> float | None:
    """The quota in a control group's folder, in CPUs; None: no limit, or no such folder."""
    with suppress(OSError, ValueError):
        if version == 1:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            quota, period = (folder / "cpu.max").read_text().split()
        if int(quota) > 0:  # -1 and "max" mean no limit
            return int(quota) / int(period)
    return None


def hardware(device: "torch.device") -> str:
    """The name of what a job runs on: the CPU with its threads, or the card; with several processes, how many."""
    import torch
    from accelerate import PartialState

    name = f"{_cpu()}, {count_of(torch.get_num_threads(), 'thread')}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        name = f"{_cpu()}, its GPU (mps)"
    processes = PartialState().num_processes
    return name if processes == 1 else f"{processes} x {name}"


def _cpu() -> str:
    with suppress(OSError):  # only Linux has this file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
