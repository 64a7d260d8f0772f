"""What a model must show: a policy is rules with one limit each, read from YAML and checked against the metrics."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import Options
from safeserve.core.runs import read_text
from safeserve.core.yaml_files import load_yaml
from safeserve.evaluation.metrics import find_metric
from safeserve.judging.registry import DEFAULT_JUDGES

ALL = "all"
_LIMITS = ("at_least", "at_most", "max_loss", "max_gain")


class Rule(Options):
    """One demand on the candidate; exactly one of the four limits is set.

    A limit is a share between 0 and 1, or for the metric of a mean (a reward) in the metric's own unit.
    """

    metric: str
    benchmark: str
    """A benchmark's name, or "all": every benchmark the metric is measured on, pooled."""
    judge: str = DEFAULT_JUDGES[0]
    """The judge's name."""
    corrected: bool = False
    """Decide on the rate corrected for the judge's errors; needs a calibration of the judge."""
    at_least: float | None = Field(None, allow_inf_nan=False)
    """The lower 95 % bound of the candidate's rate must reach this."""
    at_most: float | None = Field(None, allow_inf_nan=False)
    """The upper 95 % bound of the candidate's rate must not exceed this."""
    max_loss: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The lower 95 % bound of candidate − against (paired) must not lie further below 0 than this."""
    max_gain: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The upper 95 % bound of candidate − against (paired) must not exceed this."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [name for name in _LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(_LIMITS)} is needed, found {', '.join(given) or 'none'}")
        if self.corrected and self.kind not in ("at_least", "at_most"):
            raise ValueError(f"corrected: would be ignored by {self.kind}; it is for at_least and at_most")
        return self

    @property
    def kind(self) -> str:
        """Which limit is set."""
        return next(name for name in _LIMITS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """Its value."""
        return float(getattr(self, self.kind))

    @property
    def paired(self) -> bool:
        """True when the rule compares with another model."""
        return self.kind in ("max_loss", "max_gain")

    @property
    def text(self) -> str:
        """The rule in words."""
        where = "all benchmarks" if self.benchmark == ALL else self.benchmark
        what = self.metric.replace("over_refusal", "over-refusal").replace("_", " ")
        if self.judge != DEFAULT_JUDGES[0] and self.metric != "accuracy":
            what += f" by {self.judge}"
        if self.corrected:
            what += ", corrected,"
        demand = {
            "at_least": f"at least {self.quantity}",
            "at_most": f"at most {self.quantity}",
            "max_loss": f"falls by at most {self.quantity}",
            "max_gain": f"rises by at most {self.quantity}",
        }
        return f"{what} on {where} {demand[self.kind]}"

    @property
    def quantity(self) -> str:
        """The limit with its unit."""
        if find_metric(self.judge, self.metric, "policy").is_mean:
            return f"{self.limit:g}"
        if self.paired:
            return "1 point" if self.limit == 0.01 else f"{100 * self.limit:g} points"
        return f"{100 * self.limit:g} %"


class Policy(Options):
    """What a model must show to be served."""

    name: str
    description: str = ""
    min_prompts: int = Field(100, ge=1)
    """A rule decided on fewer prompts with a score gives no verdict; several samples of one count once."""
    max_unscored: float = Field(0.02, ge=0, le=1, allow_inf_nan=False)
    """A rule with a larger share of unscored samples gives no verdict."""
    rules: tuple[Rule, ...] = Field(min_length=1)


def load_policy(name: str) -> Policy:
    """A shipped policy by name, or a YAML file by path.

    Raises:
        UserError: no such policy, broken YAML, an unknown key, metric or judge.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"{path}: no such policy file.")
        return parse_policy(read_text(path), str(path))
    shipped = {Path(item.name).stem: item for item in (resources.files("safeserve.recipes") / "policies").iterdir()}
    if name not in shipped:
        raise UserError(f'no policy "{name}".{did_you_mean(name, shipped)} Or give a YAML file.')
    return parse_policy(shipped[name].read_text(encoding="utf-8"), f"policy {name}")


def parse_policy(text: str, where: str) -> Policy:
    """Read a policy from YAML; ``where`` names it in messages. Raises UserError like :func:`load_policy`."""
    policy = Policy.parse(load_yaml(text, where), where)
    for number, rule in enumerate(policy.rules, 1):
        metric = find_metric(rule.judge, rule.metric, f"{where}: rule {number}")
        if not metric.is_mean and not 0 <= rule.limit <= 1:
            raise UserError(f"{where}: rule {number}: {rule.kind} {rule.limit:g} is no share; it lies between 0 and 1.")
        if rule.corrected and metric.corrects is None:
            raise UserError(f"{where}: rule {number}: {metric.name} has no corrected rate. Remove corrected.")
    return policy
