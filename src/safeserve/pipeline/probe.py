"""How fast this machine multiplies matrices and moves memory: measured in a second, kept in the cache."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safeserve.core.errors import SafeserveError
from safeserve.core.options import stable_hash
from safeserve.core.runs import read_json, write_json
from safeserve.models.embedded import cache_dir
from safeserve.pipeline.machine import cpu_model, is_busy, package_version, usable_cores

if TYPE_CHECKING:
    import torch

LARGEST = 8192
"""Largest side of the square matrices that are multiplied."""
LONG_ENOUGH = 0.03
"""Seconds that one product should take, so that starting it does not count."""


@dataclass(frozen=True)
class Rates:
    """What the machine reaches at best.

    Attributes:
        gemm: floating-point operations a second in products of large matrices (a multiply-add is two).
        bandwidth: bytes a second, read and written, in copying memory.
    """

    gemm: float
    bandwidth: float


def rates_of(device: str, dtype: str, fresh: bool = False) -> Rates:
    """The rates for one kind of number: kept ones of the same machine, threads and torch, else measured now.

    Args:
        fresh: measure even if rates are kept, and keep the new ones.
    """
    path, key = kept_in(), machine_key(device, dtype)
    kept = _kept(path)
    if not fresh and (row := kept.get(key)):
        return Rates(row["gemm"], row["bandwidth"])
    found = Rates(gemm_rate(device, dtype), bandwidth(device))
    if not is_busy():  # a machine that was busy once must not look slow for ever
        with contextlib.suppress(SafeserveError):  # a cache that cannot be written costs a second each time, no more
            write_json(path, {**kept, key: asdict(found)})
    return found


def kept_in() -> Path:
    """The file of measured rates."""
    return cache_dir() / "rates.json"


def machine_key(device: str, dtype: str) -> str:
    """Changes with everything that the rates depend on."""
    import torch

    name = torch.cuda.get_device_name(0) if device.startswith("cuda") else cpu_model()
    return stable_hash([name, usable_cores(), torch.get_num_threads(), package_version("torch"), dtype])


def gemm_rate(device: str, dtype: str, seconds: float = 0.4) -> float:
    """Best rate of a product of square matrices, in FLOP/s, as large as fits the time."""
    import torch

    side, best = 256, 0.0
    began = time.perf_counter()
    while True:
        a = torch.ones(side, side, dtype=getattr(torch, dtype), device=device)
        out = torch.mm(a, a)
        took = timed(lambda a=a, out=out: torch.mm(a, a, out=out), device)  # type: ignore[misc]
        best = max(best, 2 * side**3 / took)
        if took < LONG_ENOUGH and side < LARGEST:
            side *= 2
        elif time.perf_counter() - began > seconds:
            return best


def bandwidth(device: str, size: int = 1 << 27) -> float:
    """Best rate of copying ``size`` bytes, counted once read and once written, in bytes/s."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return max(2 * size / timed(lambda: target.copy_(source), device) for _ in range(5))


def timed(work: Callable[[], torch.Tensor], device: str) -> float:
    """Seconds of one call, the accelerator's work included."""
    import torch

    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return max(time.perf_counter() - started, 1e-9)


def _kept(path: Path) -> dict[str, dict[str, float]]:
    """What was kept; nothing where the file is missing or no longer readable."""
    try:
        return read_json(path)
    except (SafeserveError, OSError):
        return {}
