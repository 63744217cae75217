"""How often policies succeed, with intervals, and how two of them compare."""

from __future__ import annotations

from dataclasses import dataclass

from vlaad_ray.configs import absent


@dataclass(frozen=True)
class Success:
    """How often it went well: k of n, as a fraction, and its 95 % Wilson interval."""

    n: int
    k: int
    rate: float
    wilson95: tuple[float, float]


@dataclass(frozen=True)
class Successes:
    """Of both kinds."""

    ever: Success
    """The goal was true at some step within the budget."""
    final: Success
    """Still true once the gripper has let go."""


@dataclass(frozen=True)
class TaskSuccesses(Successes):
    """Those of one task."""

    instruction: str = ""


@dataclass(frozen=True)
class Paired:
    """Two policies, a and b, on the trials that both have run."""

    n: int
    both: int
    """Trials in which both succeeded, and so on."""
    only_a: int
    only_b: int
    neither: int
    difference: float
    """Success rate of a minus that of b."""
    mcnemar_p: float
    """Exact and two-sided."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the starts that both have run, for both kinds of success."""

    ever: Paired
    final: Paired
    baseline: str | None = absent()
    """Where b is, if it is an evaluation of its own."""
