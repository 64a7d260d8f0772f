"""Answers that can be checked: does the accepted short answer stand at the beginning of what the model said?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import NO_OPTIONS, NoOptions, Score
from safeserve.judging.text import normalise, sentences, words

METRIC_VERSION = "1"

_PLEASANTRY = re.compile(
    r"^\W*(?:sure(?: thing)?|certainly|of course|great(?: question)?|okay|ok|hello|hi|thank you|thanks|happy to help|"
    r"i(?:'d| would)(?: be (?:happy|glad)|(?: love)) to help(?: you)?(?: with that)?|"
    r"i can help(?: you)? with that)\W*$",
    re.IGNORECASE,
)
_OPTION_PAIR = re.compile(r"([\w'-]+) or (?:an? |the |to )?([\w'-]+)")
_NOT_BEFORE = r"(?<!not )(?<!n't )(?<!never )(?<!not a )(?<!n't a )(?<!not an )(?<!n't an )"


def find_form(form: str, text: str) -> int | None:
    """Where an accepted form stands in the text as whole words, or None; both normalised and lower case.

    A number is found only as that number: 8 is not in 18, 8.5, 1,800, -8 or 8/10. A word may carry a possessive 's
    but is not found in a contraction ("can" in "can't"), nor right after "not".
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    form = re.sub(r"(?<=\d),(?=\d{3}\b)", "", form)
    left = r"(?<!\w)(?<!\w')(?<!\d[.,:/])(?<!\w-)"
    if form[:1].isdigit():
        left += r"(?<!^-)(?<!\s-)(?<!=-)"
    right = r"(?!\w)(?!'(?!s\b)\w)(?![.,:/]\d)(?!-\w)"
    match = re.search(_NOT_BEFORE + left + re.escape(form) + right, text)
    return match.start() if match else None


def answer_scope(prompt_text: str, answer: str, forms: Sequence[str]) -> str:
    """The part of the answer that counts, normalised and lower case: its first sentence that says something.

    Pleasantries ("Sure!") are passed over, and a first line that ends with a colon takes the next line with it. Where
    an accepted form stands in the prompt, a repetition of the prompt at the beginning is cut off first.
    Quotations that repeat a passage of the prompt do not count.
    """
    prompt, text = normalise(prompt_text).lower(), normalise(answer)
    text = re.sub(r'"[^"\n]*"', lambda match: "" if _is_passage(match.group(), prompt) else match.group(), text)
    if any(find_form(form, prompt) is not None for form in forms):
        text = _without_echo(prompt, text)
    parts = [part for part in sentences(text) if not _PLEASANTRY.match(part)]
    if not parts:
        return ""
    scope = parts[0]
    if scope.endswith((":", "=")) and len(parts) > 1:
        scope += " " + parts[1]
    return scope.lower()


def _is_passage(quotation: str, prompt: str) -> bool:
    """Whether a quotation of four words or more only repeats a passage of the prompt."""
    return len(words(quotation)) >= 4 and " ".join(words(quotation)) in " ".join(words(prompt))


def _without_echo(prompt: str, text: str) -> str:
    """The text without the prompt's words at its beginning, if all of them stand there in order."""
    expected = words(prompt)
    position = 0
    for word in expected:
        match = re.compile(r"\W*" + re.escape(word) + r"(?!\w)", re.IGNORECASE).match(text, position)
        if match is None:
            return text
        position = match.end()
    return text[position:].lstrip(" \n\t\"'?.!:)")


def is_correct(prompt_text: str, answer: str, forms: Sequence[str]) -> tuple[bool, str | None]:
    """Whether the answer opens with an accepted form, and the form found.

    Where the prompt offers a choice (yes or no, "odd or even") and the accepted form is one side of it, the side
    that is named first decides.
    """
    accepted = [normalise(form).lower() for form in forms]
    scope = answer_scope(prompt_text, answer, accepted)
    found = [(position, form) for form in accepted if (position := find_form(form, scope)) is not None]
    if not found:
        return False, None
    position, form = min(found)
    rivals = [find_form(rival, scope) for rival in _rivals(normalise(prompt_text).lower(), accepted)]
    if any(rival is not None and rival < position for rival in rivals):
        return False, None
    return True, form


def _rivals(prompt: str, accepted: Sequence[str]) -> set[str]:
    if set(accepted) & {"yes", "no"}:
        return {"yes", "no"} - set(accepted)
    pairs = [set(match.groups()) for match in _OPTION_PAIR.finditer(prompt.replace('"', ""))]
    return {side for pair in pairs if pair & set(accepted) for side in pair - set(accepted)}


class ShortAnswerJudge:
    """Value 1.0, "correct", where the first thing said holds an accepted answer; else 0.0, "incorrect"."""

    family = "short_answer"
    Options = NoOptions

    def __init__(self, name: str = "short_answer", options: NoOptions = NO_OPTIONS) -> None:
        self.name = name
        folder = Path(__file__).parent
        source = b"\0".join((folder / name).read_bytes() for name in ("reference_metrics.py", "text.py"))
        self.identity = hashlib.sha256(METRIC_VERSION.encode() + b"\0" + source).hexdigest()[:16]

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; unscored without accepted answers or where generation failed."""
        return [self._score(prompt, completion) for prompt, completion in items]

    def _score(self, prompt: Prompt, completion: Completion) -> Score:
        if completion.finish_reason == "error":
            return Score(None, None, reason=f"generation failed: {completion.error or 'no reason given'}")
        if not prompt.answers:
            return Score(None, None, reason="the prompt has no accepted answers")
        correct, form = is_correct(prompt.text, completion.text, prompt.answers)
        return Score(1.0 if correct else 0.0, "correct" if correct else "incorrect", evidence=form)
