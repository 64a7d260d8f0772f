"""The sides of the generation benchmark: safeserve's engine, ``model.generate``, transformers' continuous batching.

All start from conversations in memory and a loaded model: rendering and tokenising are inside the time. New tokens are
counted up to and with the end token; what a side computes after it is its own cost.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import Disagreement, Run, hushed, synchronise
from safeserve.data.records import Prompt

NEAR_TIE = 1e-3
"""Two tokens whose logits are closer than this may change places by rounding."""

Answers = dict[str, list[list[int]]]
"""Token ids of each prompt's answers, the end token included where one was made."""


def ours(loaded: Any, prompts: Sequence[Prompt], new: int, samples: int = 1) -> Run:
    """Answers of safeserve's local engine, greedy, or ``samples`` a prompt at temperature 1.

    Returns:
        New tokens; in ``more`` the answers, and whether it was by safeserve's own layers and recorded steps.
    """
    from safeserve.generation import graphs
    from safeserve.generation.engine import Sampling
    from safeserve.generation.local import LocalEngine

    sampling = Sampling(max_new_tokens=new, n=samples, temperature=1.0 if samples > 1 else 0.0)
    with hushed():
        synchronise(loaded.device)
        start = time.perf_counter()
        engine = LocalEngine(loaded)
        completions = list(engine.generate(prompts, sampling))
        synchronise(loaded.device)
        seconds = time.perf_counter() - start
    answers: Answers = {prompt.id: [] for prompt in prompts}
    for one in completions:
        if one.finish_reason == "error":
            raise Disagreement(f"safeserve could not answer {one.id}: {one.error}")
        answers[one.id].append([*one.token_ids, *([loaded.chat.end_id] if one.finish_reason == "stop" else [])])
    run = _run(answers, seconds)
    return replace(run, more={**run.more, "own_layers": engine.own_layers, "graphs": graphs.in_use()})


def generate(loaded: Any, prompts: Sequence[Prompt], new: int, settings: Mapping[str, Any], samples: int = 1) -> Run:
    """Answers of ``model.generate`` on batches of prompts sorted by length.

    Args:
        settings: ``batch`` (prompts at a time), and what else GenerationConfig takes.
    """
    import torch

    given = dict(settings)
    batch, stops = given.pop("batch"), set(loaded.chat.stop_ids)
    config = _config(loaded, new, samples, given)
    answers: Answers = {prompt.id: [] for prompt in prompts}
    with hushed(), torch.inference_mode():
        synchronise(loaded.device)
        start = time.perf_counter()
        encoded = [(prompt.id, loaded.chat.prompt_ids(prompt.messages)) for prompt in prompts]
        encoded.sort(key=lambda item: -len(item[1]))
        for at in range(0, len(encoded), batch):
            part = encoded[at : at + batch]
            width = len(part[0][1])
            padded = [[config.pad_token_id] * (width - len(ids)) + list(ids) for _, ids in part]
            mask = [[0] * (width - len(ids)) + [1] * len(ids) for _, ids in part]
            made = loaded.model.generate(
                input_ids=torch.tensor(padded, device=loaded.device),
                attention_mask=torch.tensor(mask, device=loaded.device),
                generation_config=config,
            )
            for row, tokens in enumerate(made[:, width:].tolist()):
                answers[part[row // samples][0]].append(until_stop(tokens, stops))
        synchronise(loaded.device)
        seconds = time.perf_counter() - start
    return _run(answers, seconds)


def continuous(loaded: Any, prompts: Sequence[Prompt], new: int, settings: Mapping[str, Any], samples: int = 1) -> Run:
    """Answers of transformers' continuous batching.

    Args:
        settings: of ContinuousBatchingConfig; ``num_blocks`` is worked out from ``max_requests_per_batch`` where it is
            not given, so that every request of a batch fits.
    """
    from transformers import ContinuousBatchingConfig

    given, stops = dict(settings), set(loaded.chat.stop_ids)
    config = _config(loaded, new, samples, {})
    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        synchronise(loaded.device)
        start = time.perf_counter()
        inputs = [list(loaded.chat.prompt_ids(prompt.messages)) for prompt in prompts]
        if requests := given.get("max_requests_per_batch"):
            page = given.setdefault("page_size", 32)
            given.setdefault("num_blocks", requests * (2 + (max(map(len, inputs)) + new) // page))
        made = loaded.model.generate_batch(
            inputs, generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**given)
        )
        synchronise(loaded.device)
        seconds = time.perf_counter() - start
        logging.disable(logging.NOTSET)
    outputs = list(made.values())  # in the order of the prompts, the samples of each together
    if len(outputs) != len(prompts) * samples or any(one.error for one in outputs):
        errors = {str(one.error) for one in outputs if one.error}
        raise RuntimeError(f"continuous batching answered {len(outputs)} of {len(prompts) * samples}: {errors}")
    answers: Answers = {prompt.id: [] for prompt in prompts}
    for number, one in enumerate(outputs):
        answers[prompts[number // samples].id].append(until_stop(one.generated_tokens, stops))
    return _run(answers, seconds)


def _config(loaded: Any, new: int, samples: int, more: Mapping[str, Any]) -> Any:
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": samples}
    config = GenerationConfig(
        max_new_tokens=new,
        eos_token_id=list(loaded.chat.stop_ids),
        pad_token_id=loaded.tokenizer.pad_token_id or loaded.chat.end_id,
        **(sampled if samples > 1 else {"do_sample": False}),
        **more,
    )
    loaded.model.generation_config = config  # what it does not say is not filled in from the model's own
    return config


def until_stop(tokens: Sequence[int], stops: set[int]) -> list[int]:
    """Tokens up to and with the first end token."""
    for number, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: number + 1])
    return list(tokens)


def _run(answers: Answers, seconds: float) -> Run:
    lengths = [len(answer) for several in answers.values() for answer in several]
    return Run(sum(lengths), seconds, {"answers": answers, "mean_length": sum(lengths) / len(lengths)})


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Where two answers part; None when they are the same."""
    for number, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return number
    return None if len(a) == len(b) else min(len(a), len(b))


def near_ties(
    prompts: Mapping[str, Sequence[int]], mine: Answers, theirs: Answers, logits: Callable[[list[int]], Any]
) -> list[dict[str, Any]]:
    """Greedy answers that differ, each of which must part at a near-tie of the peer's own logits.

    Args:
        prompts: token ids of each prompt.
        logits: the peer model's logits after some tokens, from a plain forward pass of them alone, [vocabulary].

    Returns:
        For each differing answer its ``id``, the ``position`` and the ``gap`` of the two best logits there.

    Raises:
        Disagreement: an answer parts from the peer's where the peer's model is not undecided between both tokens.
    """
    ties = []
    for name, ids in prompts.items():
        a, b = mine[name][0], theirs[name][0]
        at = first_difference(a, b)
        if at is None:
            continue
        if at == min(len(a), len(b)):
            raise Disagreement(f"{name}: one answer ends at {at} tokens and the other goes on after the same tokens.")
        scores = logits([*ids, *a[:at]])
        best = float(scores.max())
        gap = best - min(float(scores[a[at]]), float(scores[b[at]]))
        if not gap < NEAR_TIE:
            raise Disagreement(f"{name}: the answers part at token {at}, where the logits are {gap:.3g} apart.")
        ties.append({"id": name, "position": at, "gap": gap})
    return ties


def plain_logits(loaded: Any) -> Callable[[list[int]], Any]:
    """Logits of the last position from a forward pass over one unpadded row, float32."""
    import torch

    def logits(ids: list[int]) -> Any:
        with torch.inference_mode():
            return loaded.model(input_ids=torch.tensor([ids], device=loaded.device)).logits[0, -1].float().cpu()

    return logits
