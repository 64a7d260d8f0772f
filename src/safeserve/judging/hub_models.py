"""Models from the hub that judge: pinned, safetensors only, loaded once when first needed, fed in batches by length."""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.options import Options, stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import sha256_file
from safeserve.data.records import Message, Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.judging.untrusted import neutralise
from safeserve.models.blame import blamed
from safeserve.models.loading import DtypeName, default_device, local_folder, resolve_dtype

if TYPE_CHECKING:  # its module brings torch along
    from safeserve.models.decoder import Decoder

AutoClass = Literal["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What of a model's folder decides its outputs: weights, config, tokenizer, chat template.
_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
# Their position embeddings begin after the padding index, so the table is longer than the longest input.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "longformer"}


class HubOptions(Options):
    """Which model judges, and how it is run."""

    model: str
    """Hub id ``org/model``, or a folder with config.json and safetensors."""
    revision: str | None = None
    """Commit of a hub id, all 40 digits: a branch could change under the same scores."""
    dtype: DtypeName = "auto"
    """``auto`` is bfloat16 where the hardware has it, else float32."""
    batch_tokens: int = Field(8192, ge=1)
    """Most tokens in a batch, padding included; a longer input is a batch of its own."""

    @model_validator(mode="after")
    def _is_pinned(self) -> HubOptions:
        is_hub = local_folder(self.model, quiet=True) is None
        if is_hub and not _COMMIT.fullmatch(self.revision or ""):
            found = f'"{self.revision}" is no commit' if self.revision else "it is missing"
            raise UserError(
                f"revision: {found}. Name the commit of {self.model} (40 hex digits, on its page under Files, "
                "History): a branch could change under the same scores."
            )
        if not is_hub and self.revision:
            raise UserError(f"revision: {self.model} is a folder, which has none. Leave it out.")
        return self

    @property
    def source(self) -> list[str]:
        """What decides the model's outputs: its files or its commit, and the precision it runs in."""
        folder = local_folder(self.model, quiet=True)
        dtype = resolve_dtype(self.dtype, default_device())
        if folder is None:
            return [f"{self.model}@{self.revision}", dtype]
        files = sorted(path for path in folder.iterdir() if path.suffix in _FILES)
        return [stable_hash([[path.name, sha256_file(path)] for path in files]), dtype]


@dataclass(frozen=True)
class HubModel:
    """A loaded judge model.

    Attributes:
        limit: longest input in tokens that it can read.
        control: names of its control tokens, which no untrusted text may contain.
    """

    name: str
    model: Any
    tokenizer: Any
    device: str
    limit: int
    control: tuple[str, ...]

    def plain(self, text: str) -> str:
        """Untrusted text without anything that this tokenizer takes for a control token."""
        text = neutralise(text)
        for token in self.control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def load_hub(options: HubOptions, auto_class: AutoClass) -> HubModel:
    """Load model and tokenizer.

    Raises:
        UserError: no such model, other weights than safetensors, or a head that the weights do not hold.
        EnvironmentFault: the hub could not be reached.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    folder = local_folder(options.model, quiet=True)
    if folder is not None and (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: is an adapter, not a whole model. Merge it first: safeserve models merge.")
    device = default_device()
    dtype = getattr(torch, resolve_dtype(options.dtype, device))
    source = str(folder) if folder is not None else options.model
    transformers.utils.logging.disable_progress_bar()
    try:
        with blamed(folder, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, revision=options.revision, trust_remote_code=False
            )
        with blamed(folder, "model"):
            model, report = getattr(transformers, auto_class).from_pretrained(
                source,
                revision=options.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreachable(options, error) from None
    # transformers fills what the weights lack with random numbers; a base model would judge by chance.
    missing = sorted(key for key in report["missing_keys"] if auto_class != "AutoModel" or "pooler" not in key)
    if missing:
        raise UserError(
            f"{options.model}: its weights lack {', '.join(missing[:3])}, so it is no judge of this kind. "
            "Name the fine-tuned model, not its base."
        )
    tokenizer.padding_side = "right"
    model.to(device).eval()
    return HubModel(options.model, model, tokenizer, device, _limit(model.config, tokenizer), control_names(tokenizer))


def _unreachable(options: HubOptions, error: Exception) -> EnvironmentFault:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "safetensors" in str(error):
        first += " Only safetensors are loaded; many repositories hold a commit with converted weights."
    return EnvironmentFault(
        f"{options.model}@{options.revision}: could not be loaded from the hub: {first}\n"
        "Check name, commit, network and your access to the model, or give a local folder."
    )


def _limit(config: Any, tokenizer: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None) or 1 << 30
    if config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def control_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that structure a conversation rather than spell text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def control_names(tokenizer: Any) -> tuple[str, ...]:
    """Names of the control tokens, longest first."""
    names = {str(tokenizer.convert_ids_to_tokens(number)) for number in control_ids(tokenizer)}
    return tuple(sorted((name for name in names if len(name) > 1), key=lambda name: (-len(name), name)))


def turns_of(hub: HubModel, prompt: Prompt, answer: str) -> list[Message]:
    """The conversation with its answer as alternating user and assistant turns of defused text.

    Judges know no system turn: its text opens the first user turn. Turns of one role in a row become one.
    """
    turns: list[Message] = []
    given: Message = {"role": "assistant", "content": answer}
    for message in (*prompt.messages, given):
        role = "assistant" if message["role"] == "assistant" else "user"
        content = hub.plain(message["content"])
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{content}"}
        else:
            turns.append({"role": role, "content": content})
    return turns


def question_of(turns: Sequence[Message]) -> str:
    """All turns before the answer as one text; the roles are named only where there are several."""
    before = turns[:-1]
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in before)


def not_generated(completion: Completion) -> Score | None:
    """The Score of an answer whose generation failed; None for one that can be judged."""
    if completion.finish_reason != "error":
        return None
    return Score(None, None, reason=f"generation failed: {completion.error or 'no reason given'}")


def too_long(tokens: int, limit: int) -> Score:
    """The Score of what the judge cannot read whole: an answer cut short would be another answer."""
    return Score(None, None, reason=f"prompt and answer of {tokens} tokens exceed the judge's {limit}")


def length_batches(lengths: Sequence[int], batch_tokens: int, alone: bool = False) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each of at most ``batch_tokens`` with its padding.

    Args:
        alone: one row a batch, for models that cannot be padded.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = bool(batches) and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens
        if fits and not alone:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def shown(batches: Sequence[list[int]], lengths: Sequence[int], title: str) -> Iterator[list[int]]:
    """The batches, one after the other, with a progress line."""
    with Progress(title, sum(map(len, batches))) as progress:
        for batch in batches:
            yield batch
            progress.advance(len(batch), sum(lengths[index] for index in batch))


def classify(
    hub: HubModel,
    rows: Sequence[Mapping[str, list[int]]],
    batch_tokens: int,
    title: str,
    keys: Sequence[Hashable] | None = None,
) -> list[list[float]]:
    """Logits of a sequence classifier for each encoded row, in order.

    Decoders that this project's layers can run read their rows without padding. Others read them padded on the right,
    padding masked; such a decoder finds the last real token by the pad id, so without a pad token it reads rows alone.

    Args:
        keys: rows with equal keys (answers to one prompt) begin alike; where nothing is padded that is computed once.
    """
    import torch

    config, tokenizer = hub.model.config, hub.tokenizer
    if config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        config.pad_token_id = tokenizer.pad_token_id
    if (decoder := _decoder(hub.model)) is not None:
        ids = [row["input_ids"] for row in rows]
        return _classify_flat(hub, decoder, ids, range(len(rows)) if keys is None else keys, batch_tokens, title)
    lengths = [len(row["input_ids"]) for row in rows]
    alone = config.pad_token_id is None
    known = inspect.signature(hub.model.forward).parameters  # some tokenizers give more than the model takes
    columns = [column for column in rows[0] if column in known] if rows else []
    found: dict[int, list[float]] = {}
    for batch in shown(length_batches(lengths, batch_tokens, alone), lengths, title):
        width = lengths[batch[0]]
        fill = {"input_ids": config.pad_token_id}
        padded = {
            column: torch.tensor([[*rows[i][column], *[fill.get(column, 0)] * (width - lengths[i])] for i in batch])
            for column in columns
        }
        with torch.inference_mode():
            logits = hub.model(**{column: value.to(hub.device) for column, value in padded.items()}).logits
        found.update(zip(batch, logits.float().tolist(), strict=True))
    return [found[index] for index in range(len(rows))]


def _decoder(model: Any) -> Decoder | None:
    """The layers of a classifier that is a decoder with one linear layer on its last token; None for any other."""
    from transformers.modeling_layers import GenericForSequenceClassification

    from safeserve.models.decoder import Decoder, Unsupported

    if not isinstance(model, GenericForSequenceClassification):
        return None
    try:
        return Decoder(model)
    except Unsupported:
        return None


def _classify_flat(
    hub: HubModel,
    decoder: Decoder,
    rows: Sequence[list[int]],
    keys: Sequence[Hashable],
    batch_tokens: int,
    title: str,
) -> list[list[float]]:
    import torch

    from safeserve.models.reading import Batch, plan

    pad = hub.model.config.pad_token_id
    found: dict[int, list[float]] = {}
    with Progress(title, len(rows)) as progress, torch.inference_mode():
        for groups in plan(rows, keys, batch_tokens):
            batch = Batch(rows, groups, hub.device)
            # Where the end token is the pad token, transformers reads the state of the token before it, so here too.
            last = [next((at for at in reversed(range(len(rows[n]))) if rows[n][at] != pad), 0) for n in batch.texts]
            at = torch.stack([where[n] for where, n in zip(batch.where, last, strict=True)])
            logits = hub.model.score(batch.states(decoder)[at])
            found.update(zip(batch.texts, logits.float().tolist(), strict=True))
            progress.advance(len(batch.texts), batch.real)
    return [found[index] for index in range(len(rows))]
