"""The pilot: small trials that say where the grid's centre lies and what learning rate a trial takes.

Every (budget, width) of the pilot is trained at the same few learning rates. In each such cell a parabola of log(loss)
in log(learning rate) has the best rate at its minimum, and a line through these minima,

    log(best rate) = a + b log N + c log D,

is the recipe's power law. A slope that is not twice its standard error is set to zero: an exponent that the pilot
cannot tell from nothing must not be carried to runs of ten times the tokens. The losses at the minima give each
budget's best size by a parabola in log N; N* = r C^exponent through them centres the grid. Nothing here is a result:
only a starting point that the grid then corrects.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.errors import UserError
from experiments.scaling.recipe import LearningRate


@dataclasses.dataclass(frozen=True)
class PilotRun:
    """A finished pilot trial: budget (6ND), parameters, tokens, peak learning rate, loss."""

    budget: float
    n: float
    d: float
    learning_rate: float
    loss: float


@dataclasses.dataclass(frozen=True)
class PilotResult:
    """What the pilot found; `curvature` is None of a single learning rate, `warnings` in words that stand alone."""

    learning_rate: LearningRate
    curvature: float | None
    center_coefficient: float
    center_exponent: float
    best_sizes: tuple[tuple[float, float], ...]
    warnings: tuple[str, ...]

    def center(self, c: float) -> float:
        """N around which the grid of budget C lies."""
        return self.center_coefficient * c**self.center_exponent


def analyse(runs: Sequence[PilotRun], *, by_width: bool, by_tokens: bool, center_exponent: float) -> PilotResult:
    """What the pilot's runs say.

    Args:
        runs: of at least one budget.
        by_width: whether the best rate may depend on N (not under muP).
        by_tokens: whether it may depend on D; needs two budgets.
        center_exponent: how N* grows with C from the pilot to the grid.

    Raises UserError where the loss has no minimum over the learning rates tried.
    """
    cells = sorted({(run.budget, run.n) for run in runs})
    rates = sorted({run.learning_rate for run in runs})
    if len(rates) < 3:
        bases = {cell: min(run.loss for run in runs if (run.budget, run.n) == cell) for cell in cells}
        best = min(runs, key=lambda run: run.loss)
        rule, curvature = LearningRate(best.learning_rate), None
        warnings: list[str] = []
    else:
        rule, curvature, bases, warnings = _learning_rate(runs, cells, by_width, by_tokens)
    best_sizes = tuple(_best_size(budget, bases) for budget in sorted({budget for budget, _ in cells}))
    # Larger budgets weigh more: they are nearer to the grid.
    weights = np.array([budget for budget, _ in best_sizes])
    logs = [math.log(n) - center_exponent * math.log(budget) for budget, n in best_sizes]
    coefficient = math.exp(float(np.average(logs, weights=weights)))
    return PilotResult(rule, curvature, coefficient, center_exponent, best_sizes, tuple(warnings))


def _learning_rate(
    runs: Sequence[PilotRun], cells: Sequence[tuple[float, float]], by_width: bool, by_tokens: bool
) -> tuple[LearningRate, float, dict[tuple[float, float], float], list[str]]:
    minima = {cell: _cell_minimum([run for run in runs if (run.budget, run.n) == cell]) for cell in cells}
    curvatures = [one.curvature for one in minima.values()]
    if max(curvatures) <= 0:
        raise UserError(
            "the loss has no minimum over the learning rates of the pilot",
            where="config.pilot.learning_rates",
            fix="try a wider range",
        )
    features = {"n": np.log([n for _, n in cells])} if by_width else {}
    if by_tokens:
        features["d"] = np.log([next(run.d for run in runs if (run.budget, run.n) == cell) for cell in cells])
    best = np.array([one.log_rate for one in minima.values()])
    constant, slopes, dropped = _line(features, best)
    rates = sorted({run.learning_rate for run in runs})
    warnings = [
        f"how the best learning rate depends on {name.upper()} cannot be told from this pilot: it is taken not to"
        for name in dropped
    ]
    if outside := sum(one.outside for one in minima.values()):
        warnings.append(
            f"the best learning rate of {outside} of {len(cells)} pilot cells lies outside {rates[0]:.3g} to "
            f"{rates[-1]:.3g}: widen config.pilot.learning_rates"
        )
    rule = LearningRate(math.exp(constant), slopes.get("n", 0.0), slopes.get("d", 0.0))
    bases = {cell: math.exp(one.log_loss) for cell, one in minima.items()}
    return rule, float(np.median(curvatures)), bases, warnings


@dataclasses.dataclass(frozen=True)
class _Minimum:
    """Of log(loss) over log(rate) in one cell; `outside`: beyond the rates tried, and taken half a step beyond."""

    log_rate: float
    log_loss: float
    curvature: float
    outside: bool


def _cell_minimum(runs: Sequence[PilotRun]) -> _Minimum:
    x = np.log([run.learning_rate for run in runs])
    y = np.log([run.loss for run in runs])
    curvature, slope, level = (float(value) for value in np.polyfit(x - x.mean(), y, 2))
    if curvature <= 0:
        best = int(np.argmin(y))
        return _Minimum(float(x[best]), float(y[best]), curvature, bool(x[best] in (x.min(), x.max())))
    vertex = -slope / (2 * curvature)
    half = (x.max() - x.min()) / (len(set(x.tolist())) - 1) / 2
    taken = float(np.clip(vertex, x.min() - x.mean() - half, x.max() - x.mean() + half))
    outside = not x.min() <= vertex + x.mean() <= x.max()
    return _Minimum(taken + float(x.mean()), level + slope * taken + curvature * taken**2, curvature, outside)


def _line(features: dict[str, np.ndarray], y: np.ndarray) -> tuple[float, dict[str, float], list[str]]:
    """(constant, slope by name, names dropped): least squares, without slopes below twice their standard error.

    A line through as many minima as it has coefficients has residuals of zero, and no standard error to go by.
    """
    kept, dropped = dict(features), []
    while True:
        columns = np.column_stack([np.ones(len(y)), *kept.values()])
        solved, *_ = np.linalg.lstsq(columns, y, rcond=None)
        freedom = len(y) - columns.shape[1]
        if not kept:
            break
        variance = float(np.sum((y - columns @ solved) ** 2)) / freedom if freedom > 0 else math.inf
        errors = np.sqrt(variance * np.diag(np.linalg.pinv(columns.T @ columns)))
        ratios = {name: abs(solved[i + 1]) / max(errors[i + 1], 1e-12) for i, name in enumerate(kept)}
        weakest = min(ratios, key=lambda name: ratios[name])
        if ratios[weakest] >= 2:
            break
        dropped.append(weakest)
        del kept[weakest]
    return float(solved[0]), {name: float(solved[i + 1]) for i, name in enumerate(kept)}, dropped


def _best_size(budget: float, bases: dict[tuple[float, float], float]) -> tuple[float, float]:
    sizes = sorted(n for cell_budget, n in bases if cell_budget == budget)
    losses = [bases[budget, n] for n in sizes]
    lowest = sizes[int(np.argmin(losses))]
    if len(sizes) < 3:
        return budget, lowest
    log_n = np.log(sizes)
    curvature, slope, _ = np.polyfit(log_n, losses, 2)
    if curvature <= 0:
        return budget, lowest
    # Not far beyond what was tried: the grid is wide, and corrects it.
    edges = (log_n[0] - math.log(1.5), log_n[-1] + math.log(1.5))
    return budget, float(np.exp(np.clip(-slope / (2 * curvature), *edges)))
