"""What was done to a model, stage by stage, for its card: in words, and every option that acted with its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safeserve.core.options import Options
from safeserve.report.rows import words
from safeserve.report.tables import markdown_table
from safeserve.report.words import markdown
from safeserve.training.options import DpoOptions, OwnPairOptions, SitOptions
from safeserve.training.raft_options import RaftOptions

_OPTIONS: Mapping[str, tuple[type[Options], ...]] = {
    "sit": (SitOptions,),
    "dpo": (DpoOptions, OwnPairOptions),
    "raft": (RaftOptions,),
}
"""Method to what its training stages can set, beside their data."""
_OWN_PAIRS, _RAFT_PAIRS = "starter/pairs", "raft:"
_WITHOUT_EFFECT = {"token_budget", "eval_steps", "checkpoint_steps", "gradient_checkpointing", "save"}
"""Options of speed, memory and files: the model is the same with any of them."""
_LORA = {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
_TOLD = ("method", "start", "seed", "repeats")
"""Keys of a stage that are no data and have a place of their own in the card."""
_SIT_ROWS = (
    ("helpful", "n_helpful", "helpful answers"),
    ("look_alike", "n_look_alike", "helpful answers to harmless look-alikes"),
    ("safety", "dose", "safe answers to harmful prompts"),
)
"""What SIT learns: the keys of the source and of the number of its rows, and what the rows are."""

Stages = Mapping[str, Mapping[str, Any]]


def opening(model: str, chain: Sequence[str], stages: Stages) -> str:
    """What the model was made from and what it was taught, as its stages say it; nothing that they did not do."""
    done = "\n".join(f"{n}. {markdown(name)}: {markdown(_done(stages[name]))}." for n, name in enumerate(chain, 1))
    unsafe = "" if any(_about_safety(stages[name]) for name in chain) else " None of its training was about safety."
    return (
        f"{markdown(model)}, trained with safeserve:\n\n{done}\n\nNot for decisions about people, and not a safety "
        f"system on its own.{unsafe}"
    )


def stages_table(chain: Sequence[str], stages: Stages) -> str:
    """Each stage with its start, and with the data that the recipe gave it."""
    rows = []
    for name in chain:
        stage = stages[name]
        options = {key for kind in _kinds(stage) for key in kind.model_fields}
        data = [f"{key} {_text(value)}" for key, value in stage.items() if key not in options and key not in _TOLD]
        rows.append((name, str(stage.get("method")), str(stage.get("start", "base")), ", ".join(data) or "–"))
    return markdown_table(("stage", "method", "from", "data"), rows, left=4).strip()


def options_table(chain: Sequence[str], stages: Stages, seed: Any) -> str:
    """Every option that acted, whether the recipe sets it or not: a row an option, a column a stage.

    Args:
        seed: the run's, for stages without one of their own.
    """
    columns = {name: {"seed": _own_seed(stages[name], seed), **effective(name, stages[name])} for name in chain}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [(words(key), *(_text(column.get(key)) for column in columns.values())) for key in keys]
    return markdown_table(("option", *columns), rows, left=1).strip()


def effective(name: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    """The options that made a stage's model with the values that they had; those that changed nothing are left out.

    Raises:
        UserError: a value that the method does not take.
    """
    acting: dict[str, Any] = {}
    for kind in _kinds(stage):
        given = {key: value for key, value in stage.items() if key in kind.model_fields}
        options = kind.parse(given, f"train.{name}")
        if isinstance(options, RaftOptions):  # of the two ways to learn it took one
            learning = options.sit_options() if options.update == "sit" else options.dpo_options()
            own = set(RaftOptions.model_fields) - set(DpoOptions.model_fields)
            acting |= {**learning.model_dump(), **options.model_dump(include=own)}
            if options.guard is None:
                del acting["tau"]
        else:
            acting |= options.model_dump()
    idle = _WITHOUT_EFFECT | (_LORA if acting.get("full") else set())
    return {key: value for key, value in acting.items() if key not in idle and value is not None}


def _kinds(stage: Mapping[str, Any]) -> list[type[Options]]:
    kinds = _OPTIONS.get(str(stage.get("method")), ())
    return [kind for kind in kinds if kind is not OwnPairOptions or stage.get("pairs") == _OWN_PAIRS]


def _own_seed(stage: Mapping[str, Any], seed: Any) -> Any:
    return seed if stage.get("seed") is None else stage["seed"]


def _done(stage: Mapping[str, Any]) -> str:
    """What one stage taught, in words."""
    method = stage.get("method")
    if method == "sit":
        return f"supervised fine-tuning on {_and(_sit_rows(stage))}"
    if method == "dpo":
        pairs = str(stage.get("pairs"))
        if pairs == _OWN_PAIRS:
            return "preference training on pairs built from the start model's own samples"
        if pairs.startswith(_RAFT_PAIRS):
            return f"preference training on the best and worst samples of {pairs.removeprefix(_RAFT_PAIRS)}"
        share = stage.get("pairs_share")
        count = _number(stage.get("n_pairs")) if share is None else f"{100 * share:g} % of the"
        return f"preference training on {count} pairs of {pairs}"
    if method == "raft":
        learned = "its picked samples against the worst" if stage.get("update") == "dpo" else "its own picked samples"
        teachers = [_text(stage[key]) for key in ("reward", "guard") if stage.get(key)]
        by = f", scored by {_and(teachers)}" if teachers else ""
        return f"training in rounds on {learned} (rule {stage.get('rule', 'top1')}{by})"
    return str(method)


def _sit_rows(stage: Mapping[str, Any]) -> list[str]:
    """What a SIT stage learned, with how many of each; a dose of 0 is told, for the name of the method hides it."""
    told = [
        f"{_number(stage.get(number))} {what} ({stage[source]})"
        for source, number, what in _SIT_ROWS
        if stage.get(source) and stage.get(number) != 0
    ]
    return told if _about_safety(stage) else [*told, "no safe answers to harmful prompts"]


def _about_safety(stage: Mapping[str, Any]) -> bool:
    """Whether harmful prompts or safe answers had a part in a stage; pairs are taken to be about safety."""
    if stage.get("method") == "sit":
        return bool(stage.get("safety")) and stage.get("dose") != 0
    return stage.get("method") != "raft" or stage.get("harmful_share") != 0 or bool(stage.get("guard"))


def _number(count: Any) -> str:
    return "all" if count is None else str(count)


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _text(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
