"""One rendering of a conversation: strict prefix, loss mask, named templates, one BOS, the right end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeserve.core.errors import UserError
from safeserve.data.records import Message, user
from safeserve.models.chat import ChatFormat

TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "What is two and two?"},
)
CHATML_TURNS = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nWhat is two and two?<|im_end|>\n<|im_start|>assistant\n"
)
ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


@pytest.fixture(scope="module")
def chat(tiny_folder: Any) -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(tiny_folder))


def test_prompt_and_response_by_hand(chat: ChatFormat) -> None:
    rendered = chat.render(user("ab"), "cd")
    start, end = (chat.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))

    def spell(text: str) -> list[int]:
        return [chat.tokenizer.convert_tokens_to_ids("Ċ" if char == "\n" else char) for char in text]

    prompt = [start, *spell("user\nab"), end, *spell("\n"), start, *spell("assistant\n")]
    assert rendered.prompt == tuple(prompt)
    assert rendered.response == (*spell("cd"), end)
    assert rendered.ids == rendered.prompt + rendered.response
    assert rendered.loss_mask == (0,) * len(prompt) + (1, 1, 1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=st.text(max_size=40), answer=st.text(max_size=40))
def test_the_prompt_is_always_a_strict_prefix(chat: ChatFormat, question: str, answer: str) -> None:
    rendered = chat.render(user(question), answer)
    assert rendered.prompt == chat.prompt_ids(user(question))
    assert rendered.ids[: len(rendered.prompt)] == rendered.prompt
    assert len(rendered.ids) > len(rendered.prompt)
    assert rendered.response[-1] == chat.end_id
    assert chat.decode(rendered.response) == answer.strip()
    assert sum(rendered.loss_mask) == len(rendered.response)


def test_a_tokenizer_that_merges_across_the_border_cannot_change_the_prompt(
    base_tokenizer: Callable[..., Any],
) -> None:
    chat = ChatFormat(base_tokenizer(merges=[("Ċ", "Ċ")]), "chatml")
    text = chat.text(user("ab"))
    assert text.endswith("\n")
    merged = chat.tokenizer(text + "\nx", add_special_tokens=False)["input_ids"]
    alone = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert merged[: len(alone)] != alone  # the case that is meant
    rendered = chat.render(user("ab"), "\nx")
    assert list(rendered.prompt) == alone
    assert rendered.response == (*chat.tokenizer("\nx", add_special_tokens=False)["input_ids"], chat.end_id)


def test_several_turns_in_chatml(chat: ChatFormat) -> None:
    assert chat.text(TURNS) == CHATML_TURNS
    assert chat.tokenizer.decode(chat.prompt_ids(TURNS)) == CHATML_TURNS


def test_alpaca_on_a_base_model(base_tokenizer: Callable[..., Any]) -> None:
    chat = ChatFormat(base_tokenizer(), "alpaca")
    assert chat.text(user("Add 2 and 2.")) == f"{ALPACA_HEAD}\n\n### Instruction:\nAdd 2 and 2.\n\n### Response:\n"
    assert chat.tokenizer.decode(chat.render(user("x"), "four").response) == "four</s>"
    assert chat.end_text == "</s>"


def test_alpaca_with_several_turns(base_tokenizer: Callable[..., Any]) -> None:
    turns = TURNS[1:]
    expected = (
        f"{ALPACA_HEAD}\n\n### Instruction:\nHello\n\n### Response:\nHi.</s>\n\n"
        "### Instruction:\nWhat is two and two?\n\n### Response:\n"
    )
    assert ChatFormat(base_tokenizer(), "alpaca").text(turns) == expected


def test_chatml_on_a_base_model_ends_with_its_own_end_token(base_tokenizer: Callable[..., Any]) -> None:
    """<|im_end|> is plain text to this tokenizer, so an answer ends with </s>."""
    chat = ChatFormat(base_tokenizer(), "chatml")
    assert chat.text(user("Hello")) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert chat.end_text == "</s>"


def test_a_base_model_needs_a_template(base_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"no chat template .* template: alpaca .* template: chatml"):
        ChatFormat(base_tokenizer())


def test_an_unknown_template_suggests_one(base_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r'unknown name "alpacca"\. Did you mean "alpaca"\?'):
        ChatFormat(base_tokenizer(), "alpacca")


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_a_tokenizer_that_adds_bos_gets_exactly_one(base_tokenizer: Callable[..., Any], template: str) -> None:
    chat = ChatFormat(base_tokenizer(adds_bos=True), template)
    ids = chat.render(user("Hello"), "Hi").ids
    assert ids[0] == chat.tokenizer.bos_token_id
    assert ids.count(chat.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_a_tokenizer_that_adds_none_gets_none(base_tokenizer: Callable[..., Any], template: str) -> None:
    chat = ChatFormat(base_tokenizer(), template)
    assert chat.tokenizer.bos_token_id not in chat.render(user("Hello"), "Hi").ids


def test_a_template_of_the_models_own_with_bos_is_not_doubled(base_tokenizer: Callable[..., Any]) -> None:
    tokenizer = base_tokenizer(adds_bos=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = ChatFormat(tokenizer)
    assert chat.render(user("Hello"), "Hi").ids.count(tokenizer.bos_token_id) == 1
    assert chat.end_id == tokenizer.eos_token_id


def test_the_end_is_the_templates_own_token_even_where_eos_is_another(base_tokenizer: Callable[..., Any]) -> None:
    """Llama 3 and others: turns end with a token of their own; either token stops an answer."""
    tokenizer = base_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}<|endoftext|>{% endfor %}"
    chat = ChatFormat(tokenizer)
    assert chat.end_id == 0
    assert chat.stop_ids == (0, 2)
    assert chat.render(user("Hello"), "Hi").response[-1] == 0


def test_a_tokenizer_without_any_end_is_refused(base_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="no end token"):
        ChatFormat(base_tokenizer(eos=None), "chatml")


def test_identity_tells_templates_apart(base_tokenizer: Callable[..., Any]) -> None:
    first, second, third = (
        ChatFormat(base_tokenizer(), "alpaca"),
        ChatFormat(base_tokenizer(), "chatml"),
        ChatFormat(base_tokenizer(adds_bos=True), "alpaca"),
    )
    assert len({first.identity, second.identity, third.identity}) == 3
    assert first.identity == ChatFormat(base_tokenizer(), "alpaca").identity


def test_decoding_drops_special_tokens_and_outer_blanks(chat: ChatFormat) -> None:
    ids = chat.tokenizer("  a b \n<|im_end|>", add_special_tokens=False)["input_ids"]
    assert chat.decode(ids) == "a b"


def test_end_tokens_that_the_model_declares_stop_too(base_tokenizer: Callable[..., Any]) -> None:
    plain = ChatFormat(base_tokenizer(), "chatml")
    more = ChatFormat(base_tokenizer(), "chatml", more_stops=(2, 0, 9))
    assert (plain.stop_ids, more.stop_ids) == ((2,), (0, 2, 9))
    assert more.end_id == plain.end_id, "what training puts after an answer stays the template's own"
    assert more.identity != plain.identity
    assert ChatFormat(base_tokenizer(), "chatml", more_stops=(2,)).identity == plain.identity, "nothing is added"
