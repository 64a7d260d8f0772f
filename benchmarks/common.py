"""What every speed benchmark shares: alternating runs, the GEMM peak, memory in a fresh process, results as JSON."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from safeserve.core.runs import write_json
from safeserve.pipeline.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]


class Disagreement(SystemExit):
    """Both sides do not compute the same thing, so no time is taken: the process ends with this message."""


@dataclass(frozen=True)
class Run:
    """One timed run.

    Attributes:
        units: what was done (pairs, rows or new tokens).
        seconds: what it took.
        more: what else is worth keeping, for JSON.
    """

    units: float
    seconds: float
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Its numbers, without what is long."""
        short = {key: value for key, value in self.more.items() if isinstance(value, int | float | str)}
        return {"units": self.units, "seconds": self.seconds, **short}


def alternate(
    sides: Mapping[str, Callable[[], Run]], rounds: int, peak: Callable[[], float] | None = None
) -> dict[str, list[Run]]:
    """Run every side once a round, in the order given, so that a slower hour of the machine meets all of them.

    Args:
        peak: GFLOP/s of a large matrix product; measured right before each run and kept as its ``gemm``, because a
            shared machine's own rate changes by a third within the hour.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, run in sides.items():
            gc.collect()
            before = {"gemm": peak()} if peak else {}
            done = run()
            runs[name].append(replace(done, more={**done.more, **before}))
            say(f"round {number}/{rounds}  {name}: {runs[name][-1].rate:.3g}/s in {runs[name][-1].seconds:.1f} s")
    return runs


def ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """How many times as fast: the median of the pairwise ratios of two lists of rates, with its spread.

    Returns:
        ``median``, ``low`` and ``high`` (the least and the largest of the pairs) and ``n``.
    """
    pairs = [a / b for a, b in zip(ours, peer, strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs), "n": len(pairs)}


def compared(runs: Mapping[str, Sequence[Run]], ours: str = "safeserve") -> dict[str, Any]:
    """Every side's runs with their median rate, and our ratio to each of the others; ready for JSON."""
    rates = {name: [run.rate for run in done] for name, done in runs.items()}
    return {
        "sides": {
            name: {"rate": statistics.median(rates[name]), "runs": [run.to_json() for run in done]}
            for name, done in runs.items()
        },
        "ratios": {name: ratio(rates[ours], rates[name]) for name in runs if name != ours},
    }


def tuned(
    candidates: Mapping[str, dict[str, Any]], measure: Callable[[dict[str, Any]], Run], warm: bool = False
) -> dict[str, Any]:
    """Measure each candidate's settings once on a short run and name the fastest; what fails is kept with its error.

    Args:
        warm: run each once before, untimed: on a GPU some settings compile in their first run.

    Returns:
        ``best`` (a name), ``settings`` (its settings) and ``tried`` (each name's settings with ``rate`` or ``error``).
    """
    tried: dict[str, dict[str, Any]] = {}
    for name, settings in candidates.items():
        gc.collect()
        try:
            if warm:
                measure(settings)
            tried[name] = {"settings": settings, "rate": measure(settings).rate}
            say(f"tuning  {name}: {tried[name]['rate']:.3g}/s")
        except Disagreement:
            raise
        except Exception as error:  # whatever a setting of the peer ends in, it is one that does not work here
            tried[name] = {"settings": settings, "error": f"{type(error).__name__}: {error}"[:300]}
            say(f"tuning  {name}: {tried[name]['error']}")
    return _fastest(tried)


def retuned(
    first: dict[str, Any], candidates: Mapping[str, dict[str, Any]], measure: Callable[[dict[str, Any]], Run]
) -> dict[str, Any]:
    """A further round of :func:`tuned`; the fastest of all rounds, and what was measured twice counts as the faster."""
    tried = dict(first["tried"])
    for name, found in tuned(candidates, measure)["tried"].items():
        if found.get("rate", 0.0) >= tried.get(name, {}).get("rate", 0.0):
            tried[name] = found
    return _fastest(tried)


def _fastest(tried: dict[str, dict[str, Any]]) -> dict[str, Any]:
    working = [name for name in tried if "rate" in tried[name]]
    if not working:
        raise Disagreement("none of the peer's settings works here")
    best = max(working, key=lambda name: tried[name]["rate"])
    return {"best": best, "settings": tried[best]["settings"], "tried": tried}


def gemm_peak(dtype: str, device: str, shapes: Sequence[tuple[int, int, int]], quick: bool = False) -> dict[str, Any]:
    """Achieved GFLOP/s of matrix products: a large square one, and (rows, in, out) of the model's own.

    Returns:
        ``square`` and ``own`` (by shape); shares of the peak are shares of ``square``.
    """
    return {
        "square": square_gemm(dtype, device, quick),
        "own": {f"{m}x{k}x{n}": _gemm(m, k, n, dtype, device) for m, k, n in shapes},
    }


def square_gemm(dtype: str, device: str, quick: bool = False) -> float:
    """GFLOP/s of a large square matrix product, the best of several."""
    side = 256 if quick else (8192 if device.startswith("cuda") else 2048)
    return _gemm(side, side, side, dtype, device)


def _gemm(m: int, k: int, n: int, dtype: str, device: str, repeats: int = 7) -> float:
    import torch

    a = torch.randn(m, k, device=device).to(getattr(torch, dtype))
    b = torch.randn(k, n, device=device).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * m * k * n / best


def achieved(result: dict[str, Any], flops: float, peaks: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the GEMM peak: the arithmetic one unit needs, times the rate, over the peak; a median over the runs.

    Args:
        flops: operations a unit.
        peaks: from :func:`gemm_peak`, before and after the runs; the better one is the peak of runs that have none of
            their own from right before them (:func:`alternate`).
    """
    peak = max(one["square"] for one in peaks)
    sides = result["sides"]
    gflops = {name: side["rate"] * flops / 1e9 for name, side in sides.items()}
    shares = {
        name: statistics.median(r["units"] / r["seconds"] * flops / 1e9 / r.get("gemm", peak) for r in side["runs"])
        for name, side in sides.items()
    }
    return {"gflop_per_unit": flops / 1e9, "gemm": peaks, "gflop_per_s": gflops, "share_of_peak": shares}


def synchronise(device: str) -> None:
    """Wait for the GPU, where there is one to wait for."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def gpu_before(device: str) -> int:
    """Bytes in use on the GPU before a run, whose peak is counted from here; 0 on a CPU."""
    if not device.startswith("cuda"):
        return 0
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def gpu_above(device: str, before: int) -> dict[str, int]:
    """``step_bytes``: the run's peak on the GPU above ``before``; nothing on a CPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"step_bytes": int(torch.cuda.max_memory_allocated()) - before}


def peak_rss() -> int:
    """Largest resident memory of this process since its start or the last reset of the peak, in bytes.

    Linux counts in ``ru_maxrss`` also what the parent held when it started this process, so ``VmHWM`` is read there.
    """
    return _status("VmHWM") or _maxrss()


def rss() -> int:
    """Resident memory of this process now, in bytes (its peak where the system does not tell)."""
    return _status("VmRSS") or _maxrss()


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(found[1]) * 1024 if (found := re.search(rf"{name}:\s+(\d+) kB", text)) else 0


def _maxrss() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_child(module: str, task: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m benchmarks.MODULE --child TASK`` prints as its last line, from a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--child", json.dumps(task)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} {task}: {done.stderr.strip()[-800:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """No progress bars and log lines of either side; an exception still comes through."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def say(line: str) -> None:
    """A line of progress on stderr."""
    print(line, file=sys.__stderr__, flush=True)


def parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help=f"alternating rounds (default {repeats})")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the model, on both sides")
    made.add_argument("--data", type=Path, help="folder with the public data (default: SAFESERVE_SHARED)")
    made.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/NAME-MACHINE.json)")
    made.add_argument("--quick", action="store_true", help="a tiny random model and little work: does it function?")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def offline() -> None:
    """Neither side asks the hub for anything, sends telemetry or draws bars."""
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1"
    )


def describe() -> dict[str, Any]:
    """The machine, as every run of safeserve notes it, with the processor's name and the peers' versions."""
    machine = describe_machine()
    for name in ("trl", "datasets", "flash-attn", "liger-kernel"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            machine["versions"][name] = importlib.metadata.version(name)
    return {**machine, "cpu": _cpu()}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"model name\s*:\s*(.+)", text):
            fast = " with AVX512-BF16" if "avx512_bf16" in text else ""
            return found[1].strip() + fast
    return platform.processor() or platform.machine()


def save(name: str, result: dict[str, Any], options: argparse.Namespace) -> Path:
    """Write a benchmark's JSON with date, machine and arguments; returns its path."""
    machine = describe()
    slug = re.sub(r"[^a-z0-9]+", "-", str(machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores").lower())
    path: Path = options.out or RESULTS / f"{name}{'-quick' if options.quick else ''}-{slug.strip('-')}.json"
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    given = {key: value for key, value in given.items() if key not in ("data", "out", "plot", "child")}
    header = {"benchmark": name, "date": date.today().isoformat(), "machine": machine, "arguments": given}
    write_json(path, {**header, **_rounded(result)})
    say(f"written: {path}")
    return path


def _rounded(value: Any) -> Any:
    """Floats to six digits: the files are kept in the repository."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
