"""Tokens, time and memory of a recipe's stages before they run: counts of tokens and the forecast put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import Benchmark
from safeserve.evaluation.evaluate import meant_for
from safeserve.generation.engine import Sampling
from safeserve.judging.guard import Guard, described
from safeserve.judging.registry import family, make_judge
from safeserve.models import embedded
from safeserve.models.chat import ChatFormat
from safeserve.models.loading import bf16_is_fast, default_device, resolve_dtype
from safeserve.pipeline import forecast
from safeserve.pipeline.counts import (
    UNTRAINED,
    Answers,
    PromptCounts,
    RowCounts,
    chat_format,
    count_choices,
    count_demonstrations,
    count_own_pairs,
    count_pairs,
    count_prompts,
    count_samples,
    files_of,
)
from safeserve.pipeline.forecast import GenerationWork, Machine, ModelSize
from safeserve.pipeline.machine import cpu_model, free_memory
from safeserve.pipeline.probe import rates_of
from safeserve.pipeline.recipe import EvaluateOptions, Recipe
from safeserve.pipeline.reward_stages import SCORERS
from safeserve.pipeline.train_stages import OWN_PAIRS, DpoStage, RaftStage, SitStage, TrainStage

RULES = frozenset({"refusal", "short_answer", "exact_match", "ifeval", "bleu", "rouge_l"})
"""Families of judges that cost next to nothing."""
ROUNDS = 2.7
"""How often a harmful prompt is sampled for ``starter/pairs``, on average, until the model complies: in ``quickstart``
45 of 101 were dropped after four times."""
FRAME = 32
"""Tokens that the guard reads around a prompt and an answer."""


@dataclass
class Outlook:
    """Predicts the stages of one recipe.

    Attributes:
        guard_size: of the embedded model, on which the guard rests; None where that is not in the cache.
        not_counted: what costs time and is not predicted.
    """

    recipe: Recipe
    size: ModelSize
    chat: ChatFormat
    machine: Machine
    guard_machine: Machine
    guard_size: ModelSize | None
    not_counted: set[str] = field(default_factory=set)
    _assumed: dict[str, None] = field(default_factory=dict)
    _counted: dict[Benchmark, PromptCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> Outlook:
        """Reads the model's config, tokenizer and headers; measures the machine unless that was done before.

        Raises:
            UserError: the model's files are not all here.
        """
        folder, template = files_of(recipe.model)
        size, chat = ModelSize.of(folder), chat_format(folder, recipe.template or template)
        device = default_device()
        dtype = resolve_dtype(recipe.dtype, device)
        machine = machine_of(device, dtype)
        guard_machine = machine_of(device, "bfloat16" if bf16_is_fast(device) else "float32")
        there = embedded.is_sound(embedded.model_folder())
        guard_size = ModelSize.of(embedded.model_folder()) if there else None
        return cls(recipe, size, chat, machine, guard_machine, guard_size)

    @property
    def start_seconds(self) -> float:
        """Of what is no stage."""
        return forecast.START_SECONDS

    def evaluation(
        self,
        options: EvaluateOptions,
        prompts: Mapping[Benchmark, Sequence[Prompt]],
        most: Mapping[Benchmark, int],
        answers: Answers,
        held: bool = False,
    ) -> dict[str, Any]:
        """Generating and judging.

        Args:
            most: longest answer of each benchmark, in tokens.
            held: the model is in memory already.
        """
        generate = judge = peak = 0.0
        tokens = {"read": 0.0, "written": 0.0, "judged": 0.0}
        for benchmark, rows in prompts.items():
            if benchmark not in self._counted:
                self._counted[benchmark] = count_prompts(self.chat, rows, self._guard_reads())
            counts = self._counted[benchmark]
            samples = 1 if benchmark.by_likelihood else options.sampling.n
            answer = 0.0 if benchmark.by_likelihood else self._answers(answers, most[benchmark])
            written = counts.rows * samples * answer
            work = GenerationWork(
                prompts=0.0 if benchmark.by_likelihood else counts.total,
                written=written,
                longest_prompt=counts.longest,
                longest_answer=most[benchmark],
                rows=counts.rows * samples,
                likelihood=count_choices(self.chat, rows) if benchmark.by_likelihood else 0.0,
            )
            generate += forecast.generation_seconds(self.size, self.machine, work)
            peak = max(peak, forecast.generation_bytes(self.size, self.machine, work))
            judged = self._judged(options.judges, benchmark, counts, answer, samples)
            tokens["read"] += work.prompts + work.likelihood
            tokens["written"] += written
            tokens["judged"] += judged
        parts = {**self._load(held), "generate": generate}
        if tokens["judged"] and self.guard_size is not None:
            depth = described(Guard().file).depth
            judge = forecast.guard_seconds(self.guard_size, self.guard_machine, tokens["judged"], depth)
            parts["judge"] = judge + self.guard_machine.load_seconds(self.guard_size)
            beside = self.machine.runtime_bytes() + forecast.engine_bytes(self.size, self.machine)
            peak = max(peak, beside + forecast.guard_bytes(self.guard_size, self.guard_machine))
        return _told(tokens, parts, peak)

    def training(
        self, stage: TrainStage, rows: Sequence[Any], start: Answers, held: bool = False
    ) -> tuple[dict[str, Any], Answers]:
        """Training with what it needs before, and how long answers of the trained model are expected to be.

        Args:
            rows: demonstrations, or pairs, or what is behind pairs that are still to be sampled: demonstrations or
                prompts.
            start: how long the start model's answers are expected to be.
            held: the start model is in memory already.
        """
        if isinstance(stage, RaftStage):
            return self._raft(stage, rows, start), start
        size, machine = self.size, self.machine
        parts = self._load(held)
        tokens: dict[str, float] = {}
        peak = 0.0
        own = stage if isinstance(stage, DpoStage) and stage.pairs == OWN_PAIRS else None
        if isinstance(stage, SitStage):
            counts = count_demonstrations(self.chat, rows, stage.max_length)
        elif own is not None:
            counts = count_own_pairs(self.chat, rows, stage.max_length, self._answers(start, own.sample_tokens))
            self._assumed[f"a harmful prompt is sampled {ROUNDS} times until the model complies;"] = None
        elif rows and isinstance(rows[0], Prompt):  # of a RAFT stage that has not run
            longest = Sampling().max_new_tokens
            counts = count_samples(self.chat, rows, stage.max_length, self._answers(start, longest), 2)
        else:
            counts = count_pairs(self.chat, rows, stage.max_length)
        if own is not None:
            sampling = Sampling(max_new_tokens=own.sample_tokens, temperature=own.sample_temperature)
            samples = self._sampling(counts, sum(row.kind == "safety" for row in rows), sampling, start)
            parts["sample"] = forecast.generation_seconds(size, machine, samples)
            tokens["sampled"] = samples.written
            peak = forecast.generation_bytes(size, machine, samples)
        learned = 1 - stage.validation_share
        tokens["trained on"] = stage.epochs * learned * counts.work.tokens
        work = replace(counts.work, responses=0) if isinstance(stage, SCORERS) else counts.work  # no logits
        if isinstance(stage, DpoStage):
            parts["reference"] = forecast.reference_seconds(size, machine, work) + machine.load_seconds(size)
        else:
            parts["save"] = machine.load_seconds(size)
        parts["train"] = learned * forecast.training_seconds(size, machine, work, stage)
        if stage.validation_share:
            parts["validate"] = stage.validation_share * forecast.reference_seconds(size, machine, work)
        peak = max(peak, forecast.training_bytes(size, machine, work, stage))
        told = _told(tokens, parts, peak)
        return {**told, **({"too_long": counts.too_long} if counts.too_long else {})}, Answers(counts.lengths or None)

    def _raft(self, stage: RaftStage, rows: Sequence[Prompt], start: Answers) -> dict[str, Any]:
        """All iterations of a RAFT stage.

        Args:
            rows: the prompts of all iterations.
        """
        size, machine = self.size, self.machine
        answer = self._answers(start, stage.sample_tokens)
        self._assumed["every prompt of RAFT gives one sample to learn, and nothing is sampled again;"] = None
        prompts = count_prompts(self.chat, rows, self._guard_reads())
        watched = (1 + stage.iterations) * stage.held_out_prompts
        watched += stage.iterations * min(stage.kl_samples, stage.held_out_prompts)
        samples = stage.samples_per_prompt * prompts.rows
        sampling = GenerationWork(
            prompts=prompts.total * (1 + watched / max(1, prompts.rows)),
            written=(samples + watched) * answer,
            longest_prompt=prompts.longest,
            longest_answer=stage.sample_tokens,
            rows=samples + watched,
        )
        counts = count_samples(self.chat, rows, stage.max_length, answer, 1 if stage.update == "sit" else 2)
        by_guard, by_trained = self._judged_samples(stage, prompts, answer, samples + watched)
        loads = 1 + 2 * stage.iterations if stage.kl_samples else 1
        parts = {"load": loads * machine.load_seconds(size)}
        parts["sample"] = forecast.generation_seconds(size, machine, sampling)
        if by_guard and self.guard_size is not None:
            depth = described(Guard().file).depth
            parts["judge"] = forecast.guard_seconds(self.guard_size, self.guard_machine, by_guard, depth)
        if by_trained:
            reading = forecast.guard_seconds(size, machine, by_trained, size.layers)
            parts["judge"] = parts.get("judge", 0.0) + reading + machine.load_seconds(size)
        parts["train"] = forecast.training_seconds(size, machine, counts.work, stage)
        parts["train"] += stage.iterations * machine.load_seconds(size)  # saving
        if stage.update == "dpo":
            parts["train"] += forecast.reference_seconds(size, machine, counts.work)
        peak = forecast.training_bytes(size, machine, counts.work, stage)
        peak = max(peak, forecast.generation_bytes(size, machine, sampling))
        tokens = {
            "sampled": sampling.written,
            "judged": by_guard + by_trained,
            "trained on": stage.epochs * counts.work.tokens,
        }
        told = _told(tokens, parts, peak)
        return {**told, **({"too_long": counts.too_long} if counts.too_long else {})}

    def _judged_samples(
        self, stage: RaftStage, prompts: PromptCounts, answer: float, samples: int
    ) -> tuple[float, float]:
        """Tokens that the built-in guard reads for a RAFT stage, and those that reward and cost models trained in the
        same recipe read, each prompt once for all its answers; other judges that cost time are noted."""
        guard = trained = 0.0
        read = prompts.texts + FRAME * prompts.rows + samples * answer
        for spec in stage.judges:
            if spec in self.recipe.train:
                trained += read
                continue
            judge = make_judge(spec)
            reader = getattr(judge, "_guard", judge)
            if isinstance(reader, Guard) and self.guard_size is not None:
                guard += read
            elif family(reader.name) not in RULES:
                self.not_counted.add(f"judge {spec}")
        return guard, trained

    def free_bytes(self) -> int | None:
        """Memory that can still be taken where the model will be."""
        if self.machine.device == "cpu":
            return free_memory()
        import torch

        return int(torch.cuda.mem_get_info()[0])

    def described(self) -> dict[str, Any]:
        """Where the work would run."""
        import torch

        gpu = self.machine.device.startswith("cuda")
        threads = torch.get_num_threads()
        name = torch.cuda.get_device_name(0) if gpu else f"{threads} thread{'s' * (threads != 1)} of {cpu_model()}"
        return {
            "name": name,
            "device": self.machine.device,
            "dtype": self.machine.dtype,
            "gemm_flops": self.machine.rates.gemm,
            "bandwidth_bytes": self.machine.rates.bandwidth,
        }

    @property
    def assumptions(self) -> list[str]:
        """What the predictions so far rest on beside counted tokens."""
        share = self.machine.share
        reached = f"training reaches {share('train'):.0%} of that rate, decoding {share('decode'):.0%}"
        measured = "." if self.machine.kind == "cpu" else " (these shares are assumed: no GPU has been measured)."
        return [*self._assumed, f"{reached}, reading {share('prefill'):.0%}{measured}"]

    def _load(self, held: bool) -> dict[str, float]:
        return {} if held else {"load": self.machine.load_seconds(self.size)}

    def _answers(self, answers: Answers, longest: int) -> float:
        """Expected tokens of an answer; what that rests on is kept."""
        if answers.lengths is None:
            said = f"a model that is not trained here writes {UNTRAINED:.0%} of the longest allowed answer;"
        else:
            said = "a trained one writes answers as long as those that it learned;"
        self._assumed[said] = None
        return answers.expected(longest)

    def _guard_reads(self) -> int:
        """Tokens of a prompt that the guard reads."""
        return described(Guard().file).prompt_tokens

    def _judged(
        self, judges: Sequence[str], benchmark: Benchmark, counts: PromptCounts, answer: float, samples: int
    ) -> float:
        """Tokens that the built-in guard reads; other judges that cost time are noted."""
        total = 0.0
        for spec in judges:
            judge = make_judge(spec)
            if not meant_for(spec, judge, benchmark):
                continue
            reader = getattr(judge, "_guard", judge)  # modes asks a guard about harmful prompts only
            if not isinstance(reader, Guard):
                if family(reader.name) not in RULES:
                    self.not_counted.add(f"judge {spec}")
                continue
            if self.guard_size is None:
                self.not_counted.add(f"judge {spec} (the embedded model is not in the cache)")
                continue
            whole = reader is judge
            rows, texts = (counts.rows, counts.texts) if whole else (counts.harmful_rows, counts.harmful_texts)
            total += texts + FRAME * rows + samples * rows * answer  # the prompt once for all its answers
        return total

    def _sampling(self, counts: RowCounts, harmful: int, sampling: Sampling, start: Answers) -> GenerationWork:
        """The answers that are sampled to make pairs: to harmful prompts again until the model complies."""
        work = counts.work
        answers = work.items + (ROUNDS - 1) * harmful
        prompt = (work.tokens - work.responses) / max(1, work.items)
        return GenerationWork(
            prompts=prompt * answers,
            written=answers * start.expected(sampling.max_new_tokens),
            longest_prompt=work.longest,
            longest_answer=sampling.max_new_tokens,
            rows=round(answers),
        )


def machine_of(device: str, dtype: str) -> Machine:
    """Where work in ``dtype`` runs; measures the rates that are not kept."""
    base = forecast.SHARES["cuda" if device.startswith("cuda") else "cpu"].dtype
    rates = rates_of(device, dtype)
    return Machine(device, dtype, rates, None if dtype == base else rates_of(device, base).gemm)


def _told(tokens: Mapping[str, float], parts: Mapping[str, float], peak: float) -> dict[str, Any]:
    return {
        "tokens": {kind: round(count) for kind, count in tokens.items() if count},
        "seconds": round(sum(parts.values()), 1),
        "peak_memory_bytes": round(peak),
        "parts": {part: round(seconds, 2) for part, seconds in parts.items()},
    }
