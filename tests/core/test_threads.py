"""How threads wait: awake on an idle machine, asleep on a busy one or where nothing is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safeserve.core import threads
from safeserve.core.threads import waiting_policy

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(
    ("loadavg", "cores", "spins"),
    [
        ("3.70 3.29 2.69 1/85 6609\n", 2, True),  # what ran a minute ago does not matter
        ("0.00 0.00 0.00 2/85 6609\n", 2, False),  # one other process on two cores
        ("0.00 0.00 0.00 4/85 6609\n", 16, True),
        ("0.00 0.00 0.00 6/85 6609\n", 16, False),
        ("", 2, False),
        ("no numbers at all here\n", 2, False),
    ],
)
def test_threads_wait_awake_where_nothing_else_runs(loadavg: str, cores: int, spins: bool) -> None:
    assert waiting_policy(loadavg, cores) == ({"GOMP_SPINCOUNT": "30000"} if spins else PASSIVE)


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "nothing")
    assert waiting_policy(threads.loadavg(), 2) == PASSIVE


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_the_command_line_leaves_what_the_user_set(given: dict[str, str]) -> None:
    code = (
        "import os, sys; sys.argv = ['safeserve', '--help']\n"
        "from safeserve.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')\n"
        "print([(n, os.environ[n]) for n in names if n in os.environ], file=sys.stderr)\n"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last in (
        [f"[{item!r}]" for item in given.items()]
        or [f"[{item!r}]" for item in (*PASSIVE.items(), ("GOMP_SPINCOUNT", "30000"))]
    )
