"""Multiple choice by likelihood: which of the given continuations does the model find most likely after the context?"""

from __future__ import annotations

from collections.abc import Sequence

from safeserve.core.options import stable_hash
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Row, Sampling
from safeserve.generation.local import LocalEngine
from safeserve.models.loading import LoadedModel

BATCH_ROWS = 8


class ChoiceEngine(LocalEngine):
    """Answers with the label of the most likely choice.

    The prompt's ``meta`` holds ``context`` and ``choices``; the context is read as plain text, without the chat
    format, and a choice follows it after a blank. Scores, encoding and ties (the first choice wins) are those of
    lm-eval's ``multiple_choice`` tasks, whose ``acc`` this reproduces. Sampling does not matter.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.identity = stable_hash(["choices-1", self.identity])

    def rows(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Row]:
        """One row a prompt and sample, with the context's tokens."""
        encoded = [(prompt, self._encode(str(prompt.meta["context"]).rstrip())) for prompt in prompts]
        return [Row(prompt, k, ids) for prompt, ids in encoded for k in range(sampling.n)]

    def generate_wave(self, wave: Sequence[Row], sampling: Sampling) -> list[Completion]:
        """The label of the most likely choice of each row; a row that does not fit the model is an error row."""
        pairs = [pair for row in wave for pair in self._pairs(row)]
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        fitting = [i for i in order if sum(map(len, pairs[i])) <= self.max_positions]
        scores: dict[int, float] = {}
        for start in range(0, len(fitting), BATCH_ROWS):
            chosen = fitting[start : start + BATCH_ROWS]
            results = self._score([pairs[i] for i in chosen])
            scores |= {i: result.logprob_sum for i, result in zip(chosen, results, strict=True)}
        made, first = [], 0
        for row in wave:
            choices = row.prompt.meta["choices"]
            indices = range(first, first + len(choices))
            first += len(choices)
            if any(i not in scores for i in indices):
                reason = f"a choice ends beyond the model's {self.max_positions} positions"
                made.append(Completion(row.prompt.id, "", (), "error", None, row.k, len(row.ids), reason))
                continue
            best = max(indices, key=scores.__getitem__)
            label = str(choices[best - indices.start]["label"])
            made.append(
                Completion(row.prompt.id, label, pairs[best][1], "stop", round(scores[best], 4), row.k, len(row.ids))
            )
        return made

    def _pairs(self, row: Row) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(context, continuation) of every choice; tokenised together, cut where the context alone ends."""
        context = str(row.prompt.meta["context"])
        whole = [self._encode(f"{context} {choice['text']}") for choice in row.prompt.meta["choices"]]
        return [(ids[: len(row.ids)], ids[len(row.ids) :]) for ids in whole]

    def _encode(self, text: str) -> tuple[int, ...]:
        """The tokenizer's own default decides on a token for the beginning, as in lm-eval."""
        return tuple(self.loaded.chat.tokenizer(text)["input_ids"])
