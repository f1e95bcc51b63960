"""What the figures were made on. No host name, no user, no path: a report may be published as it is."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import scumble


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory, versions, and how busy the machine was before the benchmark began."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scumble": scumble.__version__,
        "transformers": _version("transformers"),
        "device": device.type,
        "busy_before": busy_share(),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        facts |= {"gpu": about.name, "gpu_memory_bytes": about.total_memory}
    return facts


def busy_share(seconds: float = 0.3) -> float | None:
    """Share of all cores, 0 … 1, that other programs use while this one sleeps; None where the system does not say."""
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    if before is None or after is None:
        return None
    total = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])  # idle and waiting for a disk
    return round(1 - idle / total, 3) if total > 0 else None


def _cpu_times() -> list[int] | None:
    """Ticks of all cores so far: user, nice, system, idle, iowait, …"""
    try:
        return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None


def memory_bytes() -> int | None:
    """Memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def available_bytes() -> int | None:
    """Memory that a new program could use now; None where the system does not say."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    found = _kilobytes("/proc/self/status", "VmHWM:")
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now; its peak where the system does not say."""
    return _kilobytes("/proc/self/status", "VmRSS:") or peak_bytes()


def _kilobytes(file: str, name: str) -> int | None:
    try:
        with open(file) as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
