"""Pictures and tables of a run for papers and slides: SVG, PDF and PNG by matplotlib, Markdown and LaTeX.

What stands in them is what the page shows: the same cells of summary.json, compare/ and metrics.json. The same run
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

from safeserve.core.errors import EnvironmentFault, UserError, did_you_mean
from safeserve.core.runs import write_bytes, write_text
from safeserve.report.charts import MODE_ORDER
from safeserve.report.content import ReportInput, report_from_run
from safeserve.report.labels import Box, Name, leader, place, text_width
from safeserve.report.overview import RATES, CoverageChart, coverage_charts, trade_off
from safeserve.report.rows import comparison_rows, metric_cell, mode_totals, summary_rows, words
from safeserve.report.seeds import HEADINGS, spreads
from safeserve.report.study import CLAIM_HEADINGS
from safeserve.report.tables import markdown_table
from safeserve.report.words import latex

Form = Literal["svg", "pdf", "png"]
_COLOURS = dict(
    zip(
        MODE_ORDER,
        ("#bb4b3f", "#6b5f57", "#b9b2a9", "#cc9a3a", "#5a9a68", "#88bd93", "#92b3d0", "#4d7ea8"),
        strict=True,
    )
)
LONGEST = 32
"""Characters of a name in a picture."""
_QUIET, _ACCENT = "#8d867c", "#1f5f8b"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "safeserve",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9,
    "text.usetex": False,
}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def write_figures(run_dir: Path, out: Path, forms: Sequence[str] = get_args(Form)) -> list[Path]:
    """Draw everything that the run can show, and write its tables; returns the files.

    Args:
        forms: of svg, pdf, png.

    Raises:
        UserError: an unknown form.
        EvidenceError: nothing has been evaluated yet.
        EnvironmentFault: matplotlib is not installed, or the disk.
    """
    for form in forms:
        if form not in get_args(Form):
            raise UserError(f"--to: unknown format {form!r}.{did_you_mean(form, get_args(Form))}")
    try:
        import matplotlib
    except ImportError:
        raise EnvironmentFault('figures need matplotlib: pip install "safeserve[figures]".') from None
    run = report_from_run(run_dir)
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in _figures(run):
            for form in forms:
                buffer = BytesIO()
                figure.savefig(buffer, format=form, bbox_inches="tight", dpi=200, metadata=_UNDATED[form])
                written.append(out / f"{name}.{form}")
                write_bytes(written[-1], buffer.getvalue())
    for name, headings, rows, left in _tables(run):
        for suffix, text in (("md", markdown_table(headings, rows, left)), ("tex", _tabular(headings, rows, left))):
            written.append(out / f"{name}.{suffix}")
            write_text(written[-1], text)
    return written


def _figures(run: ReportInput) -> Iterator[tuple[str, Any]]:
    """(file name, figure) of each picture that the run has numbers for."""
    if (shown := trade_off(run.summaries, run.candidate, {}, run.repeats)) is not None:
        yield "trade_off", _trade_off(shown)
    rates = {metric: found for metric, _ in RATES if (found := _by_benchmark(run.summaries, metric))}
    if rates:
        yield "rates", _rates(rates, list(run.summaries))
    if run.comparison and (totals := mode_totals(run.comparison)):
        yield "modes", _modes(totals, (run.comparison["a"], run.comparison["b"]))
    if len(measured := {model: amount for model, amount in run.doses.items() if model in run.summaries}) > 1:
        yield "doses", _doses(rates, measured)
    if coverage := coverage_charts(run.preflights):
        yield "coverage", _coverage(coverage)
    for stage, parts in run.curves.items():
        quantities = {key for rows in parts.values() for row in rows for key in row} - {"step", "epoch"}
        if drawn := [key for key in sorted(quantities) if any(key in row for row in parts.get("train", ()))]:
            yield f"training_{stage}", _curves(parts, drawn)


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _trade_off(shown: Any) -> Any:
    figure, (axes,) = _axes(1, 1, 4.5, 3.6)
    at = {point.model: (100 * point.refused["rate"], 100 * point.safe["rate"]) for point in shown.points}
    for point in sorted(shown.points, key=lambda point: point.candidate):  # on top of the others
        if point.repeats:  # another seed: a small dot, tied to the model's own
            axes.plot(*zip(at[point.model], at[point.repeats], strict=True), color=_QUIET, linewidth=0.6)
            axes.plot(*at[point.model], "o", color=_QUIET, markersize=3)
            continue
        colour = _ACCENT if point.candidate else _QUIET
        x, y = at[point.model]
        spread = [_spread(cell) for cell in (point.refused, point.safe)]
        axes.errorbar([x], [y], xerr=spread[0], yerr=spread[1], fmt="o", color=colour, capsize=2)
    axes.set(xlim=(-2, 102), ylim=(-2, 102))
    axes.set_xlabel(f"harmless prompts refused, % ({_plain(shown.benign)})")
    axes.set_ylabel(f"harmful prompts answered safely, % ({_plain(shown.harmful)})")
    _name_points(figure, axes, {point.model: at[point.model] for point in shown.points if not point.repeats}, at)
    return figure


def _name_points(figure: Any, axes: Any, named: Mapping[str, Any], at: Mapping[str, Any]) -> None:
    """Write each name where it covers no other; in points (1/72 inch), which do not depend on the resolution."""
    figure.draw_without_rendering()  # only then is it known where the axes lie
    inch = figure.dpi / 72
    frame = axes.get_window_extent()
    area = Box(frame.x0 / inch, -frame.y1 / inch, frame.width / inch, frame.height / inch)  # y grows downwards there
    spots = {}
    for model, point in at.items():
        x, y = axes.transData.transform(point)
        spots[model] = (float(x) / inch, -float(y) / inch)
    names = [Name(*spots[model], text_width(_short(model), 9), 11) for model in named]
    dots = [Box(x - 4, y - 4, 8, 8) for x, y in spots.values()]
    for (model, point), box in zip(named.items(), place(names, area, dots), strict=True):
        if box is None:
            continue
        x, y = spots[model]
        line = {"arrowstyle": "-", "color": _QUIET, "linewidth": 0.6} if leader(box, x, y) else None
        beside = "right" if box.right < x else "left" if box.left > x else "center"
        offset = {"right": box.right, "left": box.left, "center": (box.left + box.right) / 2}[beside] - x
        where = {"xytext": (offset, y - box.bottom), "textcoords": "offset points", "ha": beside, "va": "bottom"}
        # A name must not move the axes that it was placed in.
        axes.annotate(_plain(model), point, **where, arrowprops=line).set_in_layout(False)


def _rates(rates: Mapping[str, Mapping[str, Mapping[str, Any]]], models: Sequence[str]) -> Any:
    titles = dict(RATES)
    lines = sum(len(found) for found in rates.values()) * (len(models) + 1)
    figure, axes = _axes(1, len(rates), 5 * len(rates), 1.2 + 0.16 * lines)
    for one, (metric, found) in zip(axes, rates.items(), strict=True):
        labels: list[str] = []
        for benchmark, cells in found.items():
            for model, cell in cells.items():
                colour = _ACCENT if model == models[-1] else _QUIET
                one.errorbar([100 * cell["rate"]], [len(labels)], xerr=_spread(cell), fmt="o", color=colour, capsize=2)
                labels.append(f"{_plain(benchmark)}: {_plain(model)} (n = {cell['n']})")
        one.set_yticks(range(len(labels)), labels)
        one.invert_yaxis()
        one.set(xlim=(-2, 102), xlabel="%, 95 % interval", title=titles[metric])
    return figure


def _modes(totals: Sequence[tuple[str, Mapping[str, int], Mapping[str, int]]], models: tuple[str, str]) -> Any:
    figure, (axes,) = _axes(1, 1, 6, 1 + 0.5 * len(totals))
    bars = [
        (f"{benchmark}: {model}", counts)
        for benchmark, *sides in totals
        for model, counts in zip(models, sides, strict=True)
    ]
    present = [mode for mode in MODE_ORDER if any(counts.get(mode) for _, counts in bars)]
    for row, (_, counts) in enumerate(bars):
        start = 0.0
        for mode in present:
            share = 100 * counts.get(mode, 0) / sum(counts.values())
            axes.barh(row, share, left=start, color=_COLOURS[mode], label=words(mode) if row == 0 else None)
            start += share
    axes.set_yticks(range(len(bars)), [_plain(label) for label, _ in bars])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of the answers")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _doses(rates: Mapping[str, Mapping[str, Mapping[str, Any]]], dose: Mapping[str, int]) -> Any:
    """Every rate over the number of safety demonstrations."""
    figure, axes = _axes(1, len(rates), 3.4 * len(rates), 2.8)
    titles = dict(RATES)
    for one, (metric, found) in zip(axes, rates.items(), strict=True):
        for benchmark, cells in found.items():
            points = sorted((amount, cells[model]) for model, amount in dose.items() if model in cells)
            x, y = [amount for amount, _ in points], [100 * cell["rate"] for _, cell in points]
            low = [100 * cell["ci95"][0] for _, cell in points]
            high = [100 * cell["ci95"][1] for _, cell in points]
            (line,) = one.plot(x, y, marker="o", label=_plain(benchmark))
            one.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        one.set(ylim=(-2, 102), xlabel="safety demonstrations", title=f"{titles[metric]}, %")
        one.set_xscale("symlog", linthresh=100)
        one.legend(frameon=False)
    return figure


def _coverage(charts: Sequence[CoverageChart]) -> Any:
    """Best-of-k coverage, a curve a RAFT stage."""
    figure, (axes,) = _axes(1, 1, 4.0, 2.8)
    for chart in charts:
        label = _plain(f"{chart.stage} (by the {chart.by})")
        axes.plot([k for k, _ in chart.points], [100 * share for _, share in chart.points], marker="o", label=label)
    axes.set(ylim=(-2, 102), xlabel="samples a prompt (k)", title="prompts with a safe sample, %")
    axes.legend(frameon=False)
    return figure


def _curves(parts: Mapping[str, Sequence[Mapping[str, Any]]], quantities: Sequence[str]) -> Any:
    columns = min(3, len(quantities))
    rows = -(-len(quantities) // columns)
    figure, axes = _axes(rows, columns, 3.2 * columns, 2.2 * rows)
    for one, quantity in zip(axes, quantities, strict=False):
        for part, name, style in (("train", quantity, "-"), ("validation", f"eval_{quantity}", "--")):
            points = [(row["step"], row[name]) for row in parts.get(part, ()) if name in row]
            if points:
                one.plot(*zip(*points, strict=True), style, color=_ACCENT, label=part)
        one.set(title=_plain(words(quantity)), xlabel="step")
    for spare in axes[len(quantities) :]:
        spare.set_visible(False)
    return figure


def _by_benchmark(summaries: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """Benchmark to model to the metric's cell, where it was measured."""
    found: dict[str, dict[str, Any]] = {}
    for model, summary in summaries.items():
        for benchmark in summary.get("benchmarks", {}):
            if cell := metric_cell(summary, benchmark, metric):
                found.setdefault(benchmark, {})[model] = cell
    return found


def _spread(cell: Mapping[str, Any]) -> list[list[float]]:
    """The interval as matplotlib takes it: distances below and above, in percent."""
    low, high = cell["ci95"]
    return [[100 * max(0.0, cell["rate"] - low)], [100 * max(0.0, high - cell["rate"])]]


def _plain(text: str) -> str:
    """A name as matplotlib shows it: shortened, and no mathematics between dollar signs."""
    return _short(text).replace("$", r"\$")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _tables(run: ReportInput) -> Iterator[tuple[str, Sequence[str], Sequence[tuple[str, ...]], int]]:
    """(file name, headings, rows, how many columns are words) of each table."""
    rows = [
        (model, r.benchmark, r.metric, r.value, r.interval, str(r.n))
        for model, summary in run.summaries.items()
        for r in summary_rows(summary)
    ]
    yield "rates", ("model", "benchmark", "metric", "value", "95 %", "n"), rows, 3
    if run.comparison:
        a, b = run.comparison["a"], run.comparison["b"]
        headings = ("benchmark", "metric", "n", a, b, "difference", "95 %", "fixed / broken", "p (Holm)")
        compared = [
            (r.benchmark, r.metric, str(r.n), r.a, r.b, r.difference, r.interval, r.fixed_broken, r.p)
            for r in comparison_rows(run.comparison)
        ]
        yield "comparison", headings, compared, 2
    if between := spreads(run.summaries, run.repeats):
        yield "seeds", HEADINGS, [one.cells for one in between], 4
    if run.study:
        claims = [(one["claim"], one["outcome"], one["evidence"]) for one in run.study["claims"]]
        yield "study_claims", CLAIM_HEADINGS, claims, 3
        for table in run.study["tables"]:
            yield f"study_{table['name']}", table["headings"], table["rows"], table["left"]


def _tabular(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A LaTeX tabular with the rules of the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex, cells)) + r" \\" + "\n"

    columns = "l" * left + "r" * (len(headings) - left)
    body = "".join(map(line, rows))
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(headings)}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )
