"""What every training stage of a recipe has, whatever its method."""

from __future__ import annotations

from safeserve.core.options import Options


class StageOptions(Options):
    """Where a stage starts, and its chance."""

    start: str = "base"
    """The model to start from (its body, for reward and cost models): base, or the name of an earlier stage."""
    seed: int | None = None
    """This stage's own seed; the run's where not given."""
    repeats: str | None = None
    """The earlier stage that this one repeats with another seed: both are shown as one, with their spread."""
