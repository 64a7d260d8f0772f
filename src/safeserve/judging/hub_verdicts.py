"""Let a guard write its verdict, and read the probability of "unsafe" where it writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeserve.core.errors import UserError
from safeserve.judging.hub_models import HubModel, control_ids

# How tokenizers write a space or a line break inside a token.
_BLANKS = "▁ĠĊ \t\n"


@dataclass(frozen=True)
class Written:
    """A guard's text, and P(unsafe) at its verdict; None where no word of the verdict stands there."""

    text: str
    p_unsafe: float | None


@dataclass(frozen=True)
class VerdictIds:
    """Token ids that say unsafe, and those that say safe; disjoint."""

    unsafe: tuple[int, ...]
    safe: tuple[int, ...]


def verdict_ids(hub: HubModel, words: tuple[str, str]) -> VerdictIds:
    """Ids of the tokens that spell (unsafe word, safe word), in any case and with or without a space before.

    The first token of the word as this tokenizer spells it counts too: the vocabulary may hold the word with a space
    before it only, and then what is written after a line break comes in pieces.

    Raises:
        UserError: the tokenizer begins both words alike.
    """
    unsafe, safe = (_ids_of(hub.tokenizer, word) for word in words)
    if not unsafe or not safe or unsafe & safe:
        raise UserError(f'{hub.name}: its tokenizer cannot tell "{words[0]}" from "{words[1]}" by one token.')
    return VerdictIds(tuple(sorted(unsafe)), tuple(sorted(safe)))


def _ids_of(tokenizer: Any, word: str) -> set[int]:
    whole = {number for token, number in tokenizer.get_vocab().items() if token.strip(_BLANKS).lower() == word}
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    return whole.union([piece for piece in pieces if tokenizer.decode([piece]).strip()][:1])


def p_unsafe(logits: Any, ids: VerdictIds) -> float:
    """Softmax over the two sets of tokens: the share of the unsafe ones. ``logits`` [vocabulary], float32."""
    unsafe = logits[list(ids.unsafe)].logsumexp(-1)
    safe = logits[list(ids.safe)].logsumexp(-1)
    return round(float((unsafe - safe).sigmoid()), 6)


def write_verdicts(
    hub: HubModel, rows: Sequence[Sequence[int]], ids: VerdictIds, marker: str, steps: int
) -> list[Written]:
    """Greedy answers of at most ``steps`` tokens to token rows, with P(unsafe) at the first word after ``marker``.

    Line breaks and punctuation before the verdict are passed over (Llama Guard 3 opens with two line breaks). Any
    control token ends an answer.
    """
    import torch
    from transformers import DynamicCache

    from safeserve.generation.local import left_pad

    ends = control_ids(hub.tokenizer)
    known = {*ids.unsafe, *ids.safe}
    answers: list[list[int]] = [[] for _ in rows]
    values: list[float | None] = [None] * len(rows)
    alive, waiting = set(range(len(rows))), set(range(len(rows)))
    tokens, mask = left_pad(rows, hub.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=hub.model.config)
    with torch.inference_mode():
        for _ in range(steps):
            logits = hub.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = logits.argmax(-1, keepdim=True)
            for row, token in enumerate(tokens[:, 0].tolist()):
                if row not in alive:
                    continue
                if token in ends:
                    alive.discard(row)
                    continue
                if row in waiting and _is_verdict(hub.tokenizer, answers[row], token, marker):
                    waiting.discard(row)
                    values[row] = p_unsafe(logits[row].float(), ids) if token in known else None
                answers[row].append(token)
            if not alive:
                break
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
            positions = positions[:, -1:] + 1
    texts = [str(hub.tokenizer.decode(answer)) for answer in answers]
    return [Written(text, value) for text, value in zip(texts, values, strict=True)]


def _is_verdict(tokenizer: Any, before: Sequence[int], token: int, marker: str) -> bool:
    """Whether ``token`` is the first one with a letter in it after the marker."""
    if not _has_letters(str(tokenizer.decode([token]))):
        return False
    text = str(tokenizer.decode(list(before))).lower()
    place = text.rfind(marker.lower())
    return place >= 0 and not _has_letters(text[place + len(marker) :] if marker else text)


def _has_letters(text: str) -> bool:
    return any(character.isalnum() for character in text)
