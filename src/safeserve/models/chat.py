"""One rendering of a conversation, used by training, evaluation and serving alike.

A conversation becomes text by the model's chat template (or a named one), is tokenised without added special tokens
(so no double BOS), and the prompt's tokens are always a strict prefix of prompt + response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import stable_hash
from safeserve.data.records import Message

ALPACA = (
    "{{ bos_token if add_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{% if loop.first %}{{ 'Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n' }}{% endif %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{% else %}{{ message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
)
CHATML = (
    "{{ bos_token if add_bos else '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED_TEMPLATES = {"alpaca": ALPACA, "chatml": CHATML}
_SENTINEL = "safeservesentinel"


@dataclass(frozen=True)
class Rendered:
    """Token ids of a prompt and of the response with its end token; ``prompt + response`` is the training row."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.response

    @property
    def loss_mask(self) -> tuple[int, ...]:
        """1 on the response and its end token, 0 on the prompt."""
        return (0,) * len(self.prompt) + (1,) * len(self.response)


class ChatFormat:
    """How one tokenizer renders conversations.

    Args:
        tokenizer: a transformers tokenizer.
        template: a name in :data:`NAMED_TEMPLATES`; None uses the tokenizer's own template.
        more_stops: token ids that end an answer too, beside the template's end and the tokenizer's.

    Raises:
        UserError: an unknown template name, or a tokenizer without a template when none is named.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, more_stops: Sequence[int] = ()) -> None:
        if template is not None and template not in NAMED_TEMPLATES:
            raise UserError(f'template: unknown name "{template}".{did_you_mean(template, NAMED_TEMPLATES)}')
        if template is not None:
            tokenizer.chat_template = NAMED_TEMPLATES[template]
        if not tokenizer.chat_template:
            raise UserError(
                "This model has no chat template (it is a base model). Name one in the recipe: "
                "template: alpaca (as in the paper) or template: chatml."
            )
        self.tokenizer = tokenizer
        self.template = template
        self._shared: dict[int, int] = {}  # one object a token id, however many rows hold it: a quarter of the memory
        plain = tokenizer("a", add_special_tokens=True)["input_ids"]
        self._add_bos = bool(plain) and plain[0] == tokenizer.bos_token_id
        self.end_id = self._find_end_id()
        self.end_text: str = tokenizer.decode([self.end_id])
        self._more_stops = tuple(sorted(set(more_stops) - {self.end_id, tokenizer.eos_token_id}))
        more = [self._more_stops] if self._more_stops else []
        self.identity = stable_hash([tokenizer.chat_template, self.end_id, self._add_bos, *more])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(sorted({self.end_id, self.tokenizer.eos_token_id, *self._more_stops} - {None}))

    def text(self, messages: Sequence[Message], generation: bool = True) -> str:
        """The conversation as the text that is tokenised."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation, add_bos=self._add_bos
            )
        )

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the response starts."""
        return self._tokenise(self.text(messages))

    def render(self, messages: Sequence[Message], response: str) -> Rendered:
        """Token ids of prompt and response; the response ends with the end token."""
        text = self.text(messages)
        prompt = self._tokenise(text)
        full = self._tokenise(text + response)
        # A tokenizer may merge across the border; then the response is tokenised alone, as it is when generated.
        body = full[len(prompt) :] if full[: len(prompt)] == prompt else self._tokenise(response)
        return Rendered(prompt, (*body, self.end_id))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _tokenise(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(map(self._shared.setdefault, ids, ids))

    def _find_end_id(self) -> int:
        turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
        after = self.text(turns, generation=False).partition(_SENTINEL)[2]
        ids = self._tokenise(after.lstrip())
        if ids and ids[0] in self.tokenizer.all_special_ids:
            return int(ids[0])
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"{self.tokenizer.name_or_path or 'tokenizer'}: has no end token, so an answer could never end. "
                "Name it as eos_token in tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)
