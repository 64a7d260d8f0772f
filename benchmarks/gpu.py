"""On one CUDA GPU: DPO, SIT and generation of safeserve and of its peers, with models of 1.5B, 3B and 8B weights.

What it proves: in bfloat16 with float32 adapters, on the same rows, how many times as fast safeserve trains as TRL and
answers as transformers, each at its best settings: SDPA or FlashAttention where it is installed, checkpointing or not,
autocast or not, batch a device, padding-free and packed rows in SIT, Liger kernels where they are installed; plain and
static caches and continuous batching. Each setting is run twice, and the second run counts.

First both sides must agree, in float32 with two layers of each model: on every response's log-probability in DPO, on
the first loss in SIT (where each setting of TRL is checked), and with all layers on greedy answers up to near-ties. And
safeserve must run what it is meant to run: its own layers, FlexAttention, CUDA graphs; else nothing is timed. Reported
are rates, the share of the GEMM peak measured in the same run (MFU) and peak memory; only the model that is at work is
on the GPU.

It needs no download: the models are Llama-like, made from a config with random weights and a byte tokenizer, which
takes the same time as trained weights do. Random weights do not end an answer, so every answer has all its new tokens:
what a side gains where some answers end early is not seen here. Saving the adapter is outside the time on both sides.

    python -m benchmarks.gpu                         all sizes and all work, some hours on one H100 or H200
    python -m benchmarks.gpu --sizes 1.5B --work dpo   one part; each part is a JSON of its own
    python -m benchmarks.gpu --quick --device cpu    functions with a tiny model, on any machine
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import decoding, dpo, sit, synthetic, training, workloads
from benchmarks.common import (
    Disagreement,
    Run,
    achieved,
    alternate,
    compared,
    gemm_peak,
    gpu_above,
    gpu_before,
    offline,
    parser,
    save,
    say,
    square_gemm,
    tuned,
)
from benchmarks.flops import Weights, dpo_flops, generation_flops, sit_flops
from benchmarks.generation import check as check_answers
from benchmarks.training import Setup
from safeserve.models import gpu_attention

SAMPLES_AT_A_TIME = (32, 64, 128, 256)
BUDGETS = (2048, 4096, 8192, 16384, 32768)
"""Token budgets of safeserve's micro-batches to try: both sides are tuned here."""
PACKS = (1024, 2048)
"""Lengths of TRL's packed rows to try."""
CHECKED = 8
"""Rows on which both sides must agree."""


def attentions() -> list[str]:
    """What TRL can run its attention with here."""
    return ["sdpa", *(["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])]


def own_candidates() -> dict[str, dict[str, Any]]:
    """Safeserve's settings to try."""
    return {
        f"token budget {budget}{', checkpointing' if again else ''}": {
            "token_budget": budget,
            "gradient_checkpointing": again,
        }
        for again in (False, True)
        for budget in BUDGETS
    }


def trl_candidates(method: str, setup: Setup, row_tokens: float) -> dict[str, dict[str, Any]]:
    """TRL's settings to try.

    Args:
        row_tokens: mean tokens of a row, by which packs are counted into an optimiser batch.
    """
    batch = setup.batch
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if batch % size == 0]
    liger = (False, True) if importlib.util.find_spec("liger_kernel") and setup.device != "cpu" else (False,)
    autocast = (False,) if setup.dtype == "float32" else (False, True)
    made: dict[str, dict[str, Any]] = {}
    for attention, kernels, bf16, checkpointing in product(attentions(), liger, autocast, (False, True)):
        shared = {"attn_implementation": attention, "bf16": bf16, "gradient_checkpointing": checkpointing}
        shared |= {"use_liger_kernel": True} if kernels else {}
        marks = {"liger": kernels, "autocast": bf16, "checkpointing": checkpointing}
        name = ", ".join(["", attention, *(mark for mark, there in marks.items() if there)])
        for size in sizes:
            rows = {**shared, "per_device_train_batch_size": size}
            made[f"{size} a device{name}"] = {**rows, "sorted": True}
            if method == "sit":
                made[f"{size} a device, padding_free{name}"] = {**rows, "padding_free": True, "max_length": None}
            elif size == sizes[-1]:
                precomputed = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": size}
                made[f"{size} a device, reference precomputed{name}"] = {**rows, "sorted": True, **precomputed}
        for length in PACKS if method == "sit" else ():
            packs = {"packing": True, "max_length": length, "per_device_train_batch_size": 1}
            packs["gradient_accumulation_steps"] = max(1, round(batch * row_tokens / length))
            made[f"packs of {length}{name}"] = {**shared, **packs}
    return made


def generation_candidates(count: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Settings of transformers to try, by peer."""
    sizes = sorted({min(size, count) for size in SAMPLES_AT_A_TIME})
    plain = {f"batch {size}": {"batch": size} for size in sizes}
    static = {f"batch {size}, static cache": {"batch": size, "cache_implementation": "static"} for size in sizes}
    batching: dict[str, dict[str, Any]] = {"as it chooses": {}}
    batching |= {f"{size} requests": {"max_requests_per_batch": size, "max_batch_tokens": 4096} for size in sizes}
    return {"generate": {**plain, **static}, "continuous batching": batching}


def until_trained(run: Run) -> Run:
    """The run without the time that saving took."""
    return replace(run, seconds=run.more["trained"])


def with_peak(device: str, run: Callable[[], Run]) -> Run:
    """A run with the GPU's peak above what was in use before it."""
    before = gpu_before(device)
    done = run()
    return replace(done, more={**done.more, **gpu_above(device, before)})


class Turns:
    """A model for each side, of which only the one that is at work is on the device."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._models: dict[str, Any] = {}

    def __call__(self, side: str) -> Any:
        """The side's model, on the device."""
        for other, loaded in self._models.items():
            if other != side:
                loaded.model.to("cpu")
        gc.collect()
        gpu_before(self._setup.device)  # what is free goes back
        if side not in self._models:
            self._models[side] = self._setup.load()
        self._models[side].model.to(self._setup.device)
        return self._models[side]

    def renew(self, side: str) -> None:
        """Load the side's model again when it is next asked for."""
        self._models.pop(side, None)


def check(method: str, small: Setup, rows: list[Any]) -> dict[str, float]:
    """Abort unless both sides agree, in float32 on a model of few layers; see dpo.check and sit.check.

    Before the first step DPO's loss is ln 2 whatever the attention computes, so log-probabilities are compared there.
    """
    found = dpo.check(small, rows[:CHECKED]) if method == "dpo" else {"first_loss": sit.check(small, rows[:CHECKED])}
    found["by_flex"] = gpu_attention.flex_in_use()
    gpu_attention._flex_works = True  # a kernel may lack float32 alone; the timed one meets the policy's own probe
    return found


def as_meant(device: str, run: Run) -> Run:
    """Our run; abort where, on a GPU, it was by something slower than it is meant to be.

    Raises:
        Disagreement: by transformers' layers, without FlexAttention or without CUDA graphs.
    """
    missing = [name for name in ("own_layers", "flex", "graphs") if run.more.get(name) is False]
    if missing and device.startswith("cuda"):
        raise Disagreement(f"safeserve ran without {', '.join(missing)}: nothing is timed.")
    return run


def train(method: str, setup: Setup, small: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Tune and time training; ready for JSON.

    Args:
        small: with a model of few layers, for the checks.
    """
    count = options.rows
    low, high = (10, 60) if options.quick else (64, 512)
    make = synthetic.pairs if method == "dpo" else synthetic.demonstrations
    rows: list[Any] = list(make(count, (low, high), (low, high)))
    agreement = check(method, small, rows)
    model, on_gpu = Turns(setup), setup.device.startswith("cuda")
    own = model("safeserve")
    weights, chat, size = Weights.of(own.model, setup.lora_rank), own.chat, model_bytes(own)

    def mine(settings: dict[str, Any]) -> Run:
        own = model("safeserve")
        try:
            return as_meant(setup.device, until_trained(training.ours(method, setup, rows, settings, own)))
        except Exception:
            model.renew("safeserve")
            raise

    def theirs(settings: dict[str, Any]) -> Run:
        other = model("trl")
        try:
            return until_trained(training.trl(method, setup, rows, settings, other))
        except Exception as error:  # without its traceback, which would hold what filled the memory
            model.renew("trl")
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        finally:
            if "use_liger_kernel" in settings:  # leaves traces in the model
                model.renew("trl")

    def checked(settings: dict[str, Any]) -> Run:
        if method == "sit":
            most = min(CHECKED, settings["per_device_train_batch_size"])
            found = sit.first_loss(small, rows[:CHECKED], {**settings, "per_device_train_batch_size": most})
            if not abs(found - agreement["first_loss"]) <= sit.TOLERANCE:
                raise ValueError(f"another loss: {found:.5f} and not {agreement['first_loss']:.5f}")
        return theirs(settings)

    lengths = [sum(row) for row in workloads.row_lengths(chat, rows)] if method == "sit" else [0]
    budgets, tries = own_candidates(), trl_candidates(method, setup, sum(lengths) / len(lengths))
    if options.quick:
        budgets, tries = (dict(list(some.items())[:2]) for some in (budgets, tries))
    tuning = {"safeserve": tuned(budgets, mine, on_gpu), "trl tuned": tuned(tries, checked, on_gpu)}
    settings = {name: found["settings"] for name, found in tuning.items()}
    shapes = weights.gemms(16384 if on_gpu else 256)
    before = gemm_peak(setup.dtype, setup.device, shapes, options.quick)
    sides = {
        "safeserve": lambda: mine(settings["safeserve"]),
        "trl tuned": lambda: theirs(settings["trl tuned"]),
    }
    result = compared(alternate(sides, options.repeats, lambda: square_gemm(setup.dtype, setup.device, options.quick)))
    after = gemm_peak(setup.dtype, setup.device, shapes, options.quick)
    if method == "dpo":
        pairs = workloads.pair_lengths(chat, rows)
        flops, tokens = dpo_flops(weights, pairs), workloads.means(("prompt", "chosen", "rejected"), pairs)
    else:
        singles = workloads.row_lengths(chat, rows)
        flops, tokens = sit_flops(weights, singles), workloads.means(("prompt", "response"), singles)
    result |= achieved(result, flops / count, [before, after])
    result["workload"] = {"unit": "pair" if method == "dpo" else "row", "count": count, "mean_tokens": tokens}
    result |= {"agreement": agreement, "tuning": tuning, "peer_settings": settings, "setup": vars(setup)}
    return {**result, "model_bytes": size}


def model_bytes(loaded: Any) -> int:
    """Bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())


def generate(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Tune and time generation; ready for JSON."""
    prompts = synthetic.prompts(options.prompts, (5, 60) if options.quick else (64, 512))
    new = options.new_tokens
    simple = {"max_requests_per_batch": 8, "max_batch_tokens": 256, "auto_switch_to_flash": False}
    plainest = {"generate": {"batch": 8}, "continuous batching": simple}
    agreement = check_answers(setup, prompts[:16], min(32, new), plainest)
    model, on_gpu = Turns(setup), setup.device.startswith("cuda")
    peers = {"generate": decoding.generate, "continuous batching": decoding.continuous}
    tuning = {}
    for name, tries in generation_candidates(len(prompts)).items():
        some = dict(list(tries.items())[-1:]) if options.quick else tries
        tuning[name] = tuned(some, lambda s, name=name: peers[name](model("peer"), prompts, new, s), on_gpu)  # type: ignore[misc]
    own = model("safeserve")
    settings = {name: found["settings"] for name, found in tuning.items()}
    weights = Weights.of(own.model)
    shapes = weights.gemms(min(256, len(prompts)))
    answers = as_meant(setup.device, decoding.ours(own, prompts, new)).more["answers"]
    before = gemm_peak(setup.dtype, setup.device, shapes, options.quick)

    def mine() -> Run:
        own = model("safeserve")
        return as_meant(setup.device, with_peak(setup.device, lambda: decoding.ours(own, prompts, new)))

    def theirs(name: str) -> Run:
        other = model("peer")
        return with_peak(setup.device, lambda: peers[name](other, prompts, new, settings[name]))

    sides: dict[str, Callable[[], Run]] = {"safeserve": mine}
    sides |= {name: partial(theirs, name) for name in settings}
    result = compared(alternate(sides, options.repeats, lambda: square_gemm(setup.dtype, setup.device, options.quick)))
    after = gemm_peak(setup.dtype, setup.device, shapes, options.quick)
    lengths = [len(own.chat.prompt_ids(prompt.messages)) for prompt in prompts]
    made = [[len(answer) for answer in answers[prompt.id]] for prompt in prompts]
    result |= achieved(result, generation_flops(weights, lengths, made) / sum(map(sum, made)), [before, after])
    tokens = {"prompt": sum(lengths) / len(lengths)}
    result["workload"] = {"unit": "new token", "count": len(prompts), "mean_tokens": tokens}
    result |= {"agreement": agreement, "tuning": tuning, "peer_settings": settings, "setup": vars(setup)}
    return {**result, "model_bytes": model_bytes(own)}


def main() -> None:
    """Measure each size and each work, and write a JSON for each."""
    made = parser(__doc__)
    made.set_defaults(dtype="bfloat16")
    made.add_argument("--device", default="cuda")
    made.add_argument("--sizes", nargs="+", choices=list(synthetic.SIZES), default=["1.5B", "3B", "8B"])
    made.add_argument("--work", nargs="+", choices=["dpo", "sit", "generation"], default=["dpo", "sit", "generation"])
    made.add_argument("--rows", type=int, default=128, help="pairs or rows of an epoch (default 128)")
    made.add_argument("--batch", type=int, default=32, help="pairs or rows of an optimiser step (default 32)")
    made.add_argument("--prompts", type=int, default=256)
    made.add_argument("--new-tokens", type=int, default=128)
    options = made.parse_args()
    offline()
    if options.device != "cpu" and not _has_gpu():
        raise SystemExit("No CUDA GPU here. With --quick --device cpu this script shows only that it functions.")
    if options.quick:
        options.sizes, options.dtype, options.repeats = ["tiny"], "float32", min(options.repeats, 2)
        options.rows, options.batch, options.prompts, options.new_tokens = 8, 4, 4, 8
    given, failed = options.out, []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="safeserve-model-") as folder:
            say(f"making a random model: {size}")
            model = synthetic.save_model(size, Path(folder) / "model", options.dtype, options.device)
            few = synthetic.save_model(size, Path(folder) / "few", "float32", options.device, layers=2)
            setup = Setup(str(model), options.dtype, options.device, batch=options.batch, max_length=2048)
            small = replace(setup, model=str(few), dtype="float32", batch=min(CHECKED, options.batch))
            for work in options.work:
                _fresh_compiler(options.device)
                try:
                    result = generate(setup, options) if work == "generation" else train(work, setup, small, options)
                except (Exception, Disagreement) as error:  # such as a full memory: the other parts still count
                    failed.append(f"{work}, {size}: {type(error).__name__}: {str(error)[:300]}")
                    say(failed[-1])
                    continue
                if given:
                    options.out = given.with_name(f"{given.stem}-{work}-{size}{given.suffix}")
                save(f"gpu-{work}-{size}", result, options)
    if failed:
        raise SystemExit("\n".join(["Not measured:", *failed]))


def _fresh_compiler(device: str) -> None:
    """Forget what was compiled for another model: torch compiles a function for eight kinds of input, not more."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch._dynamo.reset()  # type: ignore[no-untyped-call]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
