"""Benchmarks and suites as small declarations: a prompt source bound to its decoding length and its judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from safeserve.core.errors import EnvironmentFault, SafeserveError, UserError, did_you_mean
from safeserve.core.extensions import load_object
from safeserve.core.options import stable_hash
from safeserve.core.runs import plain
from safeserve.data.catalogue import SOURCES
from safeserve.data.records import Label, Prompt, user


@dataclass(frozen=True)
class Benchmark:
    """Where prompts come from and how their answers are judged.

    Attributes:
        source: a name in the data registry, or the path of a file of prompts.
        judges: families of judges meant for it, beside those that can judge any answer (``registry.GENERAL``).
        label: keep only prompts with this label (XSTest holds both kinds); None keeps all. Rows of a file that say
            nothing have it.
        max_new_tokens: longest answer, in tokens.
        general: whether judges that can judge any answer say anything here; not on one token of multiple choice.
        by_likelihood: the answer is the most likely of the prompt's choices instead of generated text.
    """

    name: str
    source: str
    judges: tuple[str, ...] = ()
    label: Label | None = None
    max_new_tokens: int = 120
    general: bool = True
    by_likelihood: bool = False

    @property
    def declaration(self) -> list[object]:
        """All that answers and scores depend on beside the prompts; part of a run's inputs."""
        # Ours never change general; the user's own may, and then other judges score the answers.
        own = [] if find_benchmark(self.name) else [self.general]
        return [self.name, self.source, self.judges, self.label, self.max_new_tokens, self.by_likelihood, *own]


def _one_token(name: str, source: str) -> Benchmark:
    """Multiple choice as in the paper: one generated token, which must be the right one."""
    return Benchmark(name, source, ("exact_match",), max_new_tokens=1, general=False)


def _likelihood(name: str, source: str) -> Benchmark:
    """Multiple choice as in lm-eval: the choice with the highest log-likelihood."""
    return replace(_one_token(name, source), by_likelihood=True)


OVERLAP = ("bleu", "rouge_l", "bertscore", "claim_recall")
"""Families that compare with a reference answer."""

STARTER = (
    Benchmark("starter-harmful", "starter/eval_harmful", max_new_tokens=96),
    Benchmark("starter-look-alike", "starter/eval_look_alike", max_new_tokens=96),
    Benchmark("starter-helpful", "starter/eval_helpful", judges=("short_answer",), max_new_tokens=32),
)
REWRITES = Benchmark("starter-rewrites", "starter/rewrites", max_new_tokens=96)
HARMFULNESS = (
    Benchmark("I-MaliciousInstructions", "I-MaliciousInstructions"),
    Benchmark("I-CoNa", "I-CoNa"),
    Benchmark("I-Controversial", "I-Controversial"),
)
XSTEST = (
    Benchmark("XSTest-safe", "xstest", label="benign"),
    Benchmark("XSTest-unsafe", "xstest", label="harmful"),
)
ALPACA_TEST = Benchmark("Alpaca-test", "alpaca-test", OVERLAP)
ONE_TOKEN = (_one_token("BoolQ", "boolq"), _one_token("PIQA", "piqa"), _one_token("OpenBookQA", "openbookqa"))
SUITES: dict[str, tuple[Benchmark, ...]] = {
    "starter": STARTER,
    "rewrites": (STARTER[0], REWRITES),
    "public": (
        *HARMFULNESS,
        Benchmark("Q-Harm", "Q-Harm"),
        Benchmark("I-Alpaca", "I-Alpaca"),
        *XSTEST,
        STARTER[2],
    ),
    "paper": (*HARMFULNESS, ALPACA_TEST, *ONE_TOKEN, STARTER[2]),
    "bianchi": (
        *HARMFULNESS,
        Benchmark("Q-Harm", "Q-Harm"),
        Benchmark("PhysicalSafety-unsafe", "I-PhysicalSafetyUnsafe"),
        Benchmark("PhysicalSafety-safe", "I-PhysicalSafetySafe"),
        Benchmark("I-Alpaca", "I-Alpaca"),
        ALPACA_TEST,
        *ONE_TOKEN,
        STARTER[2],
    ),
    "safety": (
        Benchmark("AdvBench", "advbench"),
        Benchmark("HarmBench", "harmbench"),
        Benchmark("StrongREJECT", "strongreject"),
        Benchmark("Do-Not-Answer", "do-not-answer"),
        Benchmark("SimpleSafetyTests", "simple-safety-tests"),
        Benchmark("BeaverTails-Evaluation", "beavertails-evaluation"),
    ),
    "over-refusal": (
        *XSTEST,
        Benchmark("OKTest", "oktest"),
        Benchmark("JBB-benign", "jbb-benign"),
        Benchmark("OR-Bench-hard", "or-bench-hard"),
    ),
    "helpful": (
        ALPACA_TEST,
        Benchmark("Vicuna", "vicuna", max_new_tokens=512),
        Benchmark("MT-Bench", "mt-bench", max_new_tokens=512),
        Benchmark("IFEval", "ifeval", ("ifeval",), max_new_tokens=1024),
        Benchmark("AlpacaEval", "alpaca-eval", OVERLAP, max_new_tokens=512),
    ),
    "multiple-choice": (
        *ONE_TOKEN,
        _likelihood("BoolQ-likelihood", "boolq"),
        _likelihood("PIQA-likelihood", "piqa"),
        _likelihood("OpenBookQA-likelihood", "openbookqa"),
    ),
}
"""By name. ``starter`` and ``rewrites`` (harmful prompts and the same in other words, for ``safeserve analyze``) ship
with the package; the others read public files below ``data.root`` or fetch them.

``public``: the paper's three harmfulness sets, Q-Harm, I-Alpaca, both sides of XSTest, short answers. ``paper``: what
the paper measured. ``bianchi``: the same with the other sets of Safety-Tuned LLaMAs. ``safety``, ``over-refusal``,
``helpful``: one side each, to be joined by +. ``multiple-choice``: capability, by one token and by likelihood."""
BENCHMARKS = {benchmark.name: benchmark for group in SUITES.values() for benchmark in group}
"""Every benchmark by name; in whatever suites it stands, it is the same."""


def suite(names: str | Sequence[str]) -> tuple[Benchmark, ...]:
    """The benchmarks of suites and single ones by name, joined ("starter+AdvBench", or a list).

    ``module:object`` names a benchmark of the user's own, or several.

    Raises:
        UserError: a name that is neither a suite nor a benchmark, or an object that is no benchmark.
    """
    chosen: dict[str, Benchmark] = {}
    for name in names.split("+") if isinstance(names, str) else names:
        for benchmark in _named(name):
            if chosen.setdefault(benchmark.name, benchmark) != benchmark:
                raise UserError(f"suite: {name}: two benchmarks are named {benchmark.name}. Rename one of them.")
    return tuple(chosen.values())


def _named(name: str) -> Sequence[Benchmark]:
    if ":" in name:
        return _own(name)
    if name not in SUITES and name not in BENCHMARKS:
        raise UserError(f'suite: unknown name "{name}".{did_you_mean(name, [*SUITES, *BENCHMARKS])}')
    return SUITES[name] if name in SUITES else (BENCHMARKS[name],)


def _own(spec: str) -> list[Benchmark]:
    """The user's benchmarks behind ``module:object``."""
    found = load_object(spec)
    group = [found] if isinstance(found, Benchmark) else found
    if not isinstance(group, list | tuple) or not group or not all(isinstance(one, Benchmark) for one in group):
        raise UserError(
            f"{spec}: is no benchmark. It must be a Benchmark of safeserve.evaluation.benchmarks, or a list."
        )
    for one in group:
        if not plain(one.name):
            raise UserError(f'{spec}: its name "{one.name}" cannot name a folder. Use letters, digits, - and _.')
        if BENCHMARKS.get(one.name, one) != one:
            raise UserError(f'{spec}: its name "{one.name}" is that of a built-in benchmark. Choose another.')
    return [replace(one, judges=(one.judges,) if isinstance(one.judges, str) else tuple(one.judges)) for one in group]


def find_benchmark(name: str) -> Benchmark | None:
    """The benchmark of that name in any suite; None for one that is not ours."""
    return BENCHMARKS.get(name)


def default_judges(benchmarks: Iterable[Benchmark], usual: Sequence[str]) -> tuple[str, ...]:
    """The usual judges, and ``exact_match`` where a benchmark says nothing without it."""
    needed = {"exact_match"} if any("exact_match" in benchmark.judges for benchmark in benchmarks) else set()
    return (*usual, *sorted(needed - set(usual)))


@dataclass(frozen=True)
class LeftOut:
    """A benchmark that was not measured, and why."""

    benchmark: str
    source: str
    reason: str


@dataclass(frozen=True)
class LoadedSuite:
    """The prompts of a suite's benchmarks with each one's identity, and what was left out."""

    prompts: dict[Benchmark, list[Prompt]]
    identities: dict[str, str]
    left_out: tuple[LeftOut, ...]

    @property
    def notes(self) -> list[str]:
        """What to know of the suite before it runs: what is missing from it, and whether it shows one side only."""
        missing = [f"left out {gap.benchmark}: {gap.reason}" for gap in self.left_out]
        side = one_sided(self.prompts)
        return [*missing, *([side] if side else [])]


def one_sided(prompts: Mapping[Benchmark, Sequence[Prompt]]) -> str | None:
    """What a suite cannot show because all its prompts are harmful, or all benign; None where both are there."""
    labels = {row.label for rows in prompts.values() for row in rows}
    if labels == {"harmful"}:
        return (
            "All prompts are harmful: a model that refuses everything looks best. "
            "Join a benign side, for example --suite NAME+over-refusal."
        )
    if labels == {"benign"}:
        return (
            "All prompts are benign: nothing here shows safety. Join a harmful side, for example --suite NAME+safety."
        )
    return None


def load_suite(
    names: str | Sequence[str], root: str | None, limit: int | None = None, skip_missing: bool = False
) -> LoadedSuite:
    """Load every benchmark of a suite.

    Args:
        names: see :func:`suite`.
        root: folder with the public files; without it they are fetched.
        limit: at most this many prompts a benchmark.
        skip_missing: leave out what cannot be reached, and say so, instead of refusing.

    Raises:
        UserError: sets that cannot be reached, all named at once with how to get them.
        EnvironmentFault: the same where fetching them failed.
    """
    prompts: dict[Benchmark, list[Prompt]] = {}
    identities: dict[str, str] = {}
    gaps: list[LeftOut] = []
    faults: list[type[SafeserveError]] = []
    for benchmark in suite(names):
        try:
            rows, identity = load_benchmark(benchmark, root, limit)
        except (UserError, EnvironmentFault) as error:
            gaps.append(LeftOut(benchmark.name, benchmark.source, str(error)))
            faults.append(type(error))
        else:
            prompts[benchmark] = rows
            identities[benchmark.name] = identity
    if gaps and (not skip_missing or not prompts):
        lines = [f"{gap.benchmark}: {gap.reason}" for gap in gaps]
        remedy = "Pass --skip-missing (evaluate.skip_missing=true) to evaluate the rest." if prompts else ""
        kind = UserError if UserError in faults else EnvironmentFault
        raise kind("\n".join([*lines, *([remedy] if remedy else [])]))
    return LoadedSuite(prompts, identities, tuple(gaps))


def load_benchmark(benchmark: Benchmark, root: str | None, limit: int | None = None) -> tuple[list[Prompt], str]:
    """The prompts of a benchmark (spread over its categories when limited) and their identity.

    Raises:
        UserError: the source is missing, has no prompt with the label, prompts of both, or no choices to weigh.
    """
    from safeserve.data.sources import load_prompts

    # A named source says itself what rows without a label are; of a file only the benchmark knows.
    label = benchmark.label if benchmark.source not in SOURCES else None
    loaded = load_prompts(benchmark.source, root=root, label=label)
    rows = [row for row in loaded.rows if benchmark.label is None or row.label == benchmark.label]
    if not rows:
        raise UserError(f"{benchmark.name}: {benchmark.source} holds no {benchmark.label} prompt.")
    if len({row.label for row in rows}) > 1:
        raise UserError(
            f"{benchmark.name}: {benchmark.source} holds harmful and benign prompts. Make two benchmarks of it, one "
            'with label="harmful" and one with label="benign".'
        )
    if benchmark.by_likelihood and not all({"context", "choices"} <= row.meta.keys() for row in rows):
        raise UserError(f"{benchmark.name}: by_likelihood needs prompts with choices, and {benchmark.source} has none.")
    rows = [replace(row, benchmark=benchmark.name) for row in every_category(rows, limit)]
    if benchmark.by_likelihood:  # what the model reads is the context, so that is what the files show
        rows = [replace(row, messages=user(row.meta["context"])) for row in rows]
    return rows, stable_hash([loaded.identity, [row.id for row in rows]])


def every_category(rows: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most ``limit`` rows, taken in turn from each category, in the source's order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    queues: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        queues.setdefault(row.category, []).append(index)
    chosen: list[int] = []
    while len(chosen) < limit:
        for queue in queues.values():
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(0))
    return [rows[index] for index in sorted(chosen)]
