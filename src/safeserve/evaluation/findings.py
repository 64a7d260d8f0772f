"""What hygiene finds: which rule, how bad, where, and the ids that show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""error: the numbers mean something else than they say; warning: believe them only with this in mind; note: context."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN_IDS = 10

RULES: dict[str, str] = {
    "H1": "an answer belongs to its prompt",
    "H2": "both sides were judged by the same version of a judge",
    "H3": "both sides were decoded alike",
    "H4": "few answers are cut off (more than 10 %)",
    "H5": "both sides saw the prompt in the same template, and none leaks into the answers",
    "H6": "what taught the model is not the only judge of it",
    "H7": "a rate is a count over a count",
    "H8": "answers differ from prompt to prompt, and the two sides differ",
    "H9": "few answers are unscored (more than 2 %)",
    "H10": "there are enough prompts to see a difference",
    "H11": "the model was not trained on the prompts it is tested on",
    "H12": "safety, over-refusal and helpfulness stand together",
    "H13": "the answers are language (more than 5 % degenerate or looping)",
    "edge": "a rate is away from 0 and 100 %, where a suite cannot tell models apart",
}
"""What each rule asks for."""


@dataclass(frozen=True)
class Finding:
    """One rule broken in one place. ``evidence``: ids of prompts (``ID#K`` for a further sample), all of them."""

    rule: str
    severity: Severity
    where: str
    message: str
    evidence: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for a reader."""
        return f"{self.rule}, {self.where}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "evidence": list(self.evidence)}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; within each by rule, in the order found."""
    order = list(RULES)
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.rule)))


def shown(ids: Iterable[str]) -> str:
    """The first ids, and how many more there are."""
    ids = list(ids)
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more
