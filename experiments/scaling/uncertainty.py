"""How far a fit can be trusted: bootstrap intervals, hold-outs, and what it makes of other choices."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from experiments.scaling.frontier import budgets
from experiments.scaling.points import Points
from experiments.scaling.surface import DELTA, Surface, fit_huber, refit_huber

PARAMETERS = ("A", "B", "E", "alpha", "beta", "n_exponent")
DELTAS = (1e-5, 1e-4, 1e-3, 1e-2)
_AT_ONCE = 100  # replicates: their arrays stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval and the standard error over the bootstrap's replicates."""

    low: float
    high: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """A fit without some runs, judged on them: the mean of |predicted / measured - 1|."""

    held_out: str
    fitted_runs: int
    held_out_runs: int
    error: float


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """Runs of budget `foretold` by a fit up to budget `fitted_to`: the mean of log(predicted / measured)."""

    fitted_to: float
    foretold: float
    error: float


def bootstrap(
    points: Points, fitted: Surface, *, replicates: int, seed: int = 0, delta: float = DELTA
) -> list[Surface]:
    """Refit resamples of the runs (with replacement); replicate b is a function of (seed, b) alone.

    Each is searched for from the full fit and from its own best exponents.
    """
    found: list[Surface] = []
    for first in range(0, replicates, _AT_ONCE):
        # A run that is drawn twice is one of twice the weight.
        weight_BxP = np.array(
            [_times_drawn(len(points), (seed, b)) for b in range(first, min(first + _AT_ONCE, replicates))]
        )
        found += refit_huber(points, weight_BxP * points.weight_P, fitted, delta=delta)
    return found


def _times_drawn(count: int, seed: tuple[int, int]) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, count, count)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def intervals(surfaces: Sequence[Surface], confidence: float = 0.95) -> dict[str, Interval]:
    """Percentile intervals of a surface's parameters and of the exponent a of N* = k C^a."""
    return {
        name: _interval(np.array([getattr(surface, name) for surface in surfaces]), confidence) for name in PARAMETERS
    }


def _interval(values: np.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = (float(value) for value in np.quantile(values, [tail, 1 - tail]))
    return Interval(low, high, float(np.std(values, ddof=1)))


def hold_out_above(points: Points, c: float, delta: float = DELTA) -> HoldOut | None:
    """Predict the runs of compute `c` and more from the others; None where either side has too few runs."""
    return _hold_out(points, points.c_P >= c, f"C >= {c:.3g}", delta)


def leave_one_budget_out(points: Points, digits: int, delta: float = DELTA) -> list[HoldOut]:
    """Predict each budget's runs from all the others'."""
    results = []
    for budget, index in budgets(points, digits):
        held_out = np.zeros(len(points), bool)
        held_out[index] = True
        results.append(_hold_out(points, held_out, f"C = {budget:.3g}", delta))
    return [result for result in results if result is not None]


def _hold_out(points: Points, held_out_P: np.ndarray, name: str, delta: float) -> HoldOut | None:
    fitted, tested = points.take(~held_out_P), points.take(held_out_P)
    if len(fitted) < len(PARAMETERS) or not len(tested):
        return None
    surface = fit_huber(fitted, delta=delta)
    error = float(np.mean(np.abs(surface.loss(tested.n_P, tested.d_P) / tested.loss_P - 1)))
    return HoldOut(name, len(fitted), len(tested), error)


def extrapolations(points: Points, digits: int, delta: float = DELTA) -> list[Extrapolation]:
    """Foretell each budget from the cheaper ones, wherever two and more of them have enough runs to be fitted.

    Rolling origins, as forecasts are judged by (Tashman 2000, International Journal of Forecasting 16).
    """
    groups = budgets(points, digits)
    found = []
    for known in range(2, len(groups)):
        fitted = points.take(np.concatenate([index for _, index in groups[:known]]))
        if len(fitted) <= len(PARAMETERS):
            continue
        surface = fit_huber(fitted, delta=delta)
        for budget, index in groups[known:]:
            runs = points.take(index)
            error = float(np.mean(np.log(surface.loss(runs.n_P, runs.d_P) / runs.loss_P)))
            found.append(Extrapolation(groups[known - 1][0], budget, error))
    return found


def drift(found: Sequence[Extrapolation]) -> float:
    """Root mean square of the extrapolations' errors, for each factor of e between budgets; 0 where there are none.

    A law of the wrong form goes wrong in one direction, so that its error grows with the distance itself.
    """
    rates = [one.error / math.log(one.foretold / one.fitted_to) for one in found]
    return math.sqrt(sum(rate**2 for rate in rates) / len(rates)) if rates else 0.0


def by_delta(points: Points) -> dict[str, Surface]:
    """The fit under other bounds of the Huber loss."""
    return {f"{delta:g}": fit_huber(points, delta=delta) for delta in DELTAS}


def by_dropped(points: Points, most: int, delta: float = DELTA) -> dict[str, Surface]:
    """The fit without the 0, 1, 2, 4, ... runs of highest loss among those given."""
    order = np.argsort(points.loss_P, kind="stable")
    counts = [0, *(2**k for k in range(most.bit_length()) if 2**k <= most)]
    return {
        str(count): fit_huber(points.take(np.sort(order[: len(points) - count])), delta=delta)
        for count in counts
        if len(points) - count > len(PARAMETERS)
    }
