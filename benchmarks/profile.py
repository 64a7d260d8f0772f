"""Where the time of training goes: DPO with its reference pass under torch's profiler, by kind of work.

What it proves: how much of an epoch (SmolLM2-135M, 32 PKU pairs in steps of 8) is matrix products, how near these come
to the peak of a large square one, and what the rest is. The epoch runs once without the profiler, which costs some time
itself, and once with it; the shares are those of the second.

Run it alone on the machine, from the repository's root; on two cores about five minutes:

    python -m benchmarks.profile
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks import training, workloads
from benchmarks.common import offline, parser, save, say
from benchmarks.growth import ready
from benchmarks.training import Setup

PRODUCTS, ATTENTION, REST = "products with the weights", "attention", "element-wise, sums, norms"
OUTSIDE = "outside torch (Python, files)"
KINDS = {
    PRODUCTS: ("mm", "addmm", "addmm_"),
    ATTENTION: ("bmm", "baddbmm", "softmax", "scaled_dot_product"),
    "copies and look-ups": ("copy", "cat", "index", "gather", "scatter", "embedding", "clone"),
}
"""Kinds of work by how the names of torch's operators begin, those of products in full."""


def kind_of(operator: str) -> str:
    """The kind of work of one operator, as ``attention`` for ``aten::bmm``."""
    if not operator.startswith("aten::"):
        return OUTSIDE  # what a layer's own backward pass does between torch's operators
    name = operator.removeprefix("aten::").lstrip("_")
    if name in KINDS[PRODUCTS]:
        return PRODUCTS
    return next((kind for kind, starts in KINDS.items() if kind != PRODUCTS and name.startswith(starts)), REST)


def by_kind(events: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Seconds by kind of work, largest first.

    Args:
        events: operators with the seconds that they spent themselves.
        wall: seconds in all; what no operator spent is Python's.
    """
    found: Counter[str] = Counter()
    for name, seconds in events:
        found[kind_of(name)] += seconds
    found[OUTSIDE] += max(0.0, wall - sum(found.values()))
    return dict(found.most_common())


def main() -> None:
    """Measure and write the JSON."""
    from torch.profiler import ProfilerActivity, profile

    made = parser(__doc__, repeats=1)
    made.add_argument("--pairs", type=int, default=32)
    options = made.parse_args()
    offline()
    setup, count = Setup(workloads.model_name(options), options.dtype), 8 if options.quick else options.pairs
    first = ready(setup, count, options.data, options.quick)
    pairs, gemm, gflop = first.pairs, first.gemm, first.gflop * len(first.pairs)
    plain = training.ours("dpo", setup, pairs, loaded=setup.load())
    loaded = setup.load()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        profiled = training.ours("dpo", setup, pairs, loaded=loaded)
    events = [(event.key, event.self_cpu_time_total / 1e6) for event in seen.key_averages()]  # microseconds
    seconds = by_kind(events, profiled.seconds)
    result: dict[str, Any] = {
        "pairs": len(pairs),
        "seconds": {"plain": plain.seconds, "profiled": profiled.seconds},
        "by_kind": seconds,
        "operators": dict(sorted(events, key=lambda event: -event[1])),
        "gemm": gemm,
        "share_of_peak": gflop / plain.seconds / gemm,
        "share_of_products": gflop / seconds[PRODUCTS] / gemm,
    }
    for kind, spent in seconds.items():
        say(f"{kind:32} {spent:6.1f} s  {spent / profiled.seconds:4.0%}")
    say(f"share of the peak: {result['share_of_peak']:.0%}, products alone {result['share_of_products']:.0%}")
    save(f"profile-{options.dtype}", result, options)


if __name__ == "__main__":
    main()
