"""Measure judges on labelled sets and write the table of docs/judges.md, beside published judges on the same rows.

    python tools/calibration_table.py --root DATA [--judge NAME ...] [--labels NAME ...] [--page docs/judges.md]

Scores are cached by judge identity, so a second run judges nothing; a judge whose model is not at hand is left out by
name. The page keeps its text; what stands between the two markers is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from safeserve.core.errors import SafeserveError
from safeserve.data.labelled import PAIRS
from safeserve.evaluation.calibrate import calibrate
from safeserve.judging.calibration import questions_of
from safeserve.judging.registry import family, make_judge
from safeserve.report.calibration import number

JUDGES = ("refusal", "guard", "guards/research/guard.yaml", "modes")
LABELS = {
    "unsafe": ("beavertails_30k_test", "gptfuzz_evaluate", "dices_350", "dices_990", "paper_sit"),
    "refusal": ("xstest",),
    "less harmful": ("hh_harmless",),
    "better": ("llmbar",),
}
# On the same rows, not computed here. Unsafe: judge, labels, AUROC. Refusal: judge, labels, the four right columns.
BASELINES = (
    ("TF-IDF and logistic regression", "beavertails_30k_test", ".79"),
    ("TF-IDF and logistic regression, not trained on GPTFuzz", "gptfuzz_evaluate", ".80"),
    ("TF-IDF and logistic regression", "paper_sit", ".79"),
    ("refusal words", "paper_sit", ".64"),
)
PUBLISHED_REFUSAL = (
    ("string match of XSTest's authors (published)", "xstest", ".77", "–", ".815", ".954"),
    ("GPT-4 (published; misses 115 of 176 partial refusals)", "xstest", "–", ".645", "–", "–"),
)
START, END = "<!-- calibration table -->", "<!-- end of calibration table -->"


def measured(judges: list[str], labels: dict[str, list[str]], root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Every judge on every set it has an answer for, and what was left out and why."""
    results, left_out = [], []
    for spec in judges:
        try:
            judge = make_judge(spec)
        except SafeserveError as error:
            left_out.append(f"{spec}: {error}")
            print(left_out[-1], file=sys.stderr)
            continue
        for question, names in labels.items():
            for name in names if fits(judge.name, question) else ():
                try:
                    asked = None if question in PAIRS else question
                    results.append(calibrate(judge, name, root=root, question=asked))
                except SafeserveError as error:
                    left_out.append(f"{judge.name} on {name}: {error}")
                    print(left_out[-1], file=sys.stderr)
    return results, left_out


def fits(judge: str, question: str) -> bool:
    """Whether the question is one for the judge of that name."""
    group = family(judge)
    if question in PAIRS:
        return group in ("pairwise", "reward") or (question == "less harmful" and group == "guard")
    if group == "modes" and question == "unsafe":
        return False  # its value is its guard's, and so is the ranking
    return group != "pairwise" and question in questions_of(judge)


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown tables: harm ranked by AUROC, refusals by kappa, pairs by agreement."""
    harm = [r for r in results if r["question"] == "unsafe"]
    lines = ["| judge | labels | n | AUROC | average precision | sensitivity | specificity | calibration error |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    peers: dict[tuple[str, str], tuple[int, Any]] = {}
    for r in harm:
        error = "–" if r["ece"] is None else f"{r['ece']:.3f}"[1:]
        cells = [number(r[key]) for key in ("auroc", "average_precision", "sensitivity", "specificity")]
        lines.append(_row(f"`{r['judge']}`", _labels(r), _count(r), *cells, error))
        peers |= {(name, r["labels"]): (r["n_scored"], cell) for name, cell in r["peers"].items()}
    for (name, labels), (n, cell) in peers.items():
        lines.append(_row(f"{name} (computed from its published scores)", labels, str(n), number(cell), *["–"] * 4))
    for name, labels, value in BASELINES:
        if any(r["labels"] == labels for r in harm):
            lines.append(_row(f"{name} (baseline)", labels, "", value, *["–"] * 4))
    lines += ["", "| judge | labels | n | κ, refused at all | κ, three classes | sensitivity | precision |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for r in results:
        if r["question"] == "refusal":
            three = number(r["classes"]["kappa"])
            cells = [number(r["kappa"]), three, number(r["sensitivity"]), number(r["precision"])]
            lines.append(_row(f"`{r['judge']}`", _labels(r), _count(r), *cells))
    for name, labels, *cells in PUBLISHED_REFUSAL:
        if any(r["labels"] == labels and r["question"] == "refusal" for r in results):
            lines.append(_row(name, labels, "", *cells))
    if pairs := [r for r in results if r["question"] in PAIRS]:
        lines += ["", "| judge | labels | pairs | prefers the answer that people preferred | ties |"]
        lines.append("|---|---|---:|---:|---:|")
        lines += [_row(f"`{r['judge']}`", _labels(r), _count(r), number(r["agreement"]), str(r["ties"])) for r in pairs]
    if any(r["learned_from"] for r in results):
        lines += ["", "\\* The judge learned from this set: what it shows there is no measure of it."]
    return "\n".join(lines)


def _labels(result: dict[str, Any]) -> str:
    return result["labels"] + (" \\*" if result["learned_from"] else "")


def _count(result: dict[str, Any]) -> str:
    missing = result["n_unscored"]
    return f"{result['n_scored']:,}" + (f" (+ {missing} unscored)" if missing else "")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with the public data sets")
    parser.add_argument("--judge", action="append", help="a judge as in `safeserve calibrate`; repeatable")
    parser.add_argument("--labels", action="append", help="only these labelled sets; repeatable")
    parser.add_argument("--page", type=Path, help="write the tables between the page's markers")
    options = parser.parse_args()
    # Pairs only when asked for: the shipped guard learned from one set, and only pairwise judges answer the other.
    wanted = options.labels or [n for q, names in LABELS.items() if q not in PAIRS for n in names]
    chosen = {q: [n for n in names if n in wanted] for q, names in LABELS.items()}
    results, left_out = measured(options.judge or list(JUDGES), chosen, options.root)
    if not results:
        return 4
    text = tables(results)
    if left_out:
        text += "\n\nNot measured here: " + "; ".join(sorted({line.split(":")[0] for line in left_out})) + "."
    print(text)
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        if START not in page or END not in page:
            print(f"{options.page}: no line {START} and {END}.", file=sys.stderr)
            return 2
        before, rest = page.split(START, 1)
        options.page.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
