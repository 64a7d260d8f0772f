"""How threads of matrix products wait for one another; decided before a library that starts them is loaded."""

from __future__ import annotations

from pathlib import Path

LOADAVG = Path("/proc/loadavg")
SPINS = 30_000
"""Turns (some ten microseconds) that a thread waits awake before it sleeps: a training step waits thousands of times,
and with threads that sleep at once it took 1.5 times as long on two cores. Beside other busy processes the same turns
are stolen from whoever has work: generation took twice as long, and 12 times with OpenMP's own default."""


def waiting_policy(loadavg: str, cores: int) -> dict[str, str]:
    """The OpenMP settings for a machine in this state.

    Args:
        loadavg: content of /proc/loadavg (its fourth field counts what runs now, this process included), or "".
        cores: processors of the machine.

    Returns:
        Environment variables of GNU OpenMP: wait awake for a moment where the machine is idle, else sleep at once.
    """
    fields = loadavg.split()
    running = fields[3].partition("/")[0] if len(fields) > 3 else ""
    others = int(running) - 1 if running.isdigit() else None
    if others is None or others > cores / 4:
        return {"OMP_WAIT_POLICY": "PASSIVE"}
    return {"GOMP_SPINCOUNT": str(SPINS)}


def loadavg() -> str:
    """What runs on this machine now; empty where the system does not say."""
    try:
        return LOADAVG.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
