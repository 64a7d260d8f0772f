"""The contract of an engine, with what goes in (Sampling) and what comes out (Completion)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from safeserve.core.options import Options, typed
from safeserve.core.runs import iter_jsonl
from safeserve.data.records import Prompt

FinishReason = Literal["stop", "length", "error"]
_one: dict[int, int] = {}
"""Every token id met so far as one object: 8 bytes a token instead of 36, where 100,000 prompts are held."""


def shared(ids: Iterable[int]) -> tuple[int, ...]:
    """The same ids, each of them one object wherever it stands."""
    return tuple(_one.setdefault(token, token) for token in ids)


class Sampling(Options):
    """How to decode. The paper: greedy, frequency penalty 1, 120 new tokens."""

    max_new_tokens: int = Field(120, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(0.0, ge=0.0)
    """0 is greedy; above 0 samples."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus: sample from the smallest set of tokens with this probability mass."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time the answer already holds it (OpenAI's definition)."""
    n: int = Field(1, ge=1)
    """Samples per prompt."""
    seed: int = 7
    """Run seed; each sample's own seed is hash(run seed, prompt id, k, iteration)."""
    iteration: int = 0
    """Distinguishes rounds that sample the same prompts again."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returned for sample ``k`` of prompt ``id``.

    ``logprob_sum`` is the summed log-probability (nats) of the answer's tokens under the model, before any
    penalty, temperature or nucleus; None where the engine cannot tell.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob_sum: float | None
    k: int = 0
    prompt_tokens: int = 0
    error: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", shared(self.token_ids))

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        row["token_ids"] = list(self.token_ids)
        return row


def read_completions(path: Path) -> list[Completion]:
    """Completions as they were written, one a line.

    Raises:
        UserError: a line that is no completion.
    """
    return [typed(Completion, row, f"{path} line {number}") for number, row in iter_jsonl(path)]


@dataclass(frozen=True, slots=True)
class Row:
    """One answer to make: sample ``k`` of a prompt, with the prompt's token ids (none where a server tokenises)."""

    prompt: Prompt
    k: int
    ids: tuple[int, ...] = ()

    def key(self) -> list[Any]:
        """What tells this row from any other: a stored wave is only used for the same rows."""
        return [self.prompt.id, self.k, self.ids or self.prompt.messages]


class Engine(Protocol):
    """Turns prompts into completions, in any order; the ids tell which is which."""

    identity: str

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]: ...


class WaveEngine(Protocol):
    """An engine whose work is cut into fixed waves, each whole on disk or made again: a killed run goes on.

    ``identity`` covers all that could change an answer, ``model_identity`` only the model; ``dtype`` is that of the
    computation, or "served" where it is not known. ``not_sent`` names the fields of Sampling that it does not obey.
    """

    @property
    def identity(self) -> str: ...

    @property
    def model_identity(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def not_sent(self) -> tuple[str, ...]: ...

    def waves(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Row]]: ...

    def generate_wave(self, wave: Sequence[Row], sampling: Sampling) -> list[Completion]: ...
