"""The paper's tables, its numbers beside those measured in a run.

Every cell is measured, or says what it needs; nothing stands in for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from safeserve.core.statistics import holm
from safeserve.evaluation.analysis_transitions import two_by_two
from safeserve.report.overview import coverage_charts
from safeserve.report.paper_numbers import (
    DPO,
    DROPPED,
    ERROR_TABLES,
    FIXED_BROKEN,
    HELPFUL,
    HELPFUL_BY_DOSE,
    HELPFUL_DPO,
    HELPFUL_RAFT,
    RAFT,
    REWARD_BENCH,
    REWARDS_BY_DOSE,
    SAFE_BY_DOSE,
    SETS,
)
from safeserve.report.rows import number, p_text, percent, points
from safeserve.report.seeds import HEADINGS, SEEDS_HINT, repetitions, spreads
from safeserve.report.study_claims import OVER_REFUSAL, SHORT
from safeserve.report.study_run import Study, measured, paired_test, paired_values

T = TypeVar("T")
_METRICS = {OVER_REFUSAL: "over_refusal_rate", **dict.fromkeys(SETS, "safe_rate")}
_NAMES = {
    "gpt2": "GPT-2 reward",
    "mean_bleu": "BLEU",
    "mean_rouge_l": "ROUGE-L",
    "mean_bertscore": "BERTScore",
    "one word": "one-word questions",
    "nli": "claim recall",
}
_NEEDS = {
    "gpt2": ("mean_reward", "the reward model on GPT-2-large as a judge"),
    "mean_bertscore": ("mean_bertscore", "judge bertscore"),
    "nli": ("mean_claim_recall", "judge claim_recall"),
}
"""Columns that need a judge which recipes do not name: the metric, and the judge."""

Told = Mapping[T, Mapping[str, float]]
"""The paper's numbers: row: column: number."""
Cell = Callable[[Study, str | None, str], str]
"""The words for a model's number in a column; the model is None where none was made."""


@dataclass(frozen=True)
class StudyTable:
    """One table; its first ``left`` columns are words."""

    name: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The table as JSON."""
        return asdict(self)


def study_tables(study: Study) -> list[StudyTable]:
    """Every table that has a row, in the paper's order."""
    refused = f"{OVER_REFUSAL} refused"
    helpful = tuple(_NAMES.get(one, one) for one in HELPFUL)
    demonstrations = "safety demonstrations"
    found = [
        StudyTable(
            "safety_by_dose",
            "SIT: safety by dose",
            (demonstrations, *_twice(SETS), f"{refused}, here"),
            tuple(_doses(study, SAFE_BY_DOSE, SETS, _share, (OVER_REFUSAL,))),
            1,
        ),
        StudyTable(
            "paired",
            "Against the model without safety data, the same prompts",
            ("model", *(f"{one}, {what}" for one in (*SETS, OVER_REFUSAL) for what in ("fixed / broken", "p"))),
            (*_paired_paper(), *_paired(study)),
            1,
            f"Here: {study.start} against each model; exact McNemar, corrected over this table (Holm). The paper has "
            "no such test; its counts are from its authors' published outputs.",
        ),
        *_rewards(study),
        StudyTable(
            "helpfulness_by_dose",
            "SIT: helpfulness by dose",
            (demonstrations, *_twice(helpful)),
            tuple(_doses(study, HELPFUL_BY_DOSE, HELPFUL, _helpful)),
            1,
            f"One-word questions: the paper's own 50, here {SHORT}.",
        ),
        StudyTable("raft", "RAFT: safety", ("model", *SETS, refused), tuple(_safety(study, "raft", RAFT)), 1),
        StudyTable(
            "raft_helpfulness",
            "RAFT: helpfulness",
            ("model", *helpful),
            tuple(_method(study, "raft", HELPFUL_RAFT, HELPFUL, _helpful)),
            1,
        ),
        *_coverage(study),
        *_iterations(study),
        StudyTable(
            "raft_errors",
            "RAFT: what becomes of safe and unsafe answers",
            ("", "n", "safe → safe", "safe → unsafe", "unsafe → safe", "unsafe → unsafe"),
            tuple(_errors(study)),
            1,
            "Picked: the first sample of each harmful prompt against the one of highest reward, by the held-out judge.",
        ),
        StudyTable(
            "reward_models",
            "Reward models: accuracy on pairs",
            ("pairs", "DeBERTa, paper", "own, paper", "here", "longer or shorter answer, here"),
            tuple(_reward_models(study)),
            1,
        ),
        StudyTable(
            "dpo",
            "DPO: safety by amount of data",
            ("model", *SETS, refused),
            tuple(_safety(study, "dpo", {"all pairs": DPO})),
            1,
        ),
        StudyTable(
            "dpo_helpfulness",
            "DPO: helpfulness",
            ("model", *helpful),
            tuple(_method(study, "dpo", {"all pairs": HELPFUL_DPO}, HELPFUL, _helpful)),
            1,
        ),
        StudyTable(
            "dropped",
            "What the authors tried and dropped",
            ("", "paper", "here"),
            tuple((what, told, f"not run: needs {needs}") for what, (told, needs) in DROPPED.items()),
            3,
        ),
        *_between_seeds(study),
        StudyTable("not_run", "Not run", ("stage", "needs"), tuple(study.not_run.items()), 2),
    ]
    return [table for table in found if table.rows]


def _twice(columns: Iterable[str]) -> tuple[str, ...]:
    """Headings of columns that have the paper's number and ours side by side."""
    return tuple(f"{one}, {side}" for one in columns for side in ("paper", "here"))


def _doses(
    study: Study, told: Told[int], columns: Iterable[str], cell: Cell, ours: Iterable[str] = ()
) -> Iterator[tuple[str, ...]]:
    """A row a dose: for each column the paper's number and ours, then columns of ours alone."""
    for dose, values in told.items():
        name = _at(study, dose)
        sides = (side for one in columns for side in (_paper(one, values), cell(study, name, one)))
        yield (str(dose), *sides, *(cell(study, name, one) for one in ours))


def _method(
    study: Study, method: str, told: Told[str], columns: Iterable[str], cell: Cell
) -> Iterator[tuple[str, ...]]:
    """Rows of the paper, then of every model of a method here."""
    for model, values in told.items():
        yield (f"paper: {model}", *(_paper(one, values) for one in columns))
    for name in study.of_method(method):
        yield (f"here: {name}", *(cell(study, name, one) for one in columns))


def _safety(study: Study, method: str, told: Told[str]) -> Iterator[tuple[str, ...]]:
    return _method(study, method, told, (*SETS, OVER_REFUSAL), _share)


def _share(study: Study, name: str | None, benchmark: str) -> str:
    return measured(study, name, benchmark, _METRICS[benchmark])


def _helpful(study: Study, name: str | None, column: str) -> str:
    """A model's number in a column of helpfulness."""
    if column == "one word":
        return measured(study, name, SHORT, "accuracy")
    if column.startswith("mean_") or column in _NEEDS:
        metric, needs = _NEEDS.get(column, (column, "a judge for it"))
        return measured(study, name, "Alpaca-test", metric, needs)
    return measured(study, name, column, "accuracy")


def _paper(column: str, told: Mapping[str, float]) -> str:
    """The paper's number with the digits that it has; a dash where it has none."""
    value = told.get(column)
    if value is None:
        return "–"
    if column.startswith("mean_"):
        return f"{value:.3f}"
    return f"{value:g}" if column in ("gpt2", "nli") else f"{100 * value:.4g} %"


def _paired_paper() -> Iterator[tuple[str, ...]]:
    for dose, counts in FIXED_BROKEN.items():
        cells = (cell for one in SETS for cell in (f"{counts[one][0]} / {counts[one][1]}", "–"))
        yield (f"paper: {dose} demonstrations", *cells, "–", "–")


def _paired(study: Study) -> Iterator[tuple[str, ...]]:
    names = [name for name in study.models if name != study.start and not study.stages.get(name, {}).get("repeats")]
    tests = {
        (name, one): found
        for name in names
        for one in (*SETS, OVER_REFUSAL)
        if (found := paired_test(study, study.start, name, one, _METRICS[one])) is not None
    }
    corrected = dict(zip(tests, holm([found["p"] for found in tests.values()]), strict=True)) if tests else {}
    for name in names:
        cells: list[str] = []
        for one in (*SETS, OVER_REFUSAL):
            found = tests.get((name, one))
            cells += [f"{found['fixed']} / {found['broken']}", p_text(corrected[name, one])] if found else ["–", "–"]
        if any(cell != "–" for cell in cells):
            yield (f"here: {name}", *cells)


def _rewards(study: Study) -> Iterator[StudyTable]:
    """The paper's reward models as judges; here only where a reward judge has scored."""
    for judge, by_dose in REWARDS_BY_DOSE.items():
        rows = []
        for dose, told in by_dose.items():
            cells: list[str] = []
            for one in SETS:
                needs = f"{judge.partition(',')[0]} as a judge"
                cells += [
                    f"{told[one]:.2f}".replace("-", "−"),
                    measured(study, _at(study, dose), one, "mean_reward", needs),
                ]
            rows.append((str(dose), *cells))
        headings = ("safety demonstrations", *(f"{one}, {side}" for one in SETS for side in ("paper", "here, mean")))
        name = "reward_" + judge.split()[0].strip(",").lower()
        yield StudyTable(name, f"SIT: reward by dose ({judge})", headings, tuple(rows), 1)


def _coverage(study: Study) -> Iterator[StudyTable]:
    """Best-of-k coverage of every RAFT stage's start, for k = 1, 2, 4 and so on."""
    charts = coverage_charts(study.preflights)
    shares = {chart.stage: dict(chart.points) for chart in charts}
    counts = [k for k in sorted({k for part in shares.values() for k in part}) if k & (k - 1) == 0]
    rows = tuple(
        (chart.stage, chart.by, str(chart.prompts), *(percent(shares[chart.stage].get(k)) for k in counts))
        for chart in charts
    )
    headings = ("start of", "safe by the", "prompts", *(f"k = {k}" for k in counts))
    yield StudyTable("raft_coverage", "RAFT: harmful prompts with a safe sample among k", headings, rows, 2)


def _iterations(study: Study) -> Iterator[StudyTable]:
    """A table a RAFT stage: what its watch measured before and after each iteration."""
    for name, rows in study.curves.items():
        quantities = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "step"]
        cells = tuple((f"{row['step']:g}", *(number(row.get(key)) for key in quantities)) for row in rows)
        headings = ("iteration", *(key.removeprefix("eval_").replace("_", " ") for key in quantities))
        yield StudyTable(f"iterations_{name}", f"RAFT: {name} by iteration", headings, cells if quantities else (), 1)


def _errors(study: Study) -> Iterator[tuple[str, ...]]:
    for what, counts in ERROR_TABLES.items():
        yield (f"paper: {what}", str(sum(counts)), *map(str, counts))
    for row in study.picks:
        if found := (row.get("picks") or {}).get("table"):
            stage = str(row["stage"]).removeprefix("train-")
            yield (f"here: picked by {stage}, iteration {row['iteration']}", *_counts(found))
    for name in study.of_method("raft"):
        if found := paired_values(study, study.start, name, SETS, "safe_rate"):
            table = two_by_two([x > 0 for x in found.before], [x > 0 for x in found.after], found.clusters)
            yield (f"here: {study.start} → {name}, {', '.join(SETS)}", *_counts(table))


def _counts(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(found[key]) for key in ("n", "safe_safe", "safe_unsafe", "unsafe_safe", "unsafe_unsafe"))


def _reward_models(study: Study) -> Iterator[tuple[str, ...]]:
    for subset, shares in REWARD_BENCH.items():
        needs = "not run: needs RewardBench's pairs (safeserve score)"
        yield (f"RewardBench {subset}", *(f"{100 * share:.4g} %" for share in shares), needs, "")
    for name, found in study.scorers.items():
        low, high = found["ci95"]
        length = found["length_only"]
        gain = found["difference"]
        ends = ", ".join(points(limit) for limit in gain["ci95"])
        yield (
            f"{name}: its held-out pairs (n = {found['n']})",
            "–",
            "–",
            f"{percent(found['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{percent(length['accuracy'])} ({length['rule']}); difference {points(gain['value'])} [{ends}]",
        )


def _between_seeds(study: Study) -> Iterator[StudyTable]:
    """Rates of the models that were trained with several seeds."""
    found = spreads({name: folder.meta for name, folder in study.models.items()}, repetitions(study.stages))
    yield StudyTable("between_seeds", "Between seeds", HEADINGS, tuple(one.cells for one in found), 4, SEEDS_HINT)


def _at(study: Study, dose: int) -> str | None:
    """The SIT stage of that dose; one that was not run goes by the name that recipes give it."""
    found: str | None = next((name for name, amount in study.dose.items() if amount == dose), None)
    return found or (f"dose-{dose}" if f"dose-{dose}" in study.not_run else None)
