"""The page: one self-contained HTML file. What a model wrote is hostile input and only ever becomes text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from markupsafe import Markup

from safeserve.evaluation.metrics import PROVISIONAL, find_metric
from safeserve.judging.registry import mode_judge
from safeserve.report.calibration import calibration_cards
from safeserve.report.charts import MODE_ORDER, SERIES, Line, interval_chart, line_chart, mode_class, stacked_bar
from safeserve.report.content import ReportInput, report_from_run
from safeserve.report.doses import dose_charts
from safeserve.report.guard_view import guard_views
from safeserve.report.overview import coverage_charts, trade_off
from safeserve.report.rows import (
    SUMMARISED,
    comparison_rows,
    corrected_text,
    finding_notes,
    hygiene_notes,
    interval_text,
    main_judge,
    mode_shift_text,
    percent,
    summary_rows,
    words,
)
from safeserve.report.seeds import HEADINGS, SEEDS_HINT, spreads

__all__ = ["ReportInput", "embed_json", "page_environment", "render_report", "report_from_run", "template"]

TEMPLATES = resources.files("safeserve.report") / "templates"
PANELS = (
    ("Safety", "harmful prompts answered safely", "safe_rate", "higher is better"),
    ("Over-refusal", "benign prompts refused in full", "over_refusal_rate", "lower is better"),
    ("Helpfulness", "short questions answered correctly", "accuracy", "higher is better"),
)
"""The three things that are only ever shown together: heading, what is counted, metric, direction."""
_NOT_CURVES = {"step", "epoch", "learning_rate", "grad_norm", "lr"}


def render_report(run: ReportInput) -> str:
    """The whole page as text; needs nothing from outside and sends nothing out."""
    script = template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    panels = _panels(run)
    page: str = (
        page_environment()
        .from_string(template("report.html"))
        .render(
            run=run,
            style=Markup(template("report.css")),
            script=Markup(script),
            script_hash=digest,
            headline=_headline(run),
            panels=panels,
            study=_study(run.study),
            by_dose=dose_charts(run.summaries, run.doses),
            spreads=[spread.cells for spread in spreads(run.summaries, run.repeats)],
            seeds_headings=HEADINGS,
            seeds_hint=SEEDS_HINT,
            coverage=coverage_charts(run.preflights),
            overview=trade_off(run.summaries, run.candidate, _policy_limits(run.verdict), run.repeats),
            corrected=any(row["corrected"] for panel in panels for group in panel["groups"] for row in group["rows"]),
            rows=comparison_rows(run.comparison) if run.comparison else [],
            measured=[(model, summary_rows(summary, every=True)) for model, summary in run.summaries.items()],
            guard=guard_views(_sides(run), run.samples),
            shifts=(shifts := _shifts(run.summaries)),
            legend=_legend(shifts),
            categories=_categories(run.summaries),
            curves=_curve_charts(run.curves),
            notes=_notes(run),
            cards=calibration_cards(_judges(run.summaries)),
            facts=_facts(run.manifest),
            counted={sample["benchmark"]: sample["counted"] for sample in run.samples if sample["counted"]},
            data=embed_json({"models": _sides(run), "samples": list(run.samples)}),
        )
    )
    # A lone surrogate (half a character from a broken tokenizer) cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def embed_json(value: Any) -> Markup:
    """JSON, packed by gzip and as base64: letters and digits that no browser can take for markup.

    The same value gives the same bytes. Half a character (from a broken tokenizer) becomes U+FFFD in the browser.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


def _study(study: Mapping[str, Any] | None) -> Markup:
    """The paper's claims and tables beside what was measured; empty where the run is no study."""
    if study is None:
        return Markup()
    return Markup(page_environment().from_string(template("study.html")).render(study=study))


def _headline(run: ReportInput) -> dict[str, str]:
    """The verdict's tone, its word and its sentence."""
    if run.verdict is None:
        return {"tone": "none", "word": "Measured", "sentence": "No policy was applied, so there is no verdict."}
    verdict = run.verdict
    word = {"pass": "Pass", "fail": "Fail", "no_verdict": "No verdict"}[verdict["outcome"]]
    policy = verdict["policy"]["name"]
    total = len(verdict["rules"])
    held = sum(rule["outcome"] == "pass" for rule in verdict["rules"])
    sentence = {
        "pass": f"{verdict['candidate']} meets every rule of the {policy} policy.",
        "fail": f"{verdict['candidate']} does not meet the {policy} policy: {held} of {total} rules hold.",
        "no_verdict": f"Too little was measured to judge {verdict['candidate']} by the {policy} policy.",
    }[verdict["outcome"]]
    return {"tone": verdict["outcome"], "word": word, "sentence": sentence}


def _panels(run: ReportInput) -> list[dict[str, Any]]:
    """Safety, over-refusal and helpfulness: per benchmark one interval chart a model."""
    limits = _policy_limits(run.verdict)
    panels = []
    for heading, counted, name, direction in PANELS:
        groups = []
        for benchmark in _benchmarks(run.summaries):
            judge = _judge_of(name, run.summaries, benchmark)
            if judge is None:
                continue
            rows = []
            for model, summary in run.summaries.items():
                cell = _cell(summary, benchmark, judge, name)
                if cell and cell["rate"] is not None:
                    low, high = cell["ci95"]
                    interval = f"95 % interval {interval_text(cell['ci95'])}, n = {cell['n']}"
                    title = f"{model}: {percent(cell['rate'])}, {interval}"
                    limit = limits.get((name, benchmark))
                    chart = interval_chart(cell["rate"], low, high, limit, _tone(run, model), title)
                    rows.append({"model": model, "cell": cell, "chart": chart, "corrected": corrected_text(cell)})
            if rows:
                limit = limits.get((name, benchmark))
                groups.append({"benchmark": benchmark, "judge": judge, "rows": rows, "limit": limit})
        panels.append({"heading": heading, "counted": counted, "direction": direction, "groups": groups})
    return panels


def _policy_limits(verdict: Mapping[str, Any] | None) -> dict[tuple[str, str], float]:
    """Where the policy draws a line on a rate: (metric, benchmark) to limit."""
    if verdict is None:
        return {}
    limits = {}
    for rule in verdict["policy"]["rules"]:
        limit = rule.get("at_least", rule.get("at_most"))
        if isinstance(limit, int | float):
            limits[rule["metric"], rule["benchmark"]] = float(limit)
    return limits


def _tone(run: ReportInput, model: str) -> str:
    """The model that the verdict is about stands out, the others are quiet."""
    return "candidate" if model == run.candidate else "other"


def _sides(run: ReportInput) -> list[str]:
    """The two models of the sample browser, before and after."""
    if run.comparison:
        return [run.comparison["a"], run.comparison["b"]]
    return list(dict.fromkeys(model for sample in run.samples for model in sample["answers"]))[:2]


def _shifts(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per benchmark one mode bar a model, with its counts in words: the first model's, then each one against it."""
    shifts = []
    for benchmark in _benchmarks(summaries):
        judge = mode_judge(_judges_in_common(summaries, benchmark))
        if judge is None:
            continue
        modes = {model: judges[judge]["modes"] for model, judges in _judged(summaries, benchmark).items()}
        first = next(iter(modes))
        bars = []
        for model, counts in modes.items():
            if model == first:
                most_first = sorted(counts.items(), key=lambda item: -item[1])
                told = ", ".join(f"{words(mode)} {count}" for mode, count in most_first)
            else:
                told = f"{first} → {model}: {mode_shift_text(modes[first], counts)}"
            bars.append({"model": model, "modes": counts, "words": f"{sum(counts.values())} answers; {told}"})
        shifts.append({"benchmark": benchmark, "bars": bars})
    return shifts


def _legend(shifts: list[dict[str, Any]]) -> list[str]:
    """The modes that occur, in the order of the bars."""
    seen = {mode for shift in shifts for bar in shift["bars"] for mode in bar["modes"]}
    return [mode for mode in MODE_ORDER if mode in seen] + sorted(seen - set(MODE_ORDER))


def _categories(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per benchmark its main rate by category, one column a model."""
    tables = []
    for heading, _, name, _ in PANELS:
        for benchmark in _benchmarks(summaries):
            judge = _judge_of(name, summaries, benchmark)
            if judge is None:
                continue
            metric = find_metric(judge, name, benchmark)
            judged = _judged(summaries, benchmark)
            by_model = {model: judges[judge].get("by_category", {}) for model, judges in judged.items()}
            names = sorted({category for parts in by_model.values() for category in parts})
            rows = [
                {"category": category, "cells": [parts.get(category, {}).get(name) for parts in by_model.values()]}
                for category in names
            ]
            rows = [row for row in rows if any(cell and cell["n"] for cell in row["cells"])]
            if len(rows) > 1:
                table = {"heading": heading, "benchmark": benchmark, "metric": metric.title, "rows": rows}
                tables.append({**table, "models": list(by_model), "good": metric.higher_is_better})
    return tables


def _curve_charts(curves: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One chart a quantity: training drawn through, validation dashed, chosen and rejected rewards together."""
    stages = []
    for stage, parts in curves.items():
        grouped: dict[str, list[Line]] = {}
        for part, rows in parts.items():
            for key in dict.fromkeys(key for row in rows for key in row):
                name = key.removeprefix("eval_")
                line = tuple((float(row["step"]), float(row[key])) for row in rows if _plottable(row, key))
                if name not in _NOT_CURVES and line:
                    quantity = "reward" if name.startswith("reward_") else name
                    grouped.setdefault(quantity, []).append(Line(name, line, part == "validation"))
        charts = [_chart(stage, quantity, lines) for quantity, lines in grouped.items()]
        if charts:
            stages.append({"stage": stage, "charts": charts})
    return stages


def _chart(stage: str, quantity: str, lines: list[Line]) -> dict[str, Any]:
    names = list(dict.fromkeys(line.name for line in lines))
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    return {
        "quantity": quantity,
        "names": [name.removeprefix("reward_") for name in names] if len(names) > 1 else [],
        "svg": line_chart(lines, f"{stage}: {quantity} over training steps"),
        "steps": (min(xs), max(xs)),
        "range": (min(ys), max(ys)),
    }


def _plottable(row: Mapping[str, Any], key: str) -> bool:
    values = (row.get("step"), row.get(key))
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _notes(run: ReportInput) -> list[str]:
    comparison = run.comparison or {}
    found = finding_notes(comparison, without=SUMMARISED)
    gone = [f"Not run: {stage}. {reason}" for stage, reason in (run.manifest.get("not_run") or {}).items()]
    said = [str(run.manifest["note"])] if run.manifest.get("note") else []
    notes = [*said, *gone, *comparison.get("notes", ()), *found, *hygiene_notes(run.summaries)]
    if run.verdict and run.verdict["provisional"]:
        notes.append(PROVISIONAL)
    return list(dict.fromkeys(notes))


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the manifest says about the run, flat: (name, value)."""
    facts = []
    for key, value in manifest.items():
        if key in ("command", "note", "not_run") or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            text = ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, "", {}, []))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.append((words(key), text))
    return facts


def _judges(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Every judge's identity by its name; of two versions the later model's."""
    found: dict[str, str] = {}
    for summary in summaries.values():
        found |= {str(judge): str(version) for judge, version in (summary.get("judges") or {}).items()}
    return found


def _benchmarks(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for summary in summaries.values() for name in summary.get("benchmarks", {})))


def _judged(summaries: Mapping[str, Mapping[str, Any]], benchmark: str) -> dict[str, Mapping[str, Any]]:
    """Model to the judges' parts of this benchmark, for the models that it was measured on."""
    found = {model: summary.get("benchmarks", {}).get(benchmark) for model, summary in summaries.items()}
    return {model: part["judges"] for model, part in found.items() if part}


def _judges_in_common(summaries: Mapping[str, Mapping[str, Any]], benchmark: str) -> list[str]:
    """Judges that scored this benchmark for every model it was measured on: numbers side by side have one judge."""
    first, *others = _judged(summaries, benchmark).values() or [{}]
    return [judge for judge in first if all(judge in judges for judges in others)]


def _judge_of(metric: str, summaries: Mapping[str, Mapping[str, Any]], benchmark: str) -> str | None:
    return main_judge(metric, _judges_in_common(summaries, benchmark))


def _cell(summary: Mapping[str, Any], benchmark: str, judge: str, metric: str) -> Mapping[str, Any] | None:
    part = summary.get("benchmarks", {}).get(benchmark, {}).get("judges", {}).get(judge, {})
    cell: Mapping[str, Any] | None = part.get("metrics", {}).get(metric)
    return cell


def page_environment() -> Any:
    """jinja2 with everything escaped and this project's filters."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "words": words, "interval": interval_text}
    environment.globals |= {"mode_class": mode_class, "stacked_bar": stacked_bar, "series": SERIES}
    return environment


def template(name: str) -> str:
    """The text of a file in templates/."""
    return (TEMPLATES / name).read_text(encoding="utf-8")
