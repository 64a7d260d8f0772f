"""The paper's study of a finished run: which of its claims hold here, and every table, as study.md and study.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeserve.core.runs import write_json, write_text
from safeserve.report.paper_numbers import FAULTS
from safeserve.report.study_claims import WHO, paper_claims
from safeserve.report.study_run import read_study
from safeserve.report.study_tables import study_tables
from safeserve.report.tables import markdown_table
from safeserve.report.words import markdown

FILE, DATA = "study.md", "study.json"
PAPER = "Safe to Serve (arXiv 2412.00074)"
HINT = (
    f"Paper: {PAPER}, shares as it reports them (LLaMA-7B, judged by Llama Guard). Here: rate with its 95 % interval "
    "and n, by this run's judges on this run's model. Models and judges differ, so compare directions, not digits."
)
CLAIM_HEADINGS = ("claim", "here", "evidence")


def write_study(run_dir: Path) -> Path:
    """Write study.md and study.json of a finished run; returns the former.

    The JSON holds ``title``, ``note``, ``hint``, ``faults`` of the paper's numbers, ``claims`` (``claim``, ``outcome``,
    ``evidence``), ``who`` (which model stands for a method), ``tables`` and ``not_run``.
    """
    study = read_study(run_dir)
    content = {
        "title": study.title,
        "note": study.note,
        "hint": HINT,
        "faults": list(FAULTS),
        "who": WHO,
        "claims": list(paper_claims(study)),
        "tables": [table.to_json() for table in study_tables(study)],
        "not_run": dict(study.not_run),
    }
    write_json(run_dir / DATA, content)
    write_text(run_dir / FILE, study_markdown(content))
    return run_dir / FILE


def study_markdown(study: Mapping[str, Any]) -> str:
    """Claims and tables for a document."""
    claims = [(claim["claim"], claim["outcome"], claim["evidence"]) for claim in study["claims"]]
    parts = [
        f"# Paper and here: {markdown(study['title'])}",
        *([f"**{markdown(study['note'])}**"] if study["note"] else []),
        study["hint"],
        f"Known of the paper's numbers: {'; '.join(study['faults'])}.",
        "## Claims",
        study["who"],
        _table(CLAIM_HEADINGS, claims, 3),
    ]
    for table in study["tables"]:
        parts += [f"## {markdown(table['title'])}", *([table["hint"]] if table["hint"] else [])]
        parts.append(_table(table["headings"], table["rows"], table["left"]))
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    cells = [tuple(map(markdown, row)) for row in rows]
    return markdown_table(tuple(headings), cells, left).strip()
