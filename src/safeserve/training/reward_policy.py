"""A causal language model made into a scorer: its body with one linear output, read at each text's last token."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.core.runs import disk_errors, read_json
from safeserve.judging.hub_models import control_ids
from safeserve.models.chat import ChatFormat
from safeserve.models.decoder import Decoder, Unsupported
from safeserve.models.loading import INFO, LoadedModel, save_info, weights_identity
from safeserve.models.prefix import SharedRow, lay_out
from safeserve.training.batches import Row, share_prompts
from safeserve.training.logprobs import collate
from safeserve.training.policy import Policy, excerpt

if TYPE_CHECKING:
    from safeserve.training.options import TrainOptions

HEAD = "score"
"""Name of the output layer in transformers' sequence classifiers of decoders."""


class RewardPolicy(Policy):
    """``loaded``'s body, trained by an adapter or whole, and a head that is always trained whole, in float32.

    The head begins at zero: every text scores 0 before the first update, whatever the seed.

    Raises:
        UserError: a quantised base, or an architecture without a sequence classifier of this form.
    """

    task = "SEQ_CLS"

    def __init__(self, loaded: LoadedModel, options: TrainOptions, seed: int) -> None:
        if getattr(loaded.model, "is_quantized", False):
            raise UserError("A reward or cost model is saved whole, and its base is quantised. Remove quantize.")
        self.given = loaded
        super().__init__(replace(loaded, model=classifier_of(loaded)), options, seed)

    def scores(self, rows: Sequence[Row]) -> Tensor:
        """The score of each row, read at its last token, float32 [rows]; differentiable.

        Which token is the last one is known by the rows' lengths, so the padding token may be any.
        """
        states = self._plain_states(rows) if self.decoder is None else self._flat_states(rows)
        found: Tensor = self._head(states.float()).squeeze(-1)
        return found

    def probe(self, rows: Sequence[Row]) -> None:
        """Compare this project's layers with transformers' own on ``rows``: last states, and gradients through them.

        Where they differ by more than rounding, training goes on with transformers' layers, and says so.
        """
        if self.decoder is None:
            return
        self.model.eval()
        rows = [excerpt(row) for row in rows]
        parameters = [p for name, p in self.model.named_parameters() if p.requires_grad and HEAD not in name.split(".")]
        found = []
        for form in (self._flat_states, self._plain_states):
            states = form(rows).float()
            direction = torch.linspace(-1.0, 1.0, states.shape[1], device=states.device)
            slopes = torch.autograd.grad((states @ direction).mean(), parameters)
            found.append((states.detach(), torch.cat([slope.float().flatten() for slope in slopes])))
        (ours, our_slopes), (plain, slopes_) = found
        exact = self.loaded.dtype == "float32"
        apart = float((ours - plain).norm() / plain.norm())
        turned = float((our_slopes - slopes_).norm() / slopes_.norm())
        if not (apart <= (1e-3 if exact else 0.1) and turned <= (1e-2 if exact else 0.2)):
            self._fall_back(
                f"its states differ from transformers' by {apart:.2g} of their norm, gradients by {turned:.0%}"
            )

    def merged(self) -> Any:
        """The trained classifier, adapter merged in float32, in the dtype of the base, its head in float32.

        With an adapter it is a copy; after ``full`` training it is the model itself.
        """
        whole = self.model if self.options.full else copy.deepcopy(self.model).float().merge_and_unload()
        whole.to(getattr(torch, self.loaded.dtype))
        getattr(whole, HEAD).float()
        return whole.eval()

    @property
    def _head(self) -> Any:
        return getattr(self._causal, HEAD)

    def _own_layers(self) -> Decoder:
        if self.options.full and self.loaded.dtype == "bfloat16":
            raise Unsupported("full training in bfloat16, which is autocast's")
        return Decoder(self._causal)

    def _flat_states(self, rows: Sequence[Row]) -> Tensor:
        """States of the last tokens by this project's layers, what rows begin with together computed once."""
        assert self.decoder is not None
        groups = share_prompts(rows)
        # In a shared row the last token of an answer is only predicted. It is to be read here, so one more follows it.
        shared = [SharedRow(prompt, tuple((*rows[n].response, 0) for n in group)) for prompt, group in groups]
        layout = lay_out(shared, self.device)
        order = [n for _, group in groups for n in group]
        ends = torch.tensor([*accumulate(rows[n].response_length + 1 for n in order)], device=self.device) - 1
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self.device)
        return self.decoder.shared(layout)[layout.predictors[ends][back]]

    def _plain_states(self, rows: Sequence[Row]) -> Tensor:
        """The same by transformers' layers on padded rows."""
        batch = collate(rows, self.device)
        mixed = self.options.full and self.loaded.dtype == "bfloat16"
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=mixed):
            states = self._causal.base_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).last_hidden_state
        last = torch.tensor([row.length - 1 for row in rows], device=self.device)
        found: Tensor = states[torch.arange(len(rows), device=self.device), last]
        return found


def classifier_of(loaded: LoadedModel) -> Any:
    """A transformers sequence classifier with one output around the body of ``loaded``, which it shares.

    Raises:
        UserError: transformers has none for this architecture, or one with more than a linear layer on the last token.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(loaded.model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # its own body is never used
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise _no_classifier(loaded) from None
    hidden = config.get_text_config().hidden_size
    if not isinstance(getattr(model, HEAD, None), nn.Linear) or getattr(model, HEAD).bias is not None:
        raise _no_classifier(loaded)
    setattr(model, model.base_model_prefix, loaded.model.base_model)
    head = nn.Linear(hidden, 1, bias=False, device=loaded.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    setattr(model, HEAD, head)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise _no_classifier(loaded)
    return model


def _no_classifier(loaded: LoadedModel) -> UserError:
    kind = loaded.model.config.model_type
    return UserError(
        f"{loaded.name}: transformers has no sequence classifier with one linear output for models of type {kind}. "
        "Start from another model, for example a Llama, Qwen or Mistral."
    )


def pad_id(tokenizer: Any, ends: set[int]) -> int:
    """A token to pad with that no conversation ends with.

    transformers reads a classifier's score at the last token that is not the padding token; where that is also what
    ends a conversation, it would read the token before it. Then another control token is taken, which no text holds.

    Args:
        ends: last tokens of the conversations.
    """
    first = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *sorted(control_ids(tokenizer))]
    candidates = [number for number in (*first, *range(len(tokenizer))) if number is not None]
    return int(next(number for number in candidates if number not in ends))


def save_reward(policy: RewardPolicy, out: Path, parent: str, method: str, ends: set[int]) -> None:
    """Save the trained scorer to ``out`` (whole or not at all) with tokenizer and template, and release it.

    Args:
        ends: last tokens of the conversations it was trained on.
    """
    loaded = policy.given
    whole = policy.merged()
    tokenizer = copy.deepcopy(loaded.tokenizer)
    pad = pad_id(tokenizer, ends)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    whole.config.get_text_config().pad_token_id = pad
    temporary = out.with_name(f".{out.name}.tmp")
    with disk_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        whole.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_info(temporary, {"method": method, "parent": parent, "template": loaded.chat.template})
        policy.release()
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)


def load_reward(folder: Path, like: LoadedModel) -> LoadedModel:
    """A saved reward or cost model in the dtype and on the device of ``like``; its ``model`` is the classifier."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), dtype=getattr(torch, like.dtype), use_safetensors=True, trust_remote_code=False
    )
    info = read_json(folder / INFO)
    chat = ChatFormat(tokenizer, info["template"])
    identity = stable_hash([weights_identity(folder), chat.identity])
    return LoadedModel(
        str(folder), model.to(like.device).eval(), tokenizer, chat, identity, like.dtype, like.device, info
    )
