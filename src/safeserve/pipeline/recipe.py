"""The recipe: one YAML file composed from the components' own options, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from safeserve.core.errors import UserError, did_you_mean, placed
from safeserve.core.options import Options
from safeserve.core.runs import plain, read_text
from safeserve.core.yaml_files import load_yaml, read_yaml
from safeserve.evaluation.benchmarks import suite
from safeserve.generation.engine import Sampling
from safeserve.generation.llm_client import ServerOptions
from safeserve.judging.registry import DEFAULT_JUDGES
from safeserve.models.embedded import NAME as EMBEDDED
from safeserve.models.loading import DtypeName
from safeserve.pipeline.reward_stages import SCORERS
from safeserve.pipeline.seeds import repeat_name, repeated, require_repeats
from safeserve.pipeline.train_stages import METHODS, DpoStage, RaftStage, SitStage, TrainStage


class DataOptions(Options):
    """Where local copies of public data lie."""

    root: str | None = None
    """Folder with the public files under their registry paths; hub names are used where it is not given."""
    published: tuple[str, ...] = ()
    """Training sources that are fetched from their public address although a root is given, because the root holds
    a part of them only."""
    skip_missing: bool = False
    """Leave out training stages whose data or judges cannot be reached, with all that starts from them, and say so,
    instead of stopping."""


class EvaluateOptions(Options):
    """What is measured, on which models."""

    models: tuple[str, ...] = ("base",)
    """base and names of training stages."""
    suite: str = "starter"
    """Name of a suite, or several joined by +."""
    judges: tuple[str, ...] = DEFAULT_JUDGES
    """Judges by name, or module:object for your own."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts a benchmark, spread over its categories."""
    skip_missing: bool = False
    """Leave out benchmarks whose data cannot be reached, and say so, instead of stopping."""
    sampling: Sampling = Sampling()
    """Decoding, the same for every model."""

    @model_validator(mode="after")
    def _one_seed(self) -> EvaluateOptions:
        if ignored := sorted(self.sampling.model_fields_set & {"seed", "iteration"}):
            raise UserError(
                f"sampling: {', '.join(ignored)} would be ignored; the run's seed decides. Use the recipe's seed."
            )
        return self


class GateOptions(Options):
    """Who is judged against whom, by which policy."""

    candidate: str
    against: str = "base"
    policy: str = "starter"
    """Name of a shipped policy, or a path to a YAML file."""


class SeedOptions(Options):
    """How often training is repeated. A recipe is resolved with them: the run's own has the stages that they made."""

    seeds: int = Field(1, ge=1, le=100)
    """With how many seeds in all: the run's, and the numbers that follow it."""
    seeds_of: tuple[str, ...] = ()
    """Which of the evaluated models; where not given, those that SIT and DPO trained."""


class Recipe(Options):
    """Everything a run needs."""

    model: str = EMBEDDED
    template: Literal["alpaca", "chatml"] | None = None
    dtype: DtypeName = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    """Train adapters over a base in 8 or 4 bits (CUDA, the quantized extra); evaluation is always unquantised."""
    seed: int = 7
    study: Literal["paper"] | None = None
    """Also write the tables of this study, with the paper's numbers beside those measured here."""
    note: str = ""
    """What a reader must know of the whole run; stands first among the page's notes and above the study's tables."""
    server: ServerOptions | None = None
    """An OpenAI-compatible server that serves ``model``: it is measured there, nothing is loaded or trained here."""
    data: DataOptions = DataOptions()
    train: dict[str, TrainStage] = Field(default_factory=dict)
    evaluate: EvaluateOptions | None = None
    gate: GateOptions | None = None

    def seed_of(self, stage: TrainStage) -> int:
        """The seed of a stage: its own, else the run's."""
        return self.seed if stage.seed is None else stage.seed


def shipped() -> dict[str, Path]:
    """Shipped recipes: name to file."""
    folder = Path(str(resources.files("safeserve.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A path, or the file of a shipped recipe.

    Raises:
        UserError: neither.
    """
    known = shipped()
    if name in known:
        return known[name]
    if (path := Path(name)).is_file():
        return path
    raise UserError(f"{name}: no such recipe file and no shipped recipe of that name.{did_you_mean(name, known)}")


def header(path: Path) -> str:
    """The comment at the top of a recipe: what it proves and how to run it."""
    lines = []
    for line in read_text(path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, with ``key=value`` overrides applied.

    Raises:
        UserError: with file, line or override and remedy.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe holds keys and values, found {type(tree).__name__}.")
    scale = _scaled(tree, overrides, str(path))
    for override in overrides:
        if override is not scale:
            _override(tree, override)
    return tree


def _scaled(tree: dict[str, Any], overrides: Sequence[str], where: str) -> str | None:
    """Apply the chosen one of a recipe's ``scales`` (a name to dotted keys with values), by default the first.

    Returns:
        The override that chose it (the last of several), which is done with.

    Raises:
        UserError: an unknown scale, or ``scales`` that are no such mapping.
    """
    scales = tree.pop("scales", None)
    given = [override for override in overrides if override.startswith("scale=")]
    if scales is None:
        return None  # then scale is an unknown key like any other
    if not isinstance(scales, dict) or not all(isinstance(changes, dict) for changes in scales.values()) or not scales:
        raise UserError(f"{where}: scales: expected names, each with dotted keys and their values.")
    name = given[-1].removeprefix("scale=") if given else next(iter(scales))
    if name not in scales:
        raise UserError(f'{where}: scale: no scale "{name}".{did_you_mean(name, scales)}')
    for key, value in scales[name].items():
        _set(tree, str(key), value, f"{where}: scales.{name}.{key}")
    return given[-1] if given else None


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``key=value`` overrides, check everything.

    Args:
        overrides: dotted keys, values as YAML: ``train.dpo.beta=0.2``.

    Raises:
        UserError: with file, key and remedy.
    """
    path = find_recipe(name)
    tree = read_tree(path, overrides)
    if root := os.environ.get("SAFESERVE_DATA_ROOT"):
        if tree.get("data") is None:  # also where the recipe has the key without a value
            tree["data"] = {}
        if isinstance(tree["data"], dict):
            tree["data"].setdefault("root", root)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe given as a mapping."""
    tree = dict(tree)
    stages: dict[str, TrainStage] = {}
    train = tree.pop("train", None) or {}
    if not isinstance(train, Mapping):
        raise UserError(f"{where}: train: expected names of stages with their options, found {type(train).__name__}.")
    for stage, options in train.items():
        if options is None:  # taken out by a scale or an override
            continue
        method = options.get("method") if isinstance(options, Mapping) else None
        if not isinstance(method, str) or method not in METHODS:
            raise UserError(
                f'{where}: train.{stage}.method: unknown method "{method}".{did_you_mean(str(method), METHODS)}'
            )
        stages[stage] = METHODS[method].parse(options, f"{where}: train.{stage}")
    parts: dict[str, type[Options]] = {
        "data": DataOptions,
        "server": ServerOptions,
        "evaluate": EvaluateOptions,
        "gate": GateOptions,
    }
    for part, kind in parts.items():
        if tree.get(part) is not None:
            tree[part] = kind.parse(tree[part], f"{where}: {part}")
    seeds = SeedOptions.parse({key: tree.pop(key) for key in SeedOptions.model_fields if key in tree}, where)
    recipe = Recipe.parse({**tree, "train": stages}, where)
    _check_names(recipe, where)
    return _with_seeds(recipe, seeds, where)


def _with_seeds(recipe: Recipe, options: SeedOptions, where: str) -> Recipe:
    """The recipe with the stages that other seeds repeat, measured after all others."""
    models = recipe.evaluate.models if recipe.evaluate else ()
    trained = [name for name in models if name in recipe.train]
    _require_known(options.seeds_of, trained, f"{where}: seeds_of", "trained model in evaluate.models")
    if options.seeds == 1:
        return recipe
    names = options.seeds_of or [name for name in trained if isinstance(recipe.train[name], SitStage | DpoStage)]
    if not (names and recipe.evaluate):
        raise UserError(f"{where}: seeds: no model that SIT or DPO trained is evaluated. Name others in seeds_of.")
    more = range(recipe.seed + 1, recipe.seed + options.seeds)
    stages = repeated(recipe.train, names, more)
    again = tuple(repeat_name(name, seed) for seed in more for name in names)
    evaluate = recipe.evaluate.model_copy(update={"models": (*models, *again)})
    return recipe.model_copy(update={"train": stages, "evaluate": evaluate})


def _check_names(recipe: Recipe, where: str) -> None:
    from safeserve.evaluation.evaluate import require_judges
    from safeserve.evaluation.gate import load_policy
    from safeserve.pipeline.raft import check_judges

    require_repeats(recipe.train, where)
    known = ["base"]
    for name, stage in recipe.train.items():
        if not plain(name) or name == "base":
            raise UserError(
                f'{where}: train: "{name}" cannot be a stage name. Use letters, digits, - and _ (not "base").'
            )
        if stage.start not in known:
            raise UserError(
                f'{where}: train.{name}.start: no earlier model "{stage.start}".{did_you_mean(stage.start, known)}'
            )
        _require_policies([stage.start], recipe, f"{where}: train.{name}.start")
        if isinstance(stage, SCORERS) and recipe.quantize:
            raise UserError(f"{where}: quantize: train.{name} is saved whole, which a quantised base cannot be.")
        if recipe.quantize and stage.start != "base" and recipe.train[stage.start].save != "merged":
            raise UserError(
                f"{where}: quantize: train.{name} starts from an adapter, which cannot be quantised. "
                f"Set train.{stage.start}.save: merged."
            )
        if isinstance(stage, SitStage) and not (stage.helpful or stage.safety or stage.look_alike):
            raise UserError(f"{where}: train.{name}: no data. Give helpful, look_alike or safety.")
        if isinstance(stage, DpoStage) and stage.from_raft is not None:
            samplers = [earlier for earlier in known[1:] if isinstance(recipe.train[earlier], RaftStage)]
            _require_known([stage.from_raft], samplers, f"{where}: train.{name}.pairs: {stage.pairs}", "raft stage")
        if isinstance(stage, RaftStage):
            if recipe.quantize:
                raise UserError(f"{where}: quantize: train.{name} samples the model that it trains, unquantised.")
            check_judges(stage, recipe.train, known, f"{where}: train.{name}")
        known.append(name)
    if recipe.server:
        given = {"train": recipe.train, "template": recipe.template, "quantize": recipe.quantize}
        ignored = [key for key, value in given.items() if value] + ["dtype"] * (recipe.dtype != "auto")
        if ignored:
            raise UserError(f"{where}: {', '.join(ignored)}: would be ignored, because server serves the model.")
    if recipe.evaluate:
        _require_known(recipe.evaluate.models, known, f"{where}: evaluate.models")
        _require_policies(recipe.evaluate.models, recipe, f"{where}: evaluate.models")
        with placed(f"{where}: evaluate.suite"):
            benchmarks = suite(recipe.evaluate.suite)
        with placed(f"{where}: evaluate"):
            require_judges(benchmarks, recipe.evaluate.judges)
    if recipe.gate:
        if not recipe.evaluate:
            raise UserError(f"{where}: gate needs evaluate: a verdict rests on measurements.")
        wanted = (recipe.gate.candidate, recipe.gate.against)
        _require_known(wanted, recipe.evaluate.models, f"{where}: gate")
        with placed(f"{where}: gate.policy"):
            rules = load_policy(recipe.gate.policy).rules
        known_benchmarks = {"all", *(benchmark.name for benchmark in benchmarks)}
        # A rule on a benchmark that is not measured would end hours of work without a verdict.
        missing = [name for name in dict.fromkeys(rule.benchmark for rule in rules) if name not in known_benchmarks]
        if missing:
            raise UserError(
                f"{where}: gate: the policy {recipe.gate.policy} asks for {', '.join(missing)}, which evaluate.suite: "
                f"{recipe.evaluate.suite} does not measure. Join what is missing by +, or take another policy."
            )


def _require_known(names: Iterable[str], known: Sequence[str], where: str, what: str = "model") -> None:
    for name in names:
        if name not in known:
            raise UserError(f'{where}: no {what} "{name}".{did_you_mean(name, known)}')


def _require_policies(names: Iterable[str], recipe: Recipe, where: str) -> None:
    for name in names:
        if isinstance(stage := recipe.train.get(name), SCORERS):
            raise UserError(f"{where}: {name} is a {stage.method} model and writes no answers. Use it as a judge.")


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f'"{override}": an override reads key=value, for example train.dpo.beta=0.2.')
    _set(tree, key, load_yaml(text, f'"{override}"'), f'"{override}"')


def _set(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{where}: {parent} is a value, so nothing can be set inside it.")
        node = child
    node[last] = value
