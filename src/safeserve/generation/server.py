"""The engine for a model that somebody else serves: the answers of an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safeserve.core.errors import EnvironmentFault
from safeserve.core.options import seed_for, stable_hash
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Row, Sampling
from safeserve.generation.llm_client import ClientOptions, LlmClient, Reply, Request

WAVE_ROWS = 64


class ServerEngine:
    """Generates with a served model. The server renders the conversation and decodes, as far as it knows the options.

    Token ids and log-probabilities are unknown here. What weights are served under the name is the server's word: its
    identity is the address, the model's name and ``revision``.
    """

    dtype = "served"

    def __init__(self, options: ClientOptions) -> None:
        self.client = LlmClient(options, keep=False)  # the waves on disk are what a killed run goes on with
        self.model_identity = stable_hash(options.served)
        self.identity = stable_hash(["server-1", self.model_identity])
        self.not_sent: tuple[str, ...] = options.omit

    def waves(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Row]]:
        """Waves in the order of the prompts; their size does not depend on how many requests run at once."""
        rows = [Row(prompt, k) for prompt in prompts for k in range(sampling.n)]
        return [rows[i : i + WAVE_ROWS] for i in range(0, len(rows), WAVE_ROWS)]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        for wave in self.waves(prompts, sampling):
            yield from self.generate_wave(wave, sampling)

    def generate_wave(self, wave: Sequence[Row], sampling: Sampling) -> list[Completion]:
        """All answers of one wave, in its order; a request that the server refuses for good is an error row.

        Raises:
            UserError: the key or the model is refused.
            EnvironmentFault: the server cannot be reached or fails; a failure that may pass is never stored.
        """
        replies = self.client.complete([_request(row, sampling) for row in wave], "", quiet=True)
        for row, reply in zip(wave, replies, strict=True):
            if reply.transient:
                raise EnvironmentFault(
                    f'{self.client.options.base_url}: no answer to prompt "{row.prompt.id}" after all repetitions '
                    f"({reply.error}). Run the same command again: it goes on here."
                )
        return [_completion(row, reply) for row, reply in zip(wave, replies, strict=True)]


def _request(row: Row, sampling: Sampling) -> Request:
    return Request(
        messages=row.prompt.messages,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        frequency_penalty=sampling.frequency_penalty,
        # Greedy decoding draws nothing; some servers refuse a seed.
        seed=seed_for(sampling.seed, row.prompt.id, row.k, sampling.iteration) if sampling.temperature > 0 else None,
    )


def _completion(row: Row, reply: Reply) -> Completion:
    text, error = reply.text.strip(), reply.error
    if not text and reply.finish_reason == "length":  # a model that thinks first; silence would pass for harmless
        error = "all tokens were used before the answer began; raise max_new_tokens"
    return Completion(
        id=row.prompt.id,
        text=text,
        token_ids=(),
        finish_reason="error" if error else reply.finish_reason,
        logprob_sum=None,
        k=row.k,
        prompt_tokens=reply.prompt_tokens,
        error=error,
    )
