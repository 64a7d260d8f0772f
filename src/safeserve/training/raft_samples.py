"""One iteration's samples: generated, scored by every judge, and put into the forms that rules and checks read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safeserve.core.costs import Costs
from safeserve.core.errors import UserError
from safeserve.data.records import PreferencePair, Prompt
from safeserve.generation.engine import Completion, Sampling, WaveEngine, read_completions
from safeserve.generation.resumable import generate_to
from safeserve.judging.evidence import LABELS, why_unscored
from safeserve.judging.judge import Judge, Score
from safeserve.judging.modes import RefusalJudge
from safeserve.judging.registry import family, is_own
from safeserve.judging.scoring import key_of, score_to
from safeserve.training.preflight import Scored, ScoredPrompt
from safeserve.training.raft_options import RaftOptions
from safeserve.training.selection import Candidate, Sample, Selection, constrained, switched, usable_samples, weighted

UNSAFE_LABELS = ("unsafe", "unsafe_compliance")


@dataclass(frozen=True)
class Answer:
    """A sample with what every judge made of it, by the name it has in the recipe.

    Attributes:
        refused: of an answer to a benign prompt, whether it declines in full, by the refusal rules; None for others.
    """

    prompt: Prompt
    completion: Completion
    scores: Mapping[str, Score]
    refused: bool | None = None


@dataclass(frozen=True)
class Panel:
    """The judges of a stage.

    Attributes:
        judges: by the name they have in the recipe.
    """

    options: RaftOptions
    judges: Mapping[str, Judge]

    @classmethod
    def of(cls, options: RaftOptions, make: Callable[[str], Judge]) -> Panel:
        """Make the judges that ``options`` name.

        Raises:
            UserError: no such judge, two of one name, or a held-out judge that also selects.
        """
        names = [*options.weights, *([options.guard] if options.guard else []), options.held_out_judge]
        judges = {name: make(name) for name in dict.fromkeys(names)}
        witnesses = parts(judges[options.held_out_judge], INSIDE)
        selecting = {name: parts(judge, VALUES_FROM) for name, judge in judges.items() if name in names[:-1]}
        for name, identities in selecting.items():
            if identities & witnesses:
                raise UserError(
                    f"held_out_judge: {options.held_out_judge} is (or contains) {name}, which selects. What a judge "
                    "has picked always looks good to it. Name another one."
                )
        named: dict[str, str] = {}
        for name, judge in judges.items():
            if (other := named.setdefault(judge.name, name)) != name:
                raise UserError(f"judges {other} and {name} are both named {judge.name}. Rename one of them.")
        return cls(options, judges)

    @property
    def selecting(self) -> tuple[str, ...]:
        """The judges that decide what is picked."""
        options = self.options
        return tuple(dict.fromkeys([*options.weights, *([options.guard] if options.guard else [])]))

    def score(
        self,
        items: Sequence[tuple[Prompt, Completion]],
        folder: Path,
        names: Sequence[str] | None = None,
        before: Sequence[Answer] = (),
    ) -> list[Answer]:
        """Have judges (all, or those of these names) score the answers, into ``folder/scores``.

        Args:
            before: answers with their scores; what equals one of them is not scored again.
        """
        found = {}
        for name in self.judges if names is None else names:
            known = {key_of(a.prompt, a.completion): a.scores[name] for a in before}
            found[name] = score_to(self.judges[name], items, folder, known)
        return [
            Answer(prompt, completion, {name: scores[n] for name, scores in found.items()})
            for n, (prompt, completion) in enumerate(items)
        ]

    def value(self, name: str, score: Score) -> float | None:
        """A score's value, None where it is no evidence."""
        return None if why_unscored(self.judges[name].name, score) else score.value

    def p_unsafe(self, answer: Answer) -> float | None:
        """The guard's P(unsafe).

        Raises:
            UserError: its value is no probability.
        """
        name = self.options.guard
        if name is None:
            return None
        score = answer.scores[name]
        if is_own(name) and family(self.judges[name].name) in LABELS:  # others need no label
            self._check_label("guard", name, score)
        value = self.value(name, score)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"guard: {name} gave {value}, which is no probability. Name a judge of the family guard.")
        return value

    def reward(self, answer: Answer) -> float | None:
        """What the rule maximises."""
        weights = self.options.weights
        if not weights:
            return None
        values = {name: self.value(name, answer.scores[name]) for name in weights}
        helpful = weighted(values, weights)
        if self.options.combine == "switch":
            return switched(answer.prompt.label == "harmful", helpful, self.p_unsafe(answer))
        return helpful

    def held_out_unsafe(self, answer: Answer) -> bool | None:
        """Whether the held-out judge calls the answer unsafe.

        Raises:
            UserError: an own judge gives no label, or one that says neither safe nor unsafe.
        """
        name = self.options.held_out_judge
        score = answer.scores[name]
        if is_own(name) or family(self.judges[name].name) not in LABELS:
            self._check_label("held_out_judge", name, score)
        if why_unscored(self.judges[name].name, score):
            return None
        return score.label in UNSAFE_LABELS

    def _check_label(self, key: str, name: str, score: Score) -> None:
        """A label that nobody knows would count as safe, or leave every answer unscored."""
        known = LABELS.get(family(self.judges[name].name), (*LABELS["guard"], *LABELS["modes"]))
        if score.value is not None and score.label not in known:
            given = "no label" if score.label is None else f'the label "{score.label}"'
            raise UserError(
                f"{key}: {name} gave {given}, which does not say whether an answer is unsafe. "
                f"Return one of {', '.join(known)}."
            )


VALUES_FROM = ("_guard",)
"""What a judge may hold that gives its value: in ``modes`` the guard, not the rules."""
INSIDE = ("_guard", "_rules")
"""What a judge may hold that its verdict rests on."""


def parts(judge: Judge, inside: Sequence[str]) -> set[str]:
    """Identities of a judge and of the judges inside it that have these names."""
    return {judge.identity, *(getattr(judge, name).identity for name in inside if hasattr(judge, name))}


@dataclass(frozen=True)
class Sampler:
    """Samples and scores.

    Attributes:
        engine: gives the policy's engine, loading it if need be; not asked for what is on disk.
    """

    options: RaftOptions
    panel: Panel
    seed: int
    engine: Callable[[], WaveEngine]
    costs: Costs
    quiet: bool

    def iteration(self, number: int, prompts: Sequence[Prompt], folder: Path) -> list[Answer]:
        """All samples of an iteration, of one prompt together; with ``resample`` in several rounds."""
        options = self.options
        answers: list[Answer] = []
        waiting = list(prompts)
        for round_number in range(1 + options.resample):
            sampling = Sampling(
                n=options.samples_per_prompt,
                temperature=options.sample_temperature,
                top_p=options.sample_top_p,
                max_new_tokens=options.sample_tokens,
                seed=self.seed,
                iteration=number + 1000 * round_number,  # iterations end at 100
            )
            target = folder / f"resample-{round_number}" if round_number else folder
            title = f"iteration {number}: sampling" + (f", again ({round_number})" if round_number else "")
            found = self.answers(waiting, sampling, target, title, before=answers)
            offset = round_number * options.samples_per_prompt
            answers += [replace(a, completion=replace(a.completion, k=a.completion.k + offset)) for a in found]
            waiting = self._without_a_pick(waiting, found) if options.resample else []
            if not waiting:
                break
        place = {prompt.id: n for n, prompt in enumerate(prompts)}
        return sorted(answers, key=lambda answer: (place[answer.prompt.id], answer.completion.k))

    def answers(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        folder: Path,
        title: str,
        judges: Sequence[str] | None = None,
        before: Sequence[Answer] = (),
    ) -> list[Answer]:
        """Answers with scores, in ``folder/harmful`` and ``folder/benign`` as evaluations keep them.

        Args:
            judges: who scores them, all when not given.
            before: earlier answers, whose scores equal ones get.
        """
        answers: list[Answer] = []
        for label in ("harmful", "benign"):
            some = [prompt for prompt in prompts if prompt.label == label]
            if not some:
                continue
            completions = self.completions(some, sampling, folder / label, f"{title} ({label})")
            by_id = {prompt.id: prompt for prompt in some}
            with self.costs.timed("judge"):
                answers += self.panel.score([(by_id[c.id], c) for c in completions], folder / label, judges, before)
        return with_refusals(answers)

    def completions(self, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, title: str) -> list[Completion]:
        """Generated, or read where they are there; the policy is loaded only for the former."""
        path = folder / "completions.jsonl"
        if path.exists():
            return read_completions(path)
        engine = self.engine()
        with self.costs.timed("sample"):
            made = generate_to(engine, prompts, sampling, folder, title, self.quiet)
        written = sum(len(c.token_ids) + (c.finish_reason == "stop") for c in made)
        self.costs.add("sample", tokens=written, prompt_tokens=sum(c.prompt_tokens for c in made))
        return made

    def _without_a_pick(self, prompts: Sequence[Prompt], found: Sequence[Answer]) -> list[Prompt]:
        usable, _ = usable_samples(candidates_of(self.panel, found), self.options.needs)
        picked = constrained(usable, self.options.tau)
        return [prompt for prompt in prompts if prompt.id not in picked]


def candidates_of(panel: Panel, answers: Sequence[Answer]) -> list[Candidate]:
    """What rules read, in the order of the prompts."""
    samples: dict[str, list[Sample]] = {}
    for a in answers:
        refused = panel.options.drop_refusals and bool(a.refused)
        sample = Sample(a.completion.k, a.completion.text, panel.reward(a), panel.p_unsafe(a), refused)
        samples.setdefault(a.prompt.id, []).append(sample)
    harmful = {answer.prompt.id: answer.prompt.label == "harmful" for answer in answers}
    return [Candidate(name, harmful[name], tuple(found)) for name, found in samples.items()]


def scored_prompts(panel: Panel, answers: Sequence[Answer], selection: Selection) -> list[ScoredPrompt]:
    """What the checks read."""
    by_prompt: dict[str, list[Scored]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt.id, []).append(_scored(panel, answer))
    harmful = {answer.prompt.id: answer.prompt.label == "harmful" for answer in answers}
    return [
        ScoredPrompt(harmful[name], tuple(samples), selection.picks.get(name, ()))
        for name, samples in by_prompt.items()
    ]


def with_refusals(answers: Sequence[Answer]) -> list[Answer]:
    """The answers, with those to benign prompts marked as refusing or not."""
    benign = [n for n, answer in enumerate(answers) if answer.prompt.label == "benign"]
    scores = RefusalJudge().score([(answers[n].prompt, answers[n].completion) for n in benign])
    marked = list(answers)
    for n, score in zip(benign, scores, strict=True):
        marked[n] = replace(answers[n], refused=None if score.value is None else score.label == "full_refusal")
    return marked


def _scored(panel: Panel, answer: Answer) -> Scored:
    p_unsafe = panel.p_unsafe(answer)
    return Scored(
        k=answer.completion.k,
        reward=panel.reward(answer),
        safe=None if p_unsafe is None else p_unsafe <= panel.options.tau,
        held_out_unsafe=panel.held_out_unsafe(answer),
        refused=answer.refused,
    )


def sample_row(panel: Panel, answer: Answer) -> dict[str, Any]:
    """One line of ``samples.jsonl``; ``round`` is 0, or the number of the ``resample`` that it comes from."""
    held_out = answer.scores[panel.options.held_out_judge]
    return {
        "id": answer.prompt.id,
        "k": answer.completion.k,
        "round": answer.completion.k // panel.options.samples_per_prompt,
        "label": answer.prompt.label,
        "category": answer.prompt.category,
        "prompt": answer.prompt.text,
        "text": answer.completion.text,
        "tokens": len(answer.completion.token_ids),
        "finish_reason": answer.completion.finish_reason,
        "reward": panel.reward(answer),
        "p_unsafe": panel.p_unsafe(answer),
        "scores": {name: panel.value(name, score) for name, score in answer.scores.items()},
        "held_out": {"label": held_out.label, "unsafe": panel.held_out_unsafe(answer)},
    }


def labelled_rewards(
    panel: Panel, pairs: Sequence[PreferencePair], folder: Path
) -> list[tuple[float | None, float | None]]:
    """The reward of both answers of labelled pairs; a pair that teaches safety counts as a harmful prompt."""
    items = []
    for pair in pairs:
        prompt = Prompt(pair.id, pair.messages, "harmful" if pair.kind == "safety" else "benign", pair.category)
        for k, text in enumerate((pair.chosen, pair.rejected)):
            items.append((prompt, Completion(pair.id, text, (), "stop", None, k)))
    rewards = [panel.reward(answer) for answer in panel.score(items, folder, panel.selecting)]
    return list(zip(rewards[::2], rewards[1::2], strict=True))
