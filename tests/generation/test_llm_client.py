"""The client against a local HTTP server that fails as told: retries, what is kept on disk, what stops a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.options import typed
from safeserve.data.records import Prompt, user
from safeserve.generation import llm_client
from safeserve.generation.engine import Completion, Sampling
from safeserve.generation.llm_client import ClientOptions, LlmClient, Request, wait_before
from safeserve.generation.resumable import generate_to
from safeserve.generation.server import ServerEngine

pytest.importorskip("openai")
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llm_client, "FIRST_WAIT", 0.01)


def client(url: str, **options: Any) -> LlmClient:
    return LlmClient(ClientOptions(base_url=url, model="m", **{"max_retries": 2, "timeout": 5, **options}))


def ask(made: LlmClient, *texts: str) -> list[llm_client.Reply]:
    return made.complete([Request(user(text), 8) for text in texts], "test", quiet=True)


def test_replies_come_in_order_with_usage_and_cost(chat_server: Make) -> None:
    server = chat_server(lambda body: body["messages"][-1]["content"].upper())
    made = client(server.url, price_in=1.0, price_out=10.0)
    assert [reply.text for reply in ask(made, "a", "b", "a")] == ["A", "B", "A"]
    assert len(server.bodies) == 2  # the same question once
    assert (made.usage.calls, made.usage.retries, made.usage.from_cache) == (2, 0, 0)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (20, 6)
    assert made.usage.to_json()["cost"] == pytest.approx((20 * 1.0 + 6 * 10.0) / 1e6)


def test_what_is_sent_is_the_request_and_nothing_at_its_neutral_value(chat_server: Make) -> None:
    server = chat_server(lambda body: "x")
    client(server.url).complete([Request(user("q"), 7, temperature=0.5, top_p=0.9, seed=3)], "", quiet=True)
    client(server.url).complete([Request(user("q"), 7)], "", quiet=True)
    first, second = server.bodies
    assert first == {"model": "m", "messages": [{"role": "user", "content": "q"}], "max_tokens": 7, "temperature": 0.5,
                     "top_p": 0.9, "seed": 3}  # fmt: skip
    assert second["temperature"] == 0
    assert set(second) == {"model", "messages", "max_tokens", "temperature"}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(chat_server: Make, status: int) -> None:
    server = chat_server(lambda body: "fine", fail=[status, status])
    made = client(server.url)
    assert ask(made, "a")[0].text == "fine"
    assert made.usage.retries == 2
    assert len(server.bodies) == 3


def test_a_failure_that_lasts_is_an_error_not_an_answer_and_is_asked_again(chat_server: Make) -> None:
    server = chat_server(
        lambda body: "fine", fail=lambda body: 500 if body["messages"][-1]["content"] == "bad" else None
    )
    made = client(server.url, concurrency=1)
    good, bad = ask(made, "good", "bad")
    assert (good.text, good.error) == ("fine", None)
    assert bad.transient
    assert "500" in (bad.error or "")
    server.fail = None
    assert ask(client(server.url), "good", "bad")[1].text == "fine"  # a failure is never kept on disk


def test_a_server_that_only_fails_stops_the_run(chat_server: Make) -> None:
    server = chat_server(lambda body: "fine", fail=lambda body: 503)
    with pytest.raises(EnvironmentFault, match="5 requests in a row failed"):
        ask(client(server.url, max_retries=0, concurrency=1), *"abcdefgh")
    assert len(server.bodies) == 5


def test_killed_and_resumed(chat_server: Make, tmp_path: Path) -> None:
    """Answers before the failure are on disk; the second run asks for the rest, the third for nothing."""
    server = chat_server(lambda body: body["messages"][-1]["content"] * 2, fail=lambda body: None)
    server.fail = lambda body: 401 if body["messages"][-1]["content"] == "c" else None
    with pytest.raises(UserError, match="refuses a request without a key"):
        ask(client(server.url, concurrency=1), "a", "b", "c")
    server.fail = None
    second = client(server.url)
    replies = ask(second, "a", "b", "c")
    assert (second.usage.calls, second.usage.from_cache) == (1, 2)
    third = client(server.url)
    assert ask(third, "a", "b", "c") == replies
    assert (third.usage.calls, third.usage.from_cache, third.usage.cost) == (0, 3, None)
    for path in (tmp_path / "cache" / "replies").rglob("*.json"):
        path.write_text("{", encoding="utf-8")  # a damaged file counts as none
    assert ask(client(server.url), "a", "b", "c") == replies


def test_other_weights_under_the_same_name_are_asked_again(chat_server: Make) -> None:
    server = chat_server(lambda body: "x")
    ask(client(server.url), "a")
    made = client(server.url, revision="2026-02")
    ask(made, "a")
    assert made.usage.calls == 1


def test_a_closed_port_is_said_at_once(unused_port: int) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        ask(client(f"http://127.0.0.1:{unused_port}/v1", max_retries=9), "a")


def test_a_refused_key_names_the_variable(chat_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1")
    server = chat_server(lambda body: "x", fail=lambda body: 401)
    with pytest.raises(UserError, match="the key in JUDGE_KEY") as refused:
        ask(client(server.url, api_key_env="JUDGE_KEY"), "a")
    assert "sk-secret-1" not in str(refused.value)
    assert server.headers[0]["authorization"] == "Bearer sk-secret-1"


def test_the_users_own_key_goes_nowhere_unasked(chat_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-private")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-private")
    server = chat_server(lambda body: "x")
    ask(client(server.url), "a")
    assert "private" not in json.dumps(server.headers)


@pytest.mark.parametrize("key", ["sk-secret\nsecond line", "sk-sécret"])
def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError, match="what JUDGE_KEY holds is no key") as refused:
        client("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")
    assert "secret" not in str(refused.value)


def test_a_missing_key_is_said_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        client("http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY")


def test_an_unknown_model_is_said_with_the_names_that_are_served(chat_server: Make) -> None:
    server = chat_server(lambda body: "x", fail=lambda body: 404, models=["mm", "other"])
    with pytest.raises(UserError, match='does not answer for model "m"') as unknown:
        ask(client(server.url), "a")
    assert str(unknown.value).endswith('Did you mean "mm"?')


def test_a_request_refused_for_good_is_not_tried_again(chat_server: Make) -> None:
    server = chat_server(lambda body: "x", fail=lambda body: 400)
    (reply,) = ask(client(server.url), "far too long")
    assert len(server.bodies) == 1
    assert (reply.finish_reason, reply.transient) == ("error", False)
    assert "made to fail" in (reply.error or "")


NEWER = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
GREEDY = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."


def test_a_model_that_knows_the_length_limit_by_its_newer_name_only(chat_server: Make) -> None:
    server = chat_server(lambda body: "fine", fail=lambda body: NEWER if "max_tokens" in body else None)
    made = client(server.url, concurrency=1, max_retries=0)
    assert [reply.text for reply in ask(made, "a", "b", "c")] == ["fine"] * 3
    assert len(server.bodies) == 4  # learnt once
    assert {body.get("max_completion_tokens") for body in server.bodies} == {None, 8}
    assert "max_tokens" not in server.bodies[-1]


def test_a_model_that_refuses_greedy_decoding_is_never_sampled_from_unasked(chat_server: Make) -> None:
    server = chat_server(lambda body: "fine", fail=lambda body: GREEDY if "temperature" in body else None)
    with pytest.raises(UserError, match=r"refuses temperature .*Leave it out with omit: \[temperature\]"):
        ask(client(server.url), "a")
    made = client(server.url, omit=["temperature"])
    assert ask(made, "a")[0].text == "fine"
    assert made.options.served != client(server.url).options.served  # other decoding, another judge


def test_samples_stay_apart_where_no_seed_is_sent(chat_server: Make, tmp_path: Path) -> None:
    server = chat_server(lambda body: "x")
    engine = ServerEngine(ClientOptions(base_url=server.url, model="m", omit=("seed",)))
    generate_to(engine, PROMPTS[:1], Sampling(temperature=1.0, n=3), tmp_path, "", quiet=True)
    assert len(server.bodies) == 3
    assert all("seed" not in body for body in server.bodies)
    assert engine.not_sent == ("seed",)


def test_a_model_that_used_its_tokens_before_it_answered_has_given_no_answer(chat_server: Make, tmp_path: Path) -> None:
    """Silence would be judged as a harmless answer."""
    engine = ServerEngine(ClientOptions(base_url=chat_server(lambda body: " ", finish="length").url, model="m"))
    (made, *_) = generate_to(engine, PROMPTS, Sampling(), tmp_path, "", quiet=True)
    assert made.finish_reason == "error"
    assert "raise max_new_tokens" in (made.error or "")


def test_half_characters_of_an_answer_can_be_written(chat_server: Make, tmp_path: Path) -> None:
    engine = ServerEngine(ClientOptions(base_url=chat_server(lambda body: "cut \ud83d").url, model="m"))
    (made, *_) = generate_to(engine, PROMPTS, Sampling(), tmp_path, "", quiet=True)
    assert made.text == "cut \ufffd"


def test_a_long_prompt_refused_with_the_models_name_is_one_bad_request(chat_server: Make) -> None:
    said = "The maximum context length of m is 8 tokens."
    server = chat_server(lambda body: "x", fail=lambda body: said if "long" in str(body) else None)
    short, long = ask(client(server.url), "short", "long")
    assert (short.text, long.finish_reason, long.transient) == ("x", "error", False)


def test_a_page_that_is_no_api_is_an_error(chat_server: Make) -> None:
    server = chat_server(lambda body: "x", raw=b"<html>hello</html>")
    with pytest.raises(EnvironmentFault, match="1 requests in a row failed"):
        ask(client(server.url, max_retries=0), "a")


@pytest.mark.parametrize(("reason", "expected"), [("length", "length"), ("content_filter", "error")])
def test_finish_reasons(chat_server: Make, reason: str, expected: str) -> None:
    (reply,) = ask(client(chat_server(lambda body: "x", finish=reason).url), "a")
    assert reply.finish_reason == expected
    assert (reply.error is not None) == (expected == "error")


def test_waits_grow_and_are_jittered() -> None:
    assert [wait_before(n, None, 1.0) / llm_client.FIRST_WAIT for n in range(4)] == [1, 2, 4, 8]
    assert wait_before(2, None, 0.0) == wait_before(2, None, 1.0) / 2
    assert wait_before(60, None, 1.0) == llm_client.LONGEST_WAIT
    assert wait_before(0, 7.5, 0.3) == 7.5
    assert wait_before(0, 1e9, 0.3) == llm_client.LONGEST_WAIT


def test_retry_after_is_obeyed(chat_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    real = llm_client.wait_before
    monkeypatch.setattr(llm_client, "wait_before", lambda *given: waited.append(real(*given)) or 0.0)
    ask(client(chat_server(lambda body: "x", fail=[429], retry_after="3").url), "a")
    assert waited == [3.0]


@pytest.mark.parametrize(
    "options", [{"base_url": "localhost:8000"}, {"price_in": 1.0}, {"concurrency": 0}, {"omit": ["model"]}]
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ClientOptions.parse({"base_url": "http://x/v1", "model": "m", **options}, "judge.yaml")


PROMPTS = [Prompt(f"p{i}", user(f"question {i}"), "benign") for i in range(3)]


def test_the_engine_turns_replies_into_completions(chat_server: Make, tmp_path: Path) -> None:
    server = chat_server(lambda body: f" {body['messages'][-1]['content']} {body.get('seed', 'no seed')} ")
    engine = ServerEngine(ClientOptions(base_url=server.url, model="m"))
    made = generate_to(engine, PROMPTS, Sampling(max_new_tokens=5), tmp_path / "greedy", "", quiet=True)
    assert [(c.id, c.text, c.token_ids, c.finish_reason) for c in made[:1]] == [
        ("p0", "question 0 no seed", (), "stop")
    ]
    assert {body["max_tokens"] for body in server.bodies} == {5}
    sampled = generate_to(engine, PROMPTS, Sampling(temperature=1.0, n=2), tmp_path / "sampled", "", quiet=True)
    assert len({c.text for c in sampled}) == 6  # every sample has a seed of its own
    assert [typed(Completion, c.to_json(), "here") for c in made] == made


def test_the_engine_stores_no_passing_failure(chat_server: Make, tmp_path: Path) -> None:
    server = chat_server(lambda body: "x", fail=lambda body: 500 if "question 1" in str(body) else None)
    engine = ServerEngine(ClientOptions(base_url=server.url, model="m", max_retries=0, concurrency=1))
    with pytest.raises(EnvironmentFault, match='no answer to prompt "p1"'):
        generate_to(engine, PROMPTS, Sampling(), tmp_path, "", quiet=True)
    assert not (tmp_path / "completions.jsonl").exists()


def test_a_stored_wave_of_another_question_is_not_picked_up() -> None:
    """A server's rows hold no token ids, so the text itself must be part of the key."""
    engine = ServerEngine(ClientOptions(base_url="http://127.0.0.1:1/v1", model="m"))
    (one,), (two,) = (engine.waves([Prompt("p", user(text), "benign")], Sampling())[0] for text in ("a", "b"))
    assert one.key() != two.key()
