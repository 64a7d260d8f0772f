"""Benchmarks and suites as small declarations: a prompt source bound to its decoding length and its judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import stable_hash
from safeserve.data.records import Label, Prompt


@dataclass(frozen=True)
class Benchmark:
    """Where prompts come from and how their answers are judged.

    Attributes:
        source: a name in the data registry.
        judges: families of judges meant for it, beside those that can judge any answer (``registry.GENERAL``).
        label: keep only prompts with this label (XSTest holds both kinds); None keeps all.
        max_new_tokens: longest answer, in tokens.
    """

    name: str
    source: str
    judges: tuple[str, ...] = ()
    label: Label | None = None
    max_new_tokens: int = 120


STARTER = (
    Benchmark("starter-harmful", "starter/eval_harmful", max_new_tokens=96),
    Benchmark("starter-look-alike", "starter/eval_look_alike", max_new_tokens=96),
    Benchmark("starter-helpful", "starter/eval_helpful", judges=("short_answer",), max_new_tokens=32),
)
PUBLIC = (
    Benchmark("I-MaliciousInstructions", "I-MaliciousInstructions"),
    Benchmark("I-CoNa", "I-CoNa"),
    Benchmark("I-Controversial", "I-Controversial"),
    Benchmark("Q-Harm", "Q-Harm"),
    Benchmark("I-Alpaca", "I-Alpaca"),
    Benchmark("XSTest-safe", "xstest", label="benign"),
    Benchmark("XSTest-unsafe", "xstest", label="harmful"),
    STARTER[2],
)
SUITES: dict[str, tuple[Benchmark, ...]] = {"starter": STARTER, "public": PUBLIC}
"""``public``: the paper's three harmfulness sets, Q-Harm, I-Alpaca, both sides of XSTest, and the starter's short
answers for the helpful side; needs ``data.root``."""


def suite(names: str | Sequence[str]) -> tuple[Benchmark, ...]:
    """The benchmarks of one suite, or of several ("starter+public", or a list).

    Raises:
        UserError: a name that is no suite.
    """
    chosen: dict[str, Benchmark] = {}
    for name in names.split("+") if isinstance(names, str) else names:
        if name not in SUITES:
            raise UserError(f'suite: unknown name "{name}".{did_you_mean(name, SUITES)}')
        chosen.update({benchmark.name: benchmark for benchmark in SUITES[name]})
    return tuple(chosen.values())


def load_benchmark(benchmark: Benchmark, root: str | None, limit: int | None = None) -> tuple[list[Prompt], str]:
    """The prompts of a benchmark (spread over its categories when limited) and their identity.

    Raises:
        UserError: the source is missing, or has no prompt with the label.
    """
    from safeserve.data.sources import load_prompts

    loaded = load_prompts(benchmark.source, root=root)
    rows = [row for row in loaded.rows if benchmark.label is None or row.label == benchmark.label]
    if not rows:
        raise UserError(f"{benchmark.name}: {benchmark.source} holds no {benchmark.label} prompt.")
    rows = [replace(row, benchmark=benchmark.name) for row in every_category(rows, limit)]
    return rows, stable_hash([loaded.identity, [row.id for row in rows]])


def every_category(rows: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most ``limit`` rows, taken in turn from each category, in the source's order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    queues: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        queues.setdefault(row.category, []).append(index)
    chosen: list[int] = []
    while len(chosen) < limit:
        for queue in queues.values():
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(0))
    return [rows[index] for index in sorted(chosen)]
