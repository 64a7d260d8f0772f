"""Ask a language model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, ``transformers serve``, hosted.

Requests run side by side, failures that may pass are tried again after a growing wait, and every answer is kept on disk
under a hash of all that decided it: a killed run goes on where it stopped, and a second run costs nothing and gives
the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from safeserve.core.errors import EnvironmentFault, UserError, did_you_mean
from safeserve.core.options import Options, stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import readable, write_json
from safeserve.data.records import Message
from safeserve.models.embedded import cache_dir

FIRST_WAIT = 0.5
"""Seconds before the first repetition; doubles each time."""
LONGEST_WAIT = 60.0
"""Seconds; also the most that a server's Retry-After is believed."""
GIVE_UP_AFTER = 5
"""So many requests failing in a row, each after all its repetitions, mean that the server is gone."""
NEWER_LIMIT_NAME = "max_completion_tokens"
"""What some hosted models want ``max_tokens`` to be called."""
Omittable = Literal["temperature", "top_p", "frequency_penalty", "seed"]


class ServerOptions(Options):
    """Where a server is and how to treat it."""

    base_url: str
    """Root of the API, for example http://localhost:8000/v1."""
    revision: str = ""
    """What the server serves under that name, in your words (a date, a commit): change it when the weights change."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself never stands in a file."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    max_retries: int = Field(5, ge=0)
    """Repetitions of a request after 408, 409, 429, 5xx, a time-out or a broken connection."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request counts as failed."""
    omit: tuple[Omittable, ...] = ()
    """Parameters that the server refuses and that are not sent; it then decodes by its own setting."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise UserError(f'base_url: "{value}" is no address. It starts with http:// or https:// and ends with /v1.')
        return value.rstrip("/")


class ClientOptions(ServerOptions):
    """A server, one of its models, and what it costs."""

    model: str
    """The model's name on that server."""
    price_in: float | None = Field(None, ge=0)
    """Price of a million prompt tokens; with price_out it gives the cost."""
    price_out: float | None = Field(None, ge=0)
    """Price of a million tokens written by the model, in the same currency."""

    @model_validator(mode="after")
    def _both_prices(self) -> ClientOptions:
        if (self.price_in is None) != (self.price_out is None):
            raise UserError("price_in and price_out: give both or neither; one alone gives no cost.")
        return self

    @property
    def served(self) -> list[str]:
        """What decides an answer besides the request: part of identities and of cache keys."""
        return [self.base_url, self.model, self.revision, *sorted(set(self.omit))]


@dataclass(frozen=True)
class Request:
    """One question. A ``seed`` is sent only where given; greedy decoding needs none."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        """The request's parameters; those at their neutral value are left out, because some servers reject them."""
        body: dict[str, Any] = {"messages": list(self.messages), "max_tokens": self.max_tokens}
        body["temperature"] = self.temperature
        if self.top_p != 1.0:
            body["top_p"] = self.top_p
        if self.frequency_penalty:
            body["frequency_penalty"] = self.frequency_penalty
        if self.seed is not None:
            body["seed"] = self.seed
        return body


@dataclass(frozen=True)
class Reply:
    """What came back: ``error`` None, or why there is no text; ``transient`` errors may be gone next time."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    transient: bool = False


@dataclass
class Usage:
    """What was asked of the server since the client was made; answers from the disk cost nothing."""

    calls: int = 0
    from_cache: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: tuple[float, float] | None = field(default=None, repr=False)

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None without prices."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["price"]
        return {**row, "cost": self.cost}


class LlmClient:
    """Answers requests from the disk or from the server.

    Args:
        keep: read and write answers on disk; without, the server is asked every time.

    Raises:
        UserError: the ``server`` extra is not installed, or the key's variable is not set.
    """

    def __init__(self, options: ClientOptions, keep: bool = True) -> None:
        self.options, self.keep = options, keep
        prices = (options.price_in, options.price_out)
        self.usage = Usage(price=prices if None not in prices else None)  # type: ignore[arg-type]
        self._key = self._read_key()
        self._failed_in_a_row = 0
        self._reached = False
        self._limit_name = "max_tokens"
        _require_openai()

    def complete(self, requests: Sequence[Request], title: str, quiet: bool = False) -> list[Reply]:
        """One reply a request, in order; equal requests are asked once.

        Raises:
            UserError: the server refuses the key, or does not know the model.
            EnvironmentFault: it cannot be reached, or fails again and again. Answers so far are kept.
        """
        keys = [stable_hash([*self.options.served, request.body()]) for request in requests]
        found = {key: reply for key in dict.fromkeys(keys) if (reply := self._stored(key)) is not None}
        self.usage.from_cache += len(found)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        with Progress(title, len(found) + len(missing), quiet=quiet) as progress:
            progress.skip(len(found))
            if missing:
                found.update(asyncio.run(self._ask_all(missing, progress)))
        return [found[key] for key in keys]

    def _read_key(self) -> str:
        name = self.options.api_key_env
        if name is None:
            return "none"  # the library wants one; a server of one's own does not look at it
        if not (key := os.environ.get(name, "").strip()):
            raise UserError(
                f"api_key_env: the environment variable {name} is not set. Put the key there: export {name}=…"
            )
        if not (key.isascii() and key.isprintable()):  # no header can hold it, and the library's error would show it
            raise UserError(f"api_key_env: what {name} holds is no key: it has characters that no key has.")
        return key

    # --- on disk --------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return cache_dir() / "replies" / key[:2] / f"{key}.json"

    def _stored(self, key: str) -> Reply | None:
        if not self.keep:
            return None
        # A file that cannot be read is not there: the question is asked again.
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Reply(**json.loads(self._path(key).read_text(encoding="utf-8")))
        return None

    # --- on the wire ----------------------------------------------------------------------------------------------

    async def _ask_all(self, missing: dict[str, Request], progress: Progress) -> dict[str, Reply]:
        import openai

        queue = iter(missing.items())
        replies: dict[str, Reply] = {}
        limit = min(GIVE_UP_AFTER, len(missing))
        options = self.options
        async with openai.AsyncOpenAI(
            base_url=options.base_url, api_key=self._key, timeout=options.timeout, max_retries=0
        ) as client:
            # The library takes these from the environment, where they stand for other programs and their account.
            client.organization = client.project = client.admin_api_key = None
            workers = [
                asyncio.create_task(self._work(client, queue, replies, limit, progress))
                for _ in range(min(options.concurrency, len(missing)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return replies

    async def _work(
        self,
        client: Any,
        queue: Iterator[tuple[str, Request]],
        replies: dict[str, Reply],
        limit: int,
        progress: Progress,
    ) -> None:
        for key, request in queue:
            reply = await self._ask(client, request)
            if reply.error is None and self.keep:
                write_json(self._path(key), asdict(reply))
            self._failed_in_a_row = self._failed_in_a_row + 1 if reply.transient else 0
            if self._failed_in_a_row >= limit:
                raise EnvironmentFault(
                    f"{self.options.base_url}: {self._failed_in_a_row} requests in a row failed, "
                    f"the last with: {reply.error}. "
                    "Answers so far are kept; run the same command again once the server works."
                )
            replies[key] = reply
            progress.advance(1, reply.prompt_tokens + reply.completion_tokens)

    async def _ask(self, client: Any, request: Request) -> Reply:
        import openai

        for attempt in range(self.options.max_retries + 1):
            try:
                return self._read(await self._send(client, request))
            except openai.APIStatusError as error:
                self._reached = True
                if not _may_pass(error):
                    return await self._refused(client, error, request)
                failure: Exception = error
            except openai.APIConnectionError as error:  # time-outs too
                if not self._reached and not isinstance(error, openai.APITimeoutError):
                    raise EnvironmentFault(
                        f"{self.options.base_url}: cannot be reached ({_cause(error)}). "
                        "Is the server running, and is base_url its address with /v1?"
                    ) from None
                failure = error
            except (openai.APIError, ValueError) as error:  # 200 with something that is no answer
                failure = error
            if attempt < self.options.max_retries:
                self.usage.retries += 1
                await asyncio.sleep(wait_before(attempt, _retry_after(failure), random.random()))
        return Reply("", "error", error=_said(failure), transient=True)

    async def _send(self, client: Any, request: Request) -> Any:
        """Ask once; where the server knows the length limit by its newer name only, again under that name."""
        import openai

        body = {key: value for key, value in request.body().items() if key not in self.options.omit}
        limit, name = body.pop("max_tokens"), self._limit_name
        create = client.chat.completions.create
        try:
            return await create(model=self.options.model, **body, **{name: limit})
        except openai.BadRequestError as error:
            if name == NEWER_LIMIT_NAME or NEWER_LIMIT_NAME not in str(error):
                raise
        self._limit_name = NEWER_LIMIT_NAME
        return await create(model=self.options.model, **body, **{NEWER_LIMIT_NAME: limit})

    def _read(self, answer: Any) -> Reply:
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise ValueError("the server's answer holds no choices; is base_url the root of an OpenAI-compatible API?")
        self._reached = True
        usage = answer.usage
        sent, written = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        self.usage.calls += 1
        self.usage.prompt_tokens += sent
        self.usage.completion_tokens += written
        text, reason = readable(choices[0].message.content or ""), choices[0].finish_reason
        if reason not in ("stop", "length"):  # content_filter, tool_calls
            return Reply(text, "error", sent, written, error=f"the server ended the answer with {reason!r}")
        return Reply(text, reason, sent, written)

    async def _refused(self, client: Any, error: Any, request: Request) -> Reply:
        """A status that repeating does not change: about key, model or a parameter it stops the run, else this one."""
        said, options = _said(error), self.options
        if error.status_code in (401, 403):
            where = f"the key in {options.api_key_env}" if options.api_key_env else "a request without a key"
            raise UserError(
                f"{options.base_url}: refuses {where} ({said}). Set api_key_env to the variable of a valid key."
            )
        if error.code == "insufficient_quota":
            raise EnvironmentFault(f"{options.base_url}: the account has no quota left ({said}).")
        if (name := _refused_parameter(error, said)) in request.body() and name not in options.omit:
            raise UserError(
                f"{options.base_url}: refuses {name} ({said}). Leave it out with omit: [{name}], in the judge's file "
                f"or in the recipe's server; {options.model} then decodes by its own setting."
            )
        names_model = re.search(rf"(?<![\w./-]){re.escape(options.model)}(?![\w/-])", said) is not None
        too_long = error.code == "context_length_exceeded" or re.search(r"context|too long", said)
        if error.status_code == 404 or (names_model and not too_long):
            known = await _models(client)
            raise UserError(
                f'{options.base_url}: does not answer for model "{options.model}" ({said}).'
                f"{did_you_mean(options.model, known)}"
            )
        return Reply("", "error", error=said)


def wait_before(attempt: int, retry_after: float | None, uniform: float) -> float:
    """Seconds until repetition ``attempt`` (from 0): what the server asks for, else exponential with jitter.

    The jitter takes between half and all of FIRST_WAIT · 2^attempt, so that many clients do not come back at once.
    """
    if retry_after is not None:
        return min(retry_after, LONGEST_WAIT)
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)) * (0.5 + uniform / 2)


def _may_pass(error: Any) -> bool:
    if error.code == "insufficient_quota":
        return False
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _refused_parameter(error: Any, said: str) -> str | None:
    """The parameter of decoding that a server says it does not take; None where the error is of something else."""
    if error.status_code not in (400, 422) or not re.search(r"support|deprecated|not (?:permitted|allowed)", said):
        return None
    named = [name for name in get_args(Omittable) if re.search(rf"\b{name}\b", error.param or said)]
    return named[0] if named else None


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    try:
        seconds = float(response.headers.get("retry-after"))  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):  # absent, or a date
        return None
    return seconds if seconds >= 0 else None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _cause(error: Exception) -> str:
    return _said(error.__cause__ if isinstance(error.__cause__, Exception) else error)


async def _models(client: Any) -> list[str]:
    """The names that the server lists; none where it does not say."""
    import openai

    try:
        page = await client.models.list()  # the first page only: a server that ignores the cursor repeats it for ever
        return [model.id for model in page.data]
    except (openai.APIError, AttributeError, TypeError, ValueError):
        return []


def _require_openai() -> None:
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"A server is asked through the openai package ({error}). Run: pip install 'safeserve[server]'"
        ) from None
