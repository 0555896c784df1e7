"""Compute-optimal sizes straight from runs, without a loss surface: the lower envelope and isoFLOP parabolas.

Approaches 1 and 2 of arXiv 2203.15556, sections 3.1 and 3.2. Both end in a power law N* = k C^a, fitted by least
squares in logarithms; D* = C / (6 N*) has exponent 1 - a.
"""

import dataclasses
import math

import numpy as np

from experiments.scaling.points import Points

MIN_SIZES = 5  # distinct model sizes of a budget, for a parabola to have something to be wrong about


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """N* = coefficient * C^exponent."""

    coefficient: float
    exponent: float


@dataclasses.dataclass(frozen=True)
class Envelope:
    """Approach 1: the runs that no cheaper run beats, and the power law through their sizes (None below two sizes)."""

    runs: int
    law: PowerLaw | None


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Loss against log N at one budget: loss = offset + curvature * (log N - log n_star)^2.

    `refusal` says in words why the minimum cannot be used; empty where it can.
    """

    c: float
    runs: int
    sizes: int
    n_low: float
    n_high: float
    n_star: float
    curvature: float
    offset: float
    refusal: str


@dataclasses.dataclass(frozen=True)
class IsoFlops:
    """Approach 2: a parabola for each budget, and the power law through usable minima (None below two)."""

    parabolas: tuple[Parabola, ...]
    law: PowerLaw | None

    @property
    def usable(self) -> tuple[Parabola, ...]:
        """The parabolas whose minimum can be used."""
        return tuple(parabola for parabola in self.parabolas if not parabola.refusal)


def lower_envelope(points: Points) -> Envelope:
    """Approach 1. Rows may be final losses or whole training curves: each is a (C, loss) that some run reached."""
    order = np.lexsort((points.loss_P, points.c_P))
    best_so_far = np.minimum.accumulate(points.loss_P[order])
    first = np.concatenate(([True], points.loss_P[order][1:] < best_so_far[:-1]))
    front = order[first]
    return Envelope(len(front), power_law(points.c_P[front], points.n_P[front]))


def budgets(points: Points, digits: int) -> list[tuple[float, np.ndarray]]:
    """(budget, indices of its runs), rising: the runs whose C is the same when rounded to significant digits."""
    rounded = np.array([float(f"{c:.{digits - 1}e}") for c in points.c_P])
    return [(float(budget), np.flatnonzero(rounded == budget)) for budget in np.unique(rounded)]


def isoflops(points: Points, digits: int = 1) -> IsoFlops:
    """Approach 2: a least-squares parabola of loss in log N for each budget.

    A budget is as the mean of its runs' log C; a minimum needs MIN_SIZES sizes, positive curvature, and to lie between
    the smallest and the largest size.
    """
    parabolas = tuple(_parabola(points.take(index)) for _, index in budgets(points, digits))
    usable = [parabola for parabola in parabolas if not parabola.refusal]
    law = power_law(np.array([p.c for p in usable]), np.array([p.n_star for p in usable]))
    return IsoFlops(parabolas, law)


def _parabola(points: Points) -> Parabola:
    log_n = np.log(points.n_P)
    sizes = len(np.unique(points.n_P))
    c = float(np.exp(np.average(np.log(points.c_P), weights=points.weight_P)))
    low, high = float(points.n_P.min()), float(points.n_P.max())
    if sizes < MIN_SIZES:
        refusal = f"{sizes} sizes, {MIN_SIZES} are needed"
        return Parabola(c, len(points), sizes, low, high, math.nan, math.nan, math.nan, refusal)
    middle = log_n.mean()
    curvature, slope, level = np.polyfit(log_n - middle, points.loss_P, 2, w=np.sqrt(points.weight_P))
    if curvature <= 0:
        refusal = "negative curvature: the loss has no minimum"
        return Parabola(c, len(points), sizes, low, high, math.nan, float(curvature), math.nan, refusal)
    log_star = middle - slope / (2 * curvature)
    inside = log_n.min() < log_star < log_n.max()
    side = "smallest" if log_star <= log_n.min() else "largest"
    return Parabola(
        c, len(points), sizes, low, high, float(np.exp(log_star)), float(curvature),
        float(level - slope**2 / (4 * curvature)), "" if inside else f"the minimum lies beyond the {side} size",
    )  # fmt: skip


def power_law(c: np.ndarray, n: np.ndarray) -> PowerLaw | None:
    """Least squares of log N on log C; None unless there are two budgets."""
    if len(np.unique(c)) < 2:
        return None
    exponent, intercept = np.polyfit(np.log(c), np.log(n), 1)
    return PowerLaw(float(np.exp(intercept)), float(exponent))
