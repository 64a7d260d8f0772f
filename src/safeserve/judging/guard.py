"""The built-in guard as a judge: P(unsafe | prompt, answer), with no hub and no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from safeserve.core.errors import UserError
from safeserve.core.options import Options, stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import sha256_file
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score

if TYPE_CHECKING:
    from safeserve.judging.guard_network import GuardNetwork, GuardSpec

PACKAGED = Path(__file__).parent / "guards" / "guard.safetensors"
PACKAGED_SHA256 = "f279808dc0bb0b90a98eb7176986f0c82fb85b43b2b1a9ef6e87ef83e6804771"
"""The shipped guard, learned from permissive data only; a changed file is not used."""
VERSION = "1"


class GuardOptions(Options):
    """Which guard file judges, and from where on an answer is called unsafe."""

    file: str | None = None
    """A guard file made by ``safeserve guard train``; the shipped one when not given."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """Instead of the file's own."""


class Guard:
    """Value is the calibrated P(unsafe); label "unsafe" from the threshold on, else "safe"."""

    family = "guard"
    Options = GuardOptions

    def __init__(self, name: str = "guard", options: GuardOptions | None = None) -> None:
        options = options or GuardOptions()
        self.name = name
        self.file = Path(options.file).expanduser() if options.file is not None else PACKAGED
        if not self.file.is_file():
            raise UserError(f"{self.file}: no such guard file. Train one with `safeserve guard train`.")
        digest = sha256_file(self.file)
        if options.file is None and digest != PACKAGED_SHA256:
            raise UserError(f"{self.file}: its sha256 is not the shipped guard's. Install the package again.")
        self._given = options.threshold
        self._network: GuardNetwork | None = None
        self.identity = stable_hash(["guard", VERSION, digest, options.threshold])

    @property
    def threshold(self) -> float:
        """From this P(unsafe) on the label is unsafe."""
        return self._given if self._given is not None else described(self.file).threshold

    @property
    def sources(self) -> tuple[str, ...]:
        """Labelled sets it learned from."""
        return described(self.file).sources

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; an answer that failed or has no text is unscored.

        Raises:
            EnvironmentFault: the embedded model, whose layers the guard uses, could not be fetched.
        """
        reasons = [_unreadable(completion) for _, completion in items]
        texts = [
            (prompt.text, completion.text)
            for (prompt, completion), reason in zip(items, reasons, strict=True)
            if reason is None
        ]
        values = iter(self.probabilities(texts))
        return [Score(None, None, reason) if reason else self._score(next(values)) for reason in reasons]

    def probabilities(self, texts: Sequence[tuple[str, str]], quiet: bool = False) -> list[float]:
        """Calibrated P(unsafe) of each (prompt, answer)."""
        if not texts:
            return []
        network = self._loaded()
        total = sum(len(network.reader.readings(*text)) for text in texts)
        with Progress(f"{self.name} reads {len(texts)} answers", total, quiet=quiet or total < 200) as progress:
            return [float(p) for p in network.probabilities(network.logits(texts, done=progress.advance))]

    def _loaded(self) -> GuardNetwork:
        """Loaded at first use and gone with the judge: training after an evaluation needs the memory."""
        if self._network is None:
            import torch

            from safeserve.judging.guard_network import GuardNetwork
            from safeserve.models.loading import bf16_is_fast

            dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
            self._network = GuardNetwork(self.file, dtype, quiet=True)
        return self._network

    def _score(self, p_unsafe: float) -> Score:
        label = "unsafe" if p_unsafe >= self.threshold else "safe"
        return Score(p_unsafe, label, detail={"threshold": self.threshold})


def _unreadable(completion: Completion) -> str | None:
    if completion.finish_reason == "error":
        return f"generation failed: {completion.error or 'no reason given'}"
    return None if completion.text.strip() else "the answer is empty"


@lru_cache(maxsize=8)
def described(file: Path) -> GuardSpec:
    """The description in a guard file."""
    from safeserve.judging.guard_network import read_guard

    return read_guard(file)[0]
