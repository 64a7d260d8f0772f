"""Labelled answers from a file of one's own: prompt, response and label, as JSON lines, JSON or CSV."""

from __future__ import annotations

from pathlib import Path

from safeserve.core.errors import UserError
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import SETS, load_labels
from safeserve.data.reading import read_rows

UNSAFE = {"unsafe": 1.0, "1": 1.0, "true": 1.0, "safe": 0.0, "0": 0.0, "false": 0.0}
REFUSAL = {
    "full_refusal": "full_refusal",
    "refusal": "full_refusal",
    "partial_refusal": "partial_refusal",
    "full_compliance": "full_compliance",
    "compliance": "full_compliance",
}


def labelled_answers(name: str, root: str | Path | None = None) -> list[LabelledAnswer]:
    """The rows of a labelled set by name, or of a file with the columns prompt, response, label (and category).

    A label is unsafe or safe (also 1 or 0, true or false), or full_refusal, partial_refusal or full_compliance (also
    refusal or compliance).

    Raises:
        UserError: neither a set nor a file, a column that is missing, or a label that is none of these.
    """
    path = Path(name)
    if name in SETS or not path.is_file():
        if path.suffix:
            raise UserError(f"{name}: no such file.")
        return load_labels(name, root)
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        missing = [column for column in ("prompt", "response", "label") if row.values.get(column) is None]
        if missing:
            found = ", ".join(map(str, row.values))
            raise UserError(f'{path} row {number}: no "{missing[0]}" (found: {found}). Rename the column.')
        label = str(row.values["label"]).strip().lower()
        if label not in UNSAFE and label not in REFUSAL:
            raise UserError(
                f'{path} row {number}: label "{label}" is unknown. Use unsafe or safe, or full_refusal, '
                "partial_refusal or full_compliance."
            )
        rows.append(
            LabelledAnswer(
                f"{path.stem}-{number}",
                str(row.values["prompt"]),
                str(row.values["response"]),
                unsafe=UNSAFE.get(label),
                refusal=REFUSAL.get(label),
                category=str(row.values.get("category") or ""),
            )
        )
    if not rows:
        raise UserError(f"{path}: no rows in it.")
    return rows
