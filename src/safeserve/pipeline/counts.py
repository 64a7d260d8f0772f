"""Tokens of what a run would read and write, counted with the model's own tokenizer and template, without weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json
from safeserve.data.records import Demonstration, PreferencePair, Prompt
from safeserve.models import embedded
from safeserve.models.blame import blamed
from safeserve.models.chat import ChatFormat
from safeserve.models.loading import INFO, base_of, local_folder, split_revision
from safeserve.pipeline.forecast import TrainingWork

COUNTED = 1000
"""Rows of a source that are tokenised; of a larger source these, evenly spread, stand for all."""
T = TypeVar("T")


def files_of(name: str) -> tuple[Path, str | None]:
    """Folder with config, tokenizer and weights of a model (an adapter's base), and the template stored with it.

    Raises:
        UserError: they are not all on this machine; nothing is downloaded.
    """
    if name == embedded.NAME:
        if not embedded.is_sound(folder := embedded.model_folder()):
            raise UserError(f"{name} is not in the cache yet (safeserve models get)")
        return folder, None
    folder_or_none = local_folder(name, quiet=True)
    if folder_or_none is None:
        return _from_hub_cache(name), None
    folder = folder_or_none
    info = read_json(folder / INFO) if (folder / INFO).exists() else {}
    template = info.get("template")
    if (folder / "adapter_config.json").exists():
        base, inherited = files_of(base_of(folder, info))
        return base, template or inherited
    return folder, template


def _from_hub_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    source, revision = split_revision(name)
    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        folder = Path()
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{name} has not been fetched from the hub yet")
    return folder


def chat_format(folder: Path, template: str | None) -> ChatFormat:
    """How a model renders conversations, by its files alone.

    Raises:
        UserError: no template, or a tokenizer that cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The class for any tokenizer.json: choosing one by the model's config would import all that models need (3 s).
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
    with blamed(folder, "tokenizer"):
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with blamed(folder, "chat template"):
        return ChatFormat(tokenizer, template)


def spread(rows: Sequence[T], most: int = COUNTED) -> tuple[list[T], float]:
    """At most ``most`` rows, evenly spread, and how many each stands for."""
    if len(rows) <= most:
        return list(rows), 1.0
    return [rows[index * len(rows) // most] for index in range(most)], len(rows) / most


@dataclass(frozen=True)
class Answers:
    """How long answers are expected to be: as long as those that the model was last trained on.

    ``lengths`` is None for a model that this run has not trained: then a share of the longest allowed, see
    :data:`UNTRAINED`.
    """

    lengths: tuple[int, ...] | None = None

    def expected(self, longest: int) -> float:
        """Mean tokens of an answer that is cut off after ``longest``."""
        if self.lengths is None:
            return UNTRAINED * longest
        return statistics.fmean(min(length, longest) for length in self.lengths)


UNTRAINED = 0.9
"""Share of the longest allowed answer that a model writes which this run has not trained: SmolLM2-135M-Instruct on
``starter`` (0.97 of 96 tokens, 0.65 of 32)."""


@dataclass(frozen=True)
class PromptCounts:
    """Tokens of one benchmark's prompts.

    Attributes:
        total: of all of them, rendered.
        texts: of the user's texts alone, which is what a guard reads.
        harmful: share of ``texts`` that belongs to harmful prompts, and number of those.
    """

    rows: int
    total: float
    longest: int
    texts: float
    harmful_rows: int
    harmful_texts: float


def count_prompts(chat: ChatFormat, prompts: Sequence[Prompt], most_of_text: int) -> PromptCounts:
    """Count a benchmark's prompts; of each text at most ``most_of_text`` tokens count, as in the guard."""
    some, each = spread(prompts)
    rendered = [len(chat.prompt_ids(prompt.messages)) for prompt in some]
    texts = [min(most_of_text, len(chat.tokenizer(prompt.text)["input_ids"])) for prompt in some]
    harmful = [text for prompt, text in zip(some, texts, strict=True) if prompt.label == "harmful"]
    return PromptCounts(
        rows=len(prompts),
        total=each * sum(rendered),
        longest=max(rendered),
        texts=each * sum(texts),
        harmful_rows=round(each * len(harmful)),
        harmful_texts=each * sum(harmful),
    )


def count_choices(chat: ChatFormat, prompts: Sequence[Prompt]) -> float:
    """Tokens that are read to find the most likely choice: every choice behind its context."""
    some, each = spread(prompts)
    texts = [f"{prompt.meta['context']} {choice['text']}" for prompt in some for choice in prompt.meta["choices"]]
    return each * sum(len(chat.tokenizer(text)["input_ids"]) for text in texts)


@dataclass(frozen=True)
class RowCounts:
    """Tokens of a training stage's rows, without those that are longer than the limit.

    Attributes:
        too_long: rows left out for that.
        lengths: tokens of each counted answer that the model is to learn.
    """

    work: TrainingWork
    too_long: int
    lengths: tuple[int, ...]


def count_demonstrations(chat: ChatFormat, rows: Sequence[Demonstration], limit: int) -> RowCounts:
    """Rows of SIT: prompt and response."""
    return _counted(rows, limit, lambda row: _sizes(chat, row.messages, row.response))


def count_pairs(chat: ChatFormat, rows: Sequence[PreferencePair], limit: int) -> RowCounts:
    """Pairs of DPO: prompt, chosen and rejected; the prompt goes through the model once."""
    return _counted(
        rows,
        limit,
        lambda pair: (*_sizes(chat, pair.messages, pair.chosen), _sizes(chat, pair.messages, pair.rejected)[1]),
    )


def count_own_pairs(chat: ChatFormat, rows: Sequence[Demonstration], limit: int, sample: float) -> RowCounts:
    """Pairs that are still to be made: the demonstration's response is chosen, a sample of that length is rejected."""
    return _counted(rows, limit, lambda row: (*_sizes(chat, row.messages, row.response), round(sample)))


def count_samples(chat: ChatFormat, rows: Sequence[Prompt], limit: int, sample: float, answers: int) -> RowCounts:
    """Samples that are still to be made and then learned: one of each prompt, or a pair."""
    return _counted(rows, limit, lambda row: (len(chat.prompt_ids(row.messages)), *[max(1, round(sample))] * answers))


def _sizes(chat: ChatFormat, messages: Any, response: str) -> tuple[int, int]:
    rendered = chat.render(messages, response)
    return len(rendered.prompt), len(rendered.response)


def _counted(rows: Sequence[T], limit: int, sizes: Callable[[T], tuple[int, ...]]) -> RowCounts:
    """``sizes``: tokens of a row's prompt, then of each of its answers."""
    some, each = spread(rows)
    found = [sizes(row) for row in some]
    kept = [row for row in found if row[0] + max(row[1:]) <= limit]
    tokens = sum(sum(row) for row in kept)
    # A token sees half of its row's answer and the prompt before it.
    context = sum(sum(row) * (row[0] + max(row[1:])) / 2 for row in kept) / max(1, tokens)
    return RowCounts(
        work=TrainingWork(
            items=round(each * len(kept)),
            tokens=each * tokens,
            responses=each * sum(sum(row[1:]) for row in kept),
            context=context,
            longest=max((sum(row) for row in kept), default=0),
        ),
        too_long=round(each * (len(found) - len(kept))),
        lengths=tuple(row[1] for row in kept),
    )
