"""The pilot: small trials that say where the grid's centre lies and what learning rate a trial takes.

Every (budget, width) of the pilot is trained at the same few learning rates. One least-squares problem then describes
them all: near its minimum the loss of cell i is a parabola in x = log(learning rate),

    loss = base_i + k (x - x*_i)^2,   x*_i = a + b log N_i + c log D_i,

linear in (base_i + k x*_i^2, k, k a, k b, k c). Cells share the curvature k, so that few rates suffice, and a, b, c
are the power law of the recipe. The base losses give each budget's best size by a parabola in log N; N* = r C^exponent
through them centres the grid. Nothing here is a result: only a starting point that the grid then corrects.
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
    """What the pilot found; `warnings` in words that stand alone."""

    learning_rate: LearningRate
    curvature: float
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
        rule, curvature = LearningRate(best.learning_rate), math.nan
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
    x_P = np.log([run.learning_rate for run in runs])
    features = [np.ones(len(runs))]
    features += [np.log([run.n for run in runs])] if by_width else []
    features += [np.log([run.d for run in runs])] if by_tokens else []
    centered = [feature - (feature.mean() if index else 0.0) for index, feature in enumerate(features)]
    index_P = [cells.index((run.budget, run.n)) for run in runs]
    middle = x_P.mean()
    x_P = x_P - middle
    columns = np.column_stack([np.eye(len(cells))[index_P], x_P**2, *(-2 * x_P * feature for feature in centered)])
    losses_P = np.array([run.loss for run in runs])
    solved, *_ = np.linalg.lstsq(columns, losses_P, rcond=None)
    levels, curvature, slopes = solved[: len(cells)], float(solved[len(cells)]), solved[len(cells) + 1 :]
    if curvature <= 0:
        raise UserError(
            "the loss has no minimum over the learning rates of the pilot",
            where="config.pilot.learning_rates",
            fix="try a wider range",
        )
    exponents = slopes / curvature
    optimum_P = sum(
        (exponent * feature for exponent, feature in zip(exponents, centered, strict=True)), np.zeros(len(runs))
    )
    bases = {cell: float(levels[i] - curvature * optimum_P[index_P.index(i)] ** 2) for i, cell in enumerate(cells)}
    found = dict(zip(["1", *(["n"] if by_width else []), *(["d"] if by_tokens else [])], exponents, strict=True))
    constant = float(found["1"]) + middle - sum(
        float(exponent) * float(feature.mean())
        for exponent, feature in zip(exponents[1:], features[1:], strict=True)
    )  # fmt: skip
    warnings = []
    outside = int(np.sum((optimum_P < x_P.min()) | (optimum_P > x_P.max())))
    if outside:
        low, high = math.exp(float(x_P.min() + middle)), math.exp(float(x_P.max() + middle))
        warnings.append(
            f"the best learning rate of {outside} of {len(runs)} pilot trials lies outside {low:.3g} to {high:.3g}: "
            "widen config.pilot.learning_rates"
        )
    rule = LearningRate(math.exp(constant), float(found.get("n", 0.0)), float(found.get("d", 0.0)))
    return rule, curvature, bases, warnings


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
