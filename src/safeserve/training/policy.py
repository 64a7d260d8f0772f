"""The model being trained: a LoRA adapter in float32 on a frozen base, or all weights in float32."""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from safeserve.core.errors import UserError
from safeserve.core.memory import give_back
from safeserve.core.options import stable_hash
from safeserve.core.runs import disk_errors
from safeserve.models.decoder import Decoder, Unsupported
from safeserve.models.gpu_attention import flex_in_use, leave_flex
from safeserve.models.loading import LoadedModel, load, save_info
from safeserve.training.batches import Row, flat_batches, padded_batches
from safeserve.training.logprobs import ResponseLogps, causal_model, head_is_plain, plain_logps, shared_logps
from safeserve.training.options import TrainOptions, default_token_budget

Item = TypeVar("Item")
PROBE_TOKENS = 16
"""Tokens of prompt and of response in which two forms of the model are compared: enough to tell them apart."""
PROBE_LONG = 257
"""Tokens of a row that is longer than two blocks of FlexAttention."""


class Policy:
    """``loaded`` made trainable.

    With an adapter the base stays as it is (frozen, in its dtype) and :meth:`release` takes the adapter out again;
    with ``full: true`` the weights themselves change, in float32 (under bfloat16 autocast if ``loaded`` is bfloat16).

    Raises:
        UserError: options that this model cannot follow (a quantised base with ``full: true``, unknown layer names).
    """

    task = "CAUSAL_LM"
    """What peft calls the kind of model."""

    def __init__(self, loaded: LoadedModel, options: TrainOptions, seed: int) -> None:
        from transformers import set_seed

        self.loaded = loaded
        self.options = options
        self._released = False
        quantized = bool(getattr(loaded.model, "is_quantized", False))
        if options.full and quantized:
            raise UserError("full: true cannot train a quantised base. Remove quantize, or train an adapter.")
        set_seed(seed)
        self.model = self._full() if options.full else self._with_adapter(quantized)
        self.decoder: Decoder | None = None
        try:
            self.decoder = self._own_layers()
        except Unsupported as reason:
            self._fall_back(str(reason))
        if options.gradient_checkpointing:
            self._causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.decoder is not None:
                self.decoder.recompute = True

    @property
    def device(self) -> str:
        """Where the model is."""
        return self.loaded.device

    @property
    def token_budget(self) -> int:
        """Tokens in a micro-batch: the option's, or what suits the device."""
        return self.options.token_budget or default_token_budget(self.device, self.loaded.dtype)

    def micro_batches(self, items: Sequence[Item], rows: Callable[[Item], Sequence[Row]]) -> list[list[Item]]:
        """Cut a step's items into micro-batches within the token budget; an item's rows stay together."""
        cut = padded_batches if self.decoder is None else flat_batches
        return cut(items, rows, self.token_budget)

    def response_logps(self, rows: Sequence[Row]) -> ResponseLogps:
        """Log-probabilities of all response tokens of ``rows``; differentiable."""
        if self.decoder is not None:
            return shared_logps(self.model, self.decoder, rows, self.device)
        return self._plain_logps(rows)

    def probe(self, rows: Sequence[Row]) -> None:
        """Compare this project's layers with transformers' own on ``rows``, log-probabilities and gradients.

        An excerpt of them is enough to tell the layers apart; on a GPU also rows of several of the attention's blocks.
        Where they differ by more than rounding, training goes on with transformers' layers, and says so.
        """
        self.model.eval()
        for some in probes(rows, self.device):
            if self.decoder is not None:
                self._compare(some)

    def _compare(self, rows: Sequence[Row]) -> None:
        try:
            ours, our_slopes = self._with_slopes(self.response_logps, rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiled kernel may fail in its backward pass alone
            if self.device == "cpu" or not flex_in_use():
                raise
            leave_flex(error)
            ours, our_slopes = self._with_slopes(self.response_logps, rows)
        plain, slopes = self._with_slopes(self._plain_logps, rows)
        exact = self.loaded.dtype == "float32"
        longest = max(row.response_length for row in rows)
        apart = float((ours - plain).abs().max()) / longest
        norm = sum(float(slope.float().square().sum()) for slope in slopes) ** 0.5
        turned = sum(float((a - b).float().square().sum()) for a, b in zip(our_slopes, slopes, strict=True)) ** 0.5
        if not (apart <= (1e-3 if exact else 0.1) and turned <= (1e-2 if exact else 0.2) * norm):
            share = turned / norm if norm else math.inf
            self._fall_back(f"they differ from transformers' by {apart:.2g} nats a token, gradients by {share:.0%}")

    def _with_slopes(
        self, form: Callable[[Sequence[Row]], ResponseLogps], rows: Sequence[Row]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Summed log-probabilities, [rows], and the gradients of the mean of all by what is trained."""
        logps = form(rows)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return logps.sums().detach(), torch.autograd.grad(logps.values.mean(), parameters)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The step-0 policy inside the context: adapter off, no dropout, no gradient.

        With ``full: true`` it is the step-0 policy only before the first step.
        """
        self.model.eval()
        off = contextlib.nullcontext() if self.options.full else self.model.disable_adapter()
        with torch.no_grad(), off:
            yield

    def save_weights(self, folder: Path) -> None:
        """Write the adapter, or all weights in ``full`` training, as safetensors."""
        if self.options.full:
            self.model.save_pretrained(folder)
        else:
            # "auto" would ask the hub whether the vocabulary has grown.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card

    def release(self) -> None:
        """Give ``loaded.model`` back without adapter; after ``full`` training it holds the trained weights, and so has
        an identity that nothing else has: what is kept by the old one is not of these weights."""
        if self._released:
            return
        self._released = True
        if self.options.full:
            self.loaded.identity = stable_hash([self.loaded.identity, secrets.token_hex(16)])
        if self.options.gradient_checkpointing:
            self._causal.gradient_checkpointing_disable()
        if not self.options.full:
            self.model.unload()
        self.loaded.model.eval()
        give_back()

    @contextlib.contextmanager
    def _attention(self, width: int) -> Iterator[None]:
        # On a CPU the fused bfloat16 kernel's backward costs more than all of a short row's attention done plainly
        # (SmolLM2-135M, rows of 110 tokens: the step is 1.25 times as fast). Recomputing would meet the other kernel.
        causal = self._causal
        short = width <= 256 and not self.options.gradient_checkpointing
        cpu_bf16 = self.device == "cpu" and self.loaded.dtype == "bfloat16"
        if not (short and cpu_bf16 and causal.config._attn_implementation == "sdpa"):
            yield
            return
        causal.set_attn_implementation("eager")
        try:
            yield
        finally:
            causal.set_attn_implementation("sdpa")

    def _plain_logps(self, rows: Sequence[Row]) -> ResponseLogps:
        mixed = self.options.full and self.loaded.dtype == "bfloat16"
        width = max(row.length for row in rows)
        with self._attention(width), torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=mixed):
            return plain_logps(self.model, rows, self.device)

    def _own_layers(self) -> Decoder:
        if not head_is_plain(self._causal):
            raise Unsupported("a head that is not one linear layer")
        if self.options.full and self.loaded.dtype == "bfloat16":
            raise Unsupported("full training in bfloat16, which is autocast's")
        return Decoder(self._causal)

    def _fall_back(self, reason: str) -> None:
        self.decoder = None
        print(f"train: rows are padded and run by transformers, which is slower: {reason}.", file=sys.stderr)

    @property
    def _causal(self) -> Any:
        return causal_model(self.model)

    def _full(self) -> Any:
        model = self.loaded.model.float()
        model.requires_grad_(True)
        return model

    def _with_adapter(self, quantized: bool) -> Any:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        base = self.loaded.model
        if quantized:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        targets = self.options.lora_targets
        config = LoraConfig(
            r=self.options.lora_rank,
            lora_alpha=self.options.lora_alpha,
            lora_dropout=self.options.lora_dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type=self.task,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft asks transformers for a renamed attribute
                return get_peft_model(base, config)  # adapter weights are float32 whatever the base is
        except ValueError as error:
            raise UserError(f"lora_targets: {error}") from None


def excerpt(row: Row, most: int = PROBE_TOKENS) -> Row:
    """The first tokens of the prompt and of the response, ``most`` of each.

    The prompt must begin as it does in training: much attention rests on its first token, and behind another one the
    gradients in bfloat16 are mostly rounding (a row cut elsewhere: 25 % of the norm off by transformers' own layers).
    """
    prompt = row.prompt[:most]
    return Row(prompt + row.response[:most], len(prompt))


def stretched(row: Row, least: int = PROBE_LONG) -> Row:
    """The row with its response repeated until it has at least ``least`` tokens."""
    times = max(0, -(-(least - row.length) // row.response_length))
    return Row(row.ids + times * row.response, row.start)


def probes(rows: Sequence[Row], device: str) -> list[list[Row]]:
    """What the two forms of a model are compared on: an excerpt of ``rows``, on a GPU then all of them and long."""
    return [[excerpt(row) for row in rows], *([[stretched(row) for row in rows]] if device != "cpu" else [])]


def save_result(policy: Policy, out: Path, parent: str, method: str) -> None:
    """Save the trained policy to ``out`` (whole or not at all) with tokenizer and template, and release it."""
    loaded, options = policy.loaded, policy.options
    if (folder := Path(parent).expanduser()).is_dir():
        # A parent in the same run is named relative to the adapter, so that a run folder can be moved.
        same_run = folder.resolve().parent == out.resolve().parent
        parent = f"../{folder.name}" if same_run else str(folder.resolve())
    info = {"method": method, "parent": parent, "template": loaded.chat.template}
    temporary = out.with_name(f".{out.name}.tmp")
    with disk_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if options.full:
            policy.model.to(getattr(torch, loaded.dtype))
            policy.save_weights(temporary)
        else:
            policy.model.peft_config["default"].base_model_name_or_path = parent
            policy.save_weights(temporary)
            save_info(temporary, {**info, "base": parent})
            if options.save == "merged":
                _merge_in_place(temporary, loaded)
        loaded.tokenizer.save_pretrained(temporary)
        if options.full or options.save == "merged":
            save_info(temporary, info)
        policy.release()
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)


def _merge_in_place(folder: Path, loaded: LoadedModel) -> None:
    merged = load(folder, dtype=loaded.dtype, device=loaded.device, quiet=True)
    shutil.rmtree(folder)
    merged.model.save_pretrained(folder)
