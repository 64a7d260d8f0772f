"""What is known from outside an evaluation: the benchmarks' own prompts, training data, published rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from safeserve.core.errors import UserError
from safeserve.data.catalogue import SOURCES
from safeserve.data.sources import load_any, load_prompts
from safeserve.evaluation.findings import Finding
from safeserve.evaluation.folder import EvalFolder
from safeserve.evaluation.hygiene import is_impossible


def expected_prompts(benchmarks: Iterable[str], root: str | None) -> dict[str, list[str]]:
    """Prompts of the benchmarks that are declared sources, in their published order; none without ``root``."""
    found: dict[str, list[str]] = {}
    for name in benchmarks:
        if root is not None and name in SOURCES and SOURCES[name].holds == "prompts":
            found[name] = [prompt.text for prompt in load_prompts(name, root=root).rows]
    return found


def training_prompts(names: Sequence[str], root: str | None) -> list[str]:
    """Texts of the prompts in training data: demonstrations, pairs or prompts, by source name or file.

    Raises:
        UserError: no such source or file, or one that cannot be read.
    """
    texts = []
    for name in names:
        for row in load_any(name, root=root).rows:
            texts.append(next((turn["content"] for turn in reversed(row.messages) if turn["role"] == "user"), ""))
    return texts


def claimed_rates(side: EvalFolder, claims: Sequence[str]) -> Iterator[Finding]:
    """H7 for published percentages, ``BENCHMARK=PERCENT``: one that no count of the benchmark's answers gives.

    Raises:
        UserError: not of that form, or a benchmark that the side does not have.
    """
    for claim in claims:
        name, _, text = claim.partition("=")
        if name not in side.benchmarks:
            raise UserError(f"--claim {claim}: no benchmark {name!r} (found: {', '.join(side.benchmarks)}).")
        text = text.strip().removesuffix("%").strip()
        try:
            percent = float(text)
            if not math.isfinite(percent):
                raise ValueError
        except ValueError:
            raise UserError(f"--claim {claim}: expected BENCHMARK=PERCENT, for example {name}=52.5.") from None
        n = len(side.benchmarks[name].completions)
        if is_impossible(percent, n, len(text.partition(".")[2])):
            where = f"{name}, {side.model}"
            yield Finding("H7", "error", where, f"claimed {text} % of {n} is no whole number of answers.")
