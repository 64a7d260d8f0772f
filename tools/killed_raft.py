"""``kill -9`` at random moments of a RAFT recipe: does every continuation end in the same selected rows?

    python tools/killed_raft.py RECIPE FOLDER [KILLS] [key=value ...]

Runs the recipe's RAFT stages once undisturbed in FOLDER/whole, then KILLS times (10), killed once at a random moment
of the time that the first run took and started again. A run that ended before its moment came says nothing: it is done
again with an earlier one. FOLDER/killed.json holds what was killed when, and whether the rows were the same.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FILES = ("selected.jsonl", "pairs.jsonl", "samples.jsonl")
ATTEMPTS = 5
"""Moments that are tried for one kill."""


def command(recipe: str, folder: Path, changes: list[str]) -> list[str]:
    """The command that trains the RAFT stages in a folder."""
    return [sys.executable, "-m", "safeserve", "train", "raft", recipe, *changes, "--out", str(folder), "--quiet"]


def selected(folder: Path) -> dict[str, bytes]:
    """Content of the files that must be equal, by their place in the run."""
    paths = [path for name in FILES for path in sorted(folder.glob(f"stages/train-*/iter-*/{name}"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def killed_after(seconds: float, started: list[str]) -> bool:
    """Start a command and kill it after so many seconds; False where it had ended by itself.

    Raises:
        RuntimeError: it failed before it was killed.
    """
    process = subprocess.Popen(started)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"ended with {process.returncode} before it was killed: {' '.join(started)}")
    return process.returncode == -signal.SIGKILL


def kill(started: list[str], folder: Path, longest: float, chance: random.Random) -> float:
    """Kill the command at a random moment of its first ``longest`` seconds, and return that moment.

    Raises:
        RuntimeError: it was always over before.
    """
    for _ in range(ATTEMPTS):
        moment = chance.uniform(0.05, 0.95) * longest
        if killed_after(moment, started):
            return moment
        shutil.rmtree(folder)
        longest = moment
    raise RuntimeError(f"over before it could be killed, {ATTEMPTS} times: {' '.join(started)}")


def main(recipe: str, out: Path, kills: int, changes: list[str]) -> int:
    """Returns how many continuations ended otherwise."""
    began = time.monotonic()
    subprocess.run(command(recipe, out / "whole", changes), check=True)
    took, whole = time.monotonic() - began, selected(out / "whole")
    if not any(whole.values()):
        raise RuntimeError(f"{recipe}: no selected rows, so nothing could be compared")
    print(f"undisturbed: {took:.0f} s, {len(whole)} files")
    chance = random.Random(1)
    rows: list[dict[str, Any]] = []
    for number in range(kills):
        folder = out / f"killed-{number}"
        started = command(recipe, folder, changes)
        moment = kill(started, folder, took, chance)
        there = len(selected(folder))
        subprocess.run(started, check=True)
        rows.append({"seconds": round(moment, 2), "files_there": there, "same": selected(folder) == whole})
        found = {"recipe": recipe, "changes": changes, "undisturbed_seconds": round(took, 2), "kills": rows}
        (out / "killed.json").write_text(json.dumps(found, indent=2) + "\n")
        print(f"killed after {moment:.0f} s ({there} files there): {'the same' if rows[-1]['same'] else 'OTHER ROWS'}")
    return sum(not row["same"] for row in rows)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    given = sys.argv[3:]
    count = int(given.pop(0)) if given and given[0].isdigit() else 10
    sys.exit(1 if main(sys.argv[1], Path(sys.argv[2]), count, given) else 0)
