"""What the numbers were measured on: processor, cores, memory, accelerator, versions."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
"""Flags of /proc/cpuinfo that matter for matrix products, by the names people know."""


def peak_memory_bytes() -> int:
    """Largest resident memory of this process, since its start or the last :func:`reset_peak_memory`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak_memory() -> None:
    """Begin a new peak, so that each stage has its own; where the system cannot, peaks only rise."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def gib(size: float) -> float:
    """Bytes as GiB, to two digits."""
    return round(size / (1 << 30), 2)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerator and library versions."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": {name: package_version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "git": _git(),
    }


def cpu_model() -> str:
    """The processor as the system names it."""
    info = _cpuinfo()
    return info.get("model name") or info.get("CPU part") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of :data:`INSTRUCTIONS` that this processor has."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [name for flag, name in INSTRUCTIONS.items() if flag in flags]


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (a container's limit)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _control_groups("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # version 1
        if quota.isdigit() and period.isdigit():
            quotas.append(math.ceil(int(quota) / int(period)))
    return max(1, min([affinity, *quotas]))


def load() -> float:
    """Processes that wanted a core, on average over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def is_busy() -> bool:
    """Whether others use so much of the cores that a measurement would be of them."""
    return load() > usable_cores() + 0.5


def free_memory() -> int | None:
    """Bytes that can still be taken: what the system calls available, within the control group's limit."""
    lines = _read(Path("/proc/meminfo")).splitlines()
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    for folder in _control_groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _read(folder / limit), _read(folder / used)
            if most.isdigit() and now.isdigit():
                found.append(max(0, int(most) - int(now) + _reclaimable(folder)))
    return min(found) if found else None


def package_version(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries."""
    entries: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, separator, value = line.partition(":")
        if separator:
            entries.setdefault(key.strip(), value.strip())
    return entries


def _control_groups(controller: str) -> list[Path]:
    """Folders of this process's control group and those above it, whichever version the system has."""
    root = Path("/sys/fs/cgroup")
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = root if not names else root / controller
        place = top / path.lstrip("/")
        folders += [folder for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return folders


def _reclaimable(folder: Path) -> int:
    """Bytes of files that a control group holds in memory and gives back when asked."""
    rows = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
    return int(rows.get("inactive_file") or rows.get("total_inactive_file") or 0)


def _read(path: Path) -> str:
    """A file's text without the line end; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _git() -> str | None:
    """Commit of the checkout that this package runs from, marked when changed; None when it is not tracked there."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an environment inside someone's repository is not a checkout
        return git("describe", "--always", "--dirty", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError):
        return None
