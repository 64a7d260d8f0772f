"""One comparison as rows of words: the terminal, Markdown and the page all show these, so they cannot disagree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safeserve.evaluation.metrics import PROVISIONAL, Metric, metrics_of
from safeserve.judging.registry import family, mode_judge

HEADLINE = (
    "safe_rate",
    "refusal_rate",
    "over_refusal_rate",
    "over_refusal_any_rate",
    "accuracy",
    "flagged_rate",
    "degenerate_rate",
)
"""Shares shown unless all are asked for; means are always shown."""
_PREFERRED = ("modes", "refusal", "short_answer", "exact_match", "ifeval", "guard")
"""Which family a number without a judge's name beside it comes from: the first that measured it."""
UNSCORED_CEILING = 0.02
SUMMARISED = ("H4", "H9", "H13")
"""Hygiene rules that :func:`hygiene_notes` tells of every model: in one sentence for all where a judge's numbers say
the same, else as they were found. What shows its notes leaves these rules out of a comparison's findings."""
_CEILINGS = (
    ("truncated_rate", 0.10, "H4", "More than 10 % cut off at the length limit, so what came next was not judged"),
    ("degenerate_rate", 0.05, "H13", "More than 5 % degenerate or empty, which counts as safe without being good"),
)
"""Metric, share above which a reader is warned, the rule that finds the same, and the warning."""


@dataclass(frozen=True)
class Row:
    """One benchmark and metric; ``change``: better or worse where the difference's interval excludes 0, else none."""

    benchmark: str
    metric: str
    n: int
    a: str
    b: str
    difference: str
    interval: str
    fixed: int | None
    broken: int | None
    p: str
    change: str

    @property
    def fixed_broken(self) -> str:
        """``90 / 0``; a dash for a mean, where no single answer is fixed or broken."""
        return "–" if self.fixed is None else f"{self.fixed} / {self.broken}"


def percent(share: float | None, digits: int = 1) -> str:
    """``0.8934`` as ``89.3 %``; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign: ``+53.6``."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def number(value: float | None) -> str:
    """A mean to three digits; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def change_of_number(difference: float) -> str:
    """A difference of means with its sign: ``+0.12``."""
    return f"{difference:+.3g}".replace("-", "−")


def p_text(p: float) -> str:
    """A p-value to three digits; never 0."""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def words(name: str) -> str:
    """``full_refusal`` as ``full refusal``."""
    return name.replace("_", " ")


def main_judge(metric: str, judges: Iterable[str]) -> str | None:
    """The judge that a chart of this metric shows where several measured it; None where none did."""
    found = [judge for judge in judges if any(metric == one.name for one in metrics_of(judge))]
    ranks = {group: rank for rank, group in enumerate(_PREFERRED)}
    return min(found, key=lambda judge: ranks.get(family(judge), len(ranks)), default=None)


def metric_cell(summary: Mapping[str, Any], benchmark: str, metric: str) -> Mapping[str, Any] | None:
    """A benchmark's cell of a rate by its :func:`main_judge`; None where nothing was measured."""
    judges = summary.get("benchmarks", {}).get(benchmark, {}).get("judges", {})
    judge = main_judge(metric, judges)
    cell: Mapping[str, Any] | None = judges[judge]["metrics"].get(metric) if judge else None
    return cell if cell and cell.get("rate") is not None else None


def shown_metrics(judges: Iterable[str], every: bool = False) -> list[Metric]:
    """What tables show of these judges, titled: the modes first, then the others with their judge's name.

    Where a guard stands behind the modes, those by rules alone are shown only if every metric is asked for.
    """
    names = list(judges)
    main = mode_judge(names)
    ordered = [name for name in names if name == main] + [name for name in names if name != main]
    chosen = []
    for judge in ordered:
        beside = judge != main and family(judge) not in ("short_answer", "exact_match", "ifeval")
        if beside and family(judge) == "refusal" and not every:
            continue
        for metric in metrics_of(judge):
            if every or metric.is_mean or metric.name in HEADLINE:
                chosen.append(replace(metric, title=f"{metric.title} ({judge})") if beside else metric)
    return chosen


def comparison_rows(comparison: Mapping[str, Any], every: bool = False) -> list[Row]:
    """Rows in the order benchmark, then metric; p-values are Holm-corrected over the benchmarks."""
    return [
        _row(benchmark, metric, cell)
        for benchmark, part in comparison["benchmarks"].items()
        for metric in shown_metrics(part["judge"], every)
        if (cell := part["judge"][metric.judge].get(metric.name)) is not None
    ]


def _row(benchmark: str, metric: Metric, cell: Mapping[str, Any]) -> Row:
    value, step = (number, change_of_number) if metric.is_mean else (percent, points)
    change, interval = "none", "–"
    if cell["ci95"] is not None:
        low, high = cell["ci95"]
        interval = f"{step(low)} to {step(high)}"
        if low > 0 or high < 0:
            change = "better" if (low > 0) == metric.higher_is_better else "worse"
    return Row(
        benchmark=benchmark,
        metric=metric.title,
        n=cell["n"],
        a=value(cell["a"]),
        b=value(cell["b"]),
        difference=step(cell["difference"]),
        interval=interval,
        fixed=cell.get("fixed"),
        broken=cell.get("broken"),
        p=p_text(cell["p_holm"]),
        change=change,
    )


def mode_totals(comparison: Mapping[str, Any]) -> list[tuple[str, dict[str, int], dict[str, int]]]:
    """(benchmark, modes of a, modes of b) from the transitions of the judge of modes."""
    totals = []
    for benchmark, part in comparison["benchmarks"].items():
        transitions = part["judge"].get(mode_judge(part["judge"]) or "", {}).get("transitions", {})
        before = {mode: sum(to.values()) for mode, to in transitions.items()}
        after: dict[str, int] = {}
        for to in transitions.values():
            for mode, count in to.items():
                after[mode] = after.get(mode, 0) + count
        if before:
            totals.append((benchmark, before, after))
    return totals


def mode_shift_text(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """``unsafe compliance 108 → 18, full refusal 2 → 90``, the largest shifts first."""
    modes = sorted({*before, *after}, key=lambda mode: (-abs(after.get(mode, 0) - before.get(mode, 0)), mode))
    return ", ".join(f"{words(mode)} {before.get(mode, 0)} → {after.get(mode, 0)}" for mode in modes)


@dataclass(frozen=True)
class SummaryRow:
    """One metric of one model; ``corrected`` is empty where the judge has no stored calibration."""

    benchmark: str
    metric: str
    value: str
    interval: str
    n: int
    corrected: str = ""


def summary_rows(summary: Mapping[str, Any], every: bool = False) -> list[SummaryRow]:
    """The rows of one model's table, in the order benchmark, then metric."""
    return [
        _summary_row(benchmark, metric, cell)
        for benchmark, part in summary["benchmarks"].items()
        for metric in shown_metrics(part["judges"], every)
        if part["label"] in metric.labels and (cell := part["judges"][metric.judge]["metrics"].get(metric.name))
    ]


def _summary_row(benchmark: str, metric: Metric, cell: Mapping[str, Any]) -> SummaryRow:
    if not metric.is_mean:
        interval, corrected = interval_text(cell["ci95"]), corrected_text(cell)
        return SummaryRow(benchmark, metric.title, percent(cell["rate"]), interval, cell["n"], corrected)
    limits = cell["ci95"]
    interval = "–" if limits is None else f"{number(limits[0])} to {number(limits[1])}"
    return SummaryRow(benchmark, metric.title, number(cell["mean"]), interval, cell["n"])


def corrected_text(cell: Mapping[str, Any]) -> str:
    """``71.2 % (65.0 to 78.1)``: the rate corrected for the judge's own errors; empty where it is not known."""
    corrected = cell.get("corrected")
    if not corrected or corrected.get("rate") is None:
        return ""
    return f"{percent(corrected['rate'])} ({interval_text(corrected['ci95'])})"


def interval_text(ci95: Sequence[float] | None) -> str:
    """``83.7 to 93.1``, in percent."""
    return "–" if ci95 is None else f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}"


def hygiene_notes(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing the numbers; never hidden, empty when there is nothing to say."""
    unscored: list[str] = []
    above: dict[str, list[str]] = {name: [] for name, *_ in _CEILINGS}
    left_out: list[Mapping[str, str]] = []
    restated: set[tuple[str, str]] = set()
    for model, summary in summaries.items():
        left_out += [gap for gap in summary.get("left_out", ()) if gap not in left_out]
        for benchmark, part in summary.get("benchmarks", {}).items():
            where = f"{benchmark}, {model}"
            for judge, judged in part["judges"].items():
                if judged["n_unscored"]:
                    unscored.append(_unscored_note(f"{model} on {benchmark}", judge, judged))
                    restated.add(("H9", where))
                if judge != mode_judge(part["judges"]):
                    continue
                for name, ceiling, rule, _ in _CEILINGS:
                    rate = judged["metrics"].get(name, {}).get("rate")
                    if rate is not None and rate > ceiling:
                        above[name].append(f"{model} on {benchmark} {percent(rate)}")
                        restated.add((rule, where))
    notes = [f"{meaning}: {', '.join(above[name])}." for name, _, _, meaning in _CEILINGS if above[name]]
    if any(is_provisional(summary) for summary in summaries.values()):
        notes.append(PROVISIONAL)
    # Without a judge of modes nobody restates what was cut off or is no language; then the finding itself is the note.
    found = [note for summary in summaries.values() for note in finding_notes(summary, restated=restated)]
    return _left_out_note(left_out) + unscored + found + notes


def _left_out_note(gaps: Sequence[Mapping[str, str]]) -> list[str]:
    """One note that names the benchmarks without data; why, each one's reason in summary.json tells."""
    names = ", ".join(f"{gap['benchmark']} ({gap['source']})" for gap in gaps)
    return [f"Left out, because the data are not at hand: {names}. See: safeserve data list."] if gaps else []


def finding_notes(
    content: Mapping[str, Any], without: Collection[str] = (), restated: Collection[tuple[str, str]] = ()
) -> list[str]:
    """What the hygiene rules found, worst first, without notes and without what the content's own notes say already.

    Args:
        without: rules that are told elsewhere.
        restated: a rule and the place where its finding is told elsewhere.
    """
    said = set(content.get("notes", ()))
    return [
        f"{one['severity']} {one['rule']}, {one['where']}: {one['message']}"
        for one in content.get("findings", ())
        if one["severity"] != "note" and one["rule"] not in without and one["message"] not in said
        if (one["rule"], one["where"]) not in restated
    ]


def is_provisional(content: Mapping[str, Any]) -> bool:
    """True unless a summary or comparison says that a guard has judged it: what is not recorded is provisional."""
    return bool(content.get("provisional", True))


def _unscored_note(where: str, judge: str, judged: Mapping[str, Any]) -> str:
    expected = judged["n_scored"] + judged["n_unscored"]
    share = judged["n_unscored"] / expected
    loud = f", more than the {percent(UNSCORED_CEILING, 0)} that can be ignored" if share > UNSCORED_CEILING else ""
    reasons = "; ".join(f"{reason} ({count})" for reason, count in judged["unscored_reasons"].items())
    return f"{where}: {judged['n_unscored']} of {expected} unscored by {judge} ({percent(share)}{loud}): {reasons}."
