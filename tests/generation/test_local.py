"""The local engine against transformers and against naive loops, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from safeserve.core.options import typed
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion, Sampling

torch = pytest.importorskip("torch")

Make = Callable[..., Any]
GREEDY = Sampling(max_new_tokens=24)


def by_key(completions: Any) -> dict[tuple[str, int], Completion]:
    return {(c.id, c.k): c for c in completions}


def naive_logprob(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Summed log-probability of ``answer`` after ``prompt``, one full pass for each token."""
    total, ids = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, dim=-1)[token])
        ids.append(token)
    return total


def naive_greedy(model: Any, prompt: Sequence[int], stop: Sequence[int], tokens: int, penalty: float) -> list[int]:
    """Greedy decoding without cache or batch, with OpenAI's frequency penalty written out."""
    answer: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1]
        for token in set(answer):
            scores[token] -= penalty * answer.count(token)
        best = int(scores.argmax())
        if best in stop:
            break
        answer.append(best)
    return answer


@pytest.mark.parametrize(("wave_rows", "slots"), [(1, 1), (4, 2), (48, 1), (48, 3), (48, 64)])
@pytest.mark.parametrize("own_layers", [True, False])
def test_greedy_is_what_transformers_generates(
    engine: Make, loaded: Any, prompts: list[Prompt], wave_rows: int, slots: int, own_layers: bool
) -> None:
    """Rows of mixed length share slots, or are padded by transformers' own layers; it gets one prompt at a time."""
    ours = engine(wave_rows=wave_rows, slots=slots)
    assert ours._decoder is not None
    ours._decoder = ours._decoder if own_layers else None
    made = by_key(ours.generate(prompts, GREEDY))
    assert len(made) == len(prompts)
    for prompt in prompts:
        ids = torch.tensor([loaded.chat.prompt_ids(prompt.messages)])
        expected = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=list(loaded.chat.stop_ids),
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        stopped = expected[-1] in loaded.chat.stop_ids
        completion = made[prompt.id, 0]
        assert list(completion.token_ids) == (expected[:-1] if stopped else expected)
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert completion.text == loaded.chat.decode(completion.token_ids)
        assert completion.prompt_tokens == ids.shape[1]


def test_answers_are_not_all_alike(engine: Make, prompts: list[Prompt]) -> None:
    """The comparisons above would be empty if the tiny model always said the same."""
    assert len({c.token_ids for c in engine().generate(prompts, GREEDY)}) == len(prompts)


@pytest.mark.parametrize("penalty", [1.0, 3.0, -0.5])
def test_frequency_penalty_is_a_naive_loop(engine: Make, loaded: Any, prompts: list[Prompt], penalty: float) -> None:
    sampling = Sampling(max_new_tokens=16, frequency_penalty=penalty)
    made = by_key(engine().generate(prompts, sampling))
    for prompt in prompts:
        ids = loaded.chat.prompt_ids(prompt.messages)
        expected = naive_greedy(loaded.model, ids, loaded.chat.stop_ids, 16, penalty)
        assert list(made[prompt.id, 0].token_ids) == expected


def test_frequency_penalty_acts(engine: Make, prompts: list[Prompt]) -> None:
    plain = by_key(engine().generate(prompts, GREEDY))
    penalised = by_key(engine().generate(prompts, GREEDY.model_copy(update={"frequency_penalty": 3.0})))
    assert any(plain[key].token_ids != penalised[key].token_ids for key in plain)


SAMPLED = Sampling(max_new_tokens=20, temperature=1.0, top_p=0.9, n=2, seed=5)


def test_a_sample_does_not_depend_on_its_batch(engine: Make, prompts: list[Prompt]) -> None:
    together = by_key(engine().generate(prompts, SAMPLED))
    assert len(together) == 2 * len(prompts)
    assert by_key(engine(wave_rows=1).generate(prompts, SAMPLED)) == pytest_equal(together)
    assert by_key(engine(wave_rows=5).generate(list(reversed(prompts)), SAMPLED)) == pytest_equal(together)
    assert by_key(engine(slots=3).generate(prompts, SAMPLED)) == pytest_equal(together)
    alone = by_key(engine().generate(prompts[3:4], SAMPLED.model_copy(update={"n": 1})))
    assert alone["p3", 0].token_ids == together["p3", 0].token_ids


class pytest_equal:
    """Completions that are equal up to rounding of their log-probabilities."""

    def __init__(self, expected: dict[tuple[str, int], Completion]) -> None:
        self.expected = expected

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, dict)
        assert other.keys() == self.expected.keys()
        for key, completion in self.expected.items():
            found = other[key]
            assert (found.token_ids, found.text, found.finish_reason) == (
                completion.token_ids,
                completion.text,
                completion.finish_reason,
            )
            assert found.logprob_sum == pytest.approx(completion.logprob_sum, abs=2e-3)
        return True

    __hash__ = None  # type: ignore[assignment]


def test_every_sample_has_a_seed_of_its_own(engine: Make, prompts: list[Prompt]) -> None:
    first = by_key(engine().generate(prompts, SAMPLED))
    assert all(first[p.id, 0].token_ids != first[p.id, 1].token_ids for p in prompts)
    for changed in ({"seed": 6}, {"iteration": 1}):
        other = by_key(engine().generate(prompts, SAMPLED.model_copy(update=changed)))
        assert all(first[key].token_ids != other[key].token_ids for key in first)


@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, Sampling(max_new_tokens=12, frequency_penalty=2.0, temperature=2.0)]
)
def test_logprob_sum_is_that_of_the_plain_model(
    engine: Make, loaded: Any, prompts: list[Prompt], sampling: Sampling
) -> None:
    """Whatever the penalty, temperature and nucleus: the sum is under the model itself, end token included."""
    for completion in engine().generate(prompts, sampling):
        prompt = next(p for p in prompts if p.id == completion.id)
        ids = loaded.chat.prompt_ids(prompt.messages)
        answers = [list(completion.token_ids)]
        if completion.finish_reason == "stop":
            answers = [[*completion.token_ids, stop] for stop in loaded.chat.stop_ids]
        sums = [naive_logprob(loaded.model, ids, answer) for answer in answers]
        assert any(completion.logprob_sum == pytest.approx(total, abs=1e-3) for total in sums)


def test_loglikelihood_is_a_naive_sum(engine: Make, loaded: Any, prompts: list[Prompt]) -> None:
    answers = ["four", "x", "", "hello, whole wide world", "Because.", "apple, pear, plum"]
    items = list(zip(prompts, answers, strict=True))
    for batch_rows in (1, 4, 16):
        results = engine().loglikelihood(items, batch_rows=batch_rows)
        for (prompt, answer), result in zip(items, results, strict=True):
            ids = loaded.chat.tokenizer(answer, add_special_tokens=False)["input_ids"]
            expected = naive_logprob(loaded.model, loaded.chat.prompt_ids(prompt.messages), ids)
            assert result.tokens == len(ids)
            assert result.logprob_sum == pytest.approx(expected, abs=1e-3)


def test_the_greedy_answer_is_recognised_and_its_likelihood_is_its_logprob_sum(
    engine: Make, loaded: Any, prompts: list[Prompt]
) -> None:
    """Only answers that are whole text can be given back as text; the first such start of each answer is taken."""
    compared = 0
    for length in range(1, 6):
        for completion in engine().generate(prompts, Sampling(max_new_tokens=length)):
            text = loaded.chat.tokenizer.decode(list(completion.token_ids))
            ids = loaded.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
            if tuple(ids) != completion.token_ids or completion.finish_reason != "length":
                continue
            prompt = next(p for p in prompts if p.id == completion.id)
            same, other = engine().loglikelihood([(prompt, text), (prompt, text + "§")])
            assert same.is_greedy
            assert same.logprob_sum == pytest.approx(completion.logprob_sum, abs=1e-3)
            assert other.logprob_sum < same.logprob_sum
            compared += 1
    assert compared >= 3


def test_something_else_than_the_greedy_answer_is_told_apart(engine: Make, prompts: list[Prompt]) -> None:
    results = engine().loglikelihood([(prompt, "zqzqzqzq") for prompt in prompts])
    assert not any(result.is_greedy for result in results)


def test_a_prompt_that_does_not_fit_is_an_error_row(engine: Make, prompts: list[Prompt]) -> None:
    """The tiny model has 256 positions; the other rows are answered as if the long one were not there."""
    long = Prompt("long", user("x" * 300), "benign")
    made = by_key(engine().generate([prompts[0], long, prompts[1]], GREEDY))
    assert made["long", 0].finish_reason == "error"
    assert "leaves no room in the model's 256 positions" in (made["long", 0].error or "")
    assert (made["long", 0].text, made["long", 0].token_ids, made["long", 0].logprob_sum) == ("", (), None)
    without = by_key(engine().generate(prompts[:2], GREEDY))
    assert {key: made[key].token_ids for key in without} == {key: c.token_ids for key, c in without.items()}


def test_a_prompt_that_just_fits_is_answered(engine: Make, loaded: Any) -> None:
    empty = len(loaded.chat.prompt_ids(user("")))
    just, over = (Prompt(str(n), user("x" * (256 - 24 - empty + n)), "benign") for n in (0, 1))
    made = by_key(engine().generate([just, over], GREEDY))
    assert made["0", 0].finish_reason == "length"
    assert made["1", 0].finish_reason == "error"


def test_only_prompts_that_do_not_fit(engine: Make) -> None:
    (completion,) = engine().generate([Prompt("long", user("x" * 300), "benign")], GREEDY)
    assert completion.finish_reason == "error"


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(max_new_tokens=24, frequency_penalty=2.0),
        Sampling(max_new_tokens=24, temperature=0.8, n=2),
        Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, frequency_penalty=1.0),
    ],
    ids=["greedy", "penalty", "sampled", "all"],
)
def test_an_answer_ends_at_the_end_token(tiny: Callable[..., Any], prompts: list[Prompt], sampling: Sampling) -> None:
    """The first row's third token is made the end token: rows are cut there, the others go on as before."""
    from safeserve.generation.local import LocalEngine

    loaded = tiny()
    before = by_key(LocalEngine(loaded).generate(prompts, sampling))
    first = max(prompts, key=lambda prompt: len(prompt.text))  # so the rows after it move up
    end = before[first.id, 0].token_ids[2]
    loaded.chat.end_id = end
    after = by_key(LocalEngine(loaded).generate(prompts, sampling))
    for key, completion in after.items():
        whole = list(before[key].token_ids)
        expected = whole[: whole.index(end)] if end in whole else whole
        assert list(completion.token_ids) == expected
        if end in whole:
            assert completion.finish_reason == "stop"
            ids = loaded.chat.prompt_ids(next(p for p in prompts if p.id == key[0]).messages)
            assert completion.logprob_sum == pytest.approx(naive_logprob(loaded.model, ids, [*expected, end]), abs=1e-3)
    assert {c.finish_reason for c in after.values()} == {"stop", "length"}


def test_an_answer_may_end_at_once(tiny: Callable[..., Any], prompts: list[Prompt]) -> None:
    from safeserve.generation.local import LocalEngine

    loaded = tiny()
    (completion,) = LocalEngine(loaded).generate(prompts[:1], Sampling(max_new_tokens=1))
    loaded.chat.end_id = completion.token_ids[0]
    (ended,) = LocalEngine(loaded).generate(prompts[:1], GREEDY)
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (), "stop")
    assert ended.logprob_sum == pytest.approx(completion.logprob_sum, abs=1e-4)


def test_waves_are_the_longest_first_and_complete(engine: Make, prompts: list[Prompt]) -> None:
    waves = engine(wave_rows=4).waves(prompts, SAMPLED)
    assert [len(wave) for wave in waves] == [4, 4, 4]
    lengths = [len(row.ids) for wave in waves for row in wave]
    assert lengths == sorted(lengths, reverse=True)
    assert {(row.prompt.id, row.k) for wave in waves for row in wave} == {(p.id, k) for p in prompts for k in (0, 1)}


def test_no_prompts_no_completions(engine: Make) -> None:
    assert list(engine().generate([], GREEDY)) == []


def test_identity_tells_engines_apart(engine: Make) -> None:
    assert engine().identity == engine().identity
    assert engine().identity != engine(wave_rows=2).identity


def test_a_completion_survives_json() -> None:
    import json

    completion = Completion("a", "b", (1, 2), "stop", -1.5, 1, 7)
    assert typed(Completion, json.loads(json.dumps(completion.to_json())), "here") == completion


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_head_is_frozen_again(engine: Make, loaded: Any, prompts: list[Prompt], frozen: bool) -> None:
    """By transformers' own layers, which are quicker with a head that may need a gradient."""
    ours = engine()
    ours._decoder = None
    weight = ours.loaded.model.get_output_embeddings().weight
    weight.requires_grad_(not frozen)
    list(ours.generate(prompts, Sampling(max_new_tokens=2)))
    ours.loglikelihood([(prompts[0], "yes")])
    assert weight.requires_grad is not frozen
