"""Processors and memory of this process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# `mallopt` parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER_TRIM = 2**31 - 1  # bytes of free memory at the end of the heap that are not returned
_DEFAULT_MMAP_MAX = 65536
_MAX_MMAP_THRESHOLD = 32 * 2**20  # glibc reaches it by itself in a process that frees large blocks

_VECTORS = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx512f": "AVX-512", "avx2": "AVX2"}  # the best first
REFUSED = "free some memory, raise the limits of memory and threads, or use fewer images or a smaller model"
_REFUSALS = re.compile(  # by the loader, C++, ONNX Runtime, PyTorch and Python, in errors that they share with others
    r"bad[_ ]alloc|failed to allocate|can't allocate memory|cannot allocate memory|DefaultCPUAllocator|out of memory"
    r"|can't start new thread|pthread_create|resource temporarily unavailable|failed to map segment",
    re.IGNORECASE,
)


def is_refused(error: BaseException) -> bool:
    """Return True if the system refused memory or a thread."""
    return isinstance(error, MemoryError) or _REFUSALS.search(str(error)) is not None


def cores() -> int:
    """Return the number of processors that this process may use, by its affinity and the CPU quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota(), _at_most[-1])))


_at_most = [math.inf]


def use_at_most(threads: int) -> None:
    """Have `cores` return no more than this many in this process, and so all that is sized by it."""
    _at_most[:] = [threads]


@cache
def cpu_quota(system: Path = Path("/")) -> float:
    """Return the processors' worth of time that control groups (version 1 or 2) allow; infinity without a limit.

    `system` is the folder with `proc` and `sys`. A group above may allow less than one below.
    """
    try:
        groups = (system / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    limit = math.inf
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folders = [base / path.strip("/"), *(base / path.strip("/")).parents]
        for folder in folders:
            if folder.is_relative_to(base):
                limit = min(limit, _quota(folder))
    return limit


def _quota(group: Path) -> float:
    """Return the quota of one control group: `cpu.max` of version 2, or the two files of version 1."""
    try:
        quota, period = (group / "cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period"))
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.strip().isdigit() else math.inf


def processor_info(name: str) -> str:
    """Return a field of `/proc/cpuinfo`, such as "model name" or "flags"; empty if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def processor_kind() -> str:
    """Return the kind of processor that int8 sums depend on: "x86-64 VNNI", "x86-64 AVX2", ..., or the machine type."""
    machine = platform.machine() or "unknown"
    if machine.lower() not in ("x86_64", "amd64"):
        return machine
    flags = processor_info("flags").split()
    best = next((kind for flag, kind in _VECTORS.items() if flag in flags), None)
    return "x86-64" + (f" {best}" if best else "")


def own_environment() -> dict[str, str]:
    """Return the environment of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def resident_memory() -> int | None:
    """Return the resident memory of this process in bytes; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process inside the context; return it to the system afterwards.

    The output of a layer takes megabytes. By default glibc maps such a block when it is allocated and unmaps it when it
    is freed, so the system clears gigabytes of pages in every training step: half of the time with EfficientNet-Lite0
    and a batch size of 32. With a C library other than glibc this changes nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MAX_MMAP_THRESHOLD)
        libc.malloc_trim(0)
