"""A study's error analysis as Markdown tables, from the numbers that `safeserve analyze RUN` wrote.

    python tools/error_analysis.py runs/STUDY                                   # print
    python tools/error_analysis.py runs/STUDY --into docs/error_analysis.md     # put between the page's two marks

Numbers, categories and terms only: no prompt and no answer is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeserve.core.runs import read_json, write_text
from safeserve.evaluation.analysis_findings import looked_at_in_words
from safeserve.report.rows import p_text, percent, points, words
from safeserve.report.words import code, markdown

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
MOST_CATEGORIES = 8


def study(analysis: Mapping[str, Any]) -> str:
    """All tables of one analysis."""
    models = analysis["models"]
    parts = [levels(models), moves(analysis["transitions"]), patterns(models), categories(models), rewritings(models)]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part)


def levels(models: Mapping[str, Any]) -> Iterator[str]:
    """How much is unsafe, and the most frequent answer."""
    rows = [
        (
            markdown(name),
            f"{part['unsafe']['unsafe']} / {part['unsafe']['n']}",
            percent(part["unsafe"]["rate"]),
            interval(part["unsafe"]["ci95"]),
            percent(max((cell["most_frequent"] for cell in part["collapse"].values()), default=None)),
        )
        for name, part in models.items()
    ]
    yield from table(("model", "unsafe", "rate", "95 %", "most frequent answer (largest share of a benchmark)"), rows)


def moves(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every two-by-two table as a row."""
    rows = [
        (
            markdown(f"{pair['a']} → {pair['b']}"),
            markdown(name),
            *(str(cell[move]) for move in ("safe_safe", "safe_unsafe", "unsafe_safe", "unsafe_unsafe")),
            f"{points(cell['difference'])} ({points(cell['ci95'][0])} to {points(cell['ci95'][1])})",
            p_text(cell.get("p_holm", cell["p"])),
        )
        for pair in pairs
        for name, cell in pair["safety"].items()
    ]
    if rows:
        heads = ("models", "benchmark", "safe → safe", "safe → unsafe", "unsafe → safe", "unsafe → unsafe")
        yield from table((*heads, "safe rate, points (95 %)", "p (Holm; all: uncorrected)"), rows, left=2)


def patterns(models: Mapping[str, Any]) -> Iterator[str]:
    """The findings of every model, or that there is none."""
    rows = []
    for name, part in models.items():
        found = part["patterns"]
        for one in found["findings"]:
            where = "rewritten" not in one
            inside = f"{one['unsafe']} / {one['prompts']}" if where else percent(one["rewritten"])
            outside = f"{one['elsewhere_unsafe']} / {one['elsewhere_prompts']}" if where else percent(one["original"])
            rows.append((markdown(name), one["kind"], code(words(one["name"])), inside, outside, p_text(one["p"])))
        if not found["findings"]:
            why = found["reason"] or f"none among {looked_at_in_words(found['looked_at'])}"
            smallest = "–" if found["smallest_p"] is None else p_text(found["smallest_p"])
            rows.append((markdown(name), "–", why, "–", "–", smallest))
    yield from table(("model", "kind", "over-represented", "unsafe", "elsewhere", "corrected p"), rows, left=3)


def categories(models: Mapping[str, Any]) -> Iterator[str]:
    """Unsafe answers in the categories that are worst in any model."""
    cells = {name: {one["name"]: one for one in part["groups"]["category"]} for name, part in models.items()}
    worst: dict[str, float] = {}
    for named in cells.values():
        for category, cell in named.items():
            worst[category] = max(worst.get(category, 0.0), cell["ci95"][0])
    names = sorted(worst, key=lambda category: (-worst[category], category))[:MOST_CATEGORIES]
    if names:
        rows = [
            (
                markdown(words(category)),
                *(f"{c['unsafe']} / {c['n']}" if (c := cells[model].get(category)) else "–" for model in models),
            )
            for category in names
        ]
        yield from table(("category, unsafe", *map(markdown, models)), rows)


def rewritings(models: Mapping[str, Any]) -> Iterator[str]:
    """What asking in another way does."""
    rows = [
        (
            markdown(name),
            markdown(words(one["rewriting"])),
            str(one["n"]),
            percent(one["original"]),
            percent(one["rewritten"]),
            f"{points(one['difference'])} ({points(one['ci95'][0])} to {points(one['ci95'][1])})",
        )
        for name, part in models.items()
        for one in part["rewritings"]
    ]
    if rows:
        heads = ("model", "rewriting", "pairs", "unsafe as first asked", "rewritten", "points (95 %)")
        yield from table(heads, rows, left=2)


def interval(bounds: Sequence[float]) -> str:
    """``3.3 to 10.6 %``."""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "|".join("---" if i < left else "---:" for i in range(len(headings))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", type=Path, help="a page with the two marks")
    arguments = parser.parse_args()
    text = study(read_json(arguments.run / "analysis" / "analysis.json"))
    if arguments.into is None:
        print(text)
        return
    before, _, rest = arguments.into.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{arguments.into}: the marks {BEGIN} and {END} are not in it.")
    write_text(arguments.into, f"{before}{BEGIN}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
