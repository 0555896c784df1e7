"""From finished trials to what they mean: the fits, the noise under them, predictions with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from experiments.scaling import fit, frontier, repeated, surface, uncertainty
from experiments.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN, Points
from experiments.scaling.trials import Outcome

# Budgets are told apart by the plan's own numbers, which are exact.
DIGITS = 6
_BAND_POINTS = 41
# How far beyond the largest budget the bands and curves of the report go at least.
BEYOND = 8.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A loss foretold; `low` and `high` enclose what a single run may measure, with the fit's own scatter.

    Both are None without a bootstrap.
    """

    loss: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that a study's grid says.

    Attributes:
        points: of the grid, C being the budget that each trial stands for.
        fitted: the surface of least Huber loss.
        surfaces: its bootstrap replicates.
        residual_P: log(measured) - log(fitted).
        result: what fit.json holds.
        outcomes: of the grid, in the order of `points`.
    """

    points: Points
    fitted: surface.Surface
    surfaces: tuple[surface.Surface, ...]
    residual_P: np.ndarray
    result: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def refused(self) -> list[str]:
        """Reasons of the closed gates."""
        return list(self.result["refused"])

    def predict(self, n: float, d: float, *, confidence: float = 0.95, seed: int = 0) -> Prediction:
        """The loss of N parameters after D tokens.

        The interval is where a single trial may fall, not only where the curve may lie: over bootstrap replicates, each
        with a residual of the grid's own drawn on top and, beyond the largest budget, with an error as large as the
        law made when it foretold the larger budgets of the grid from the smaller ones.
        """
        value = float(self.fitted.loss(np.array(n), np.array(d)))
        if not self.surfaces:
            return Prediction(value, None, None)
        losses_B = np.array([float(one.loss(np.array(n), np.array(d))) for one in self.surfaces])
        # A fit of few runs to five parameters has smaller residuals than the runs have noise.
        scale = math.sqrt(len(self.residual_P) / max(1, len(self.residual_P) - len(uncertainty.PARAMETERS) + 1))
        random = np.random.default_rng(seed)
        of_run_B = random.choice(self.residual_P, len(losses_B)) * scale
        beyond = max(0.0, math.log(FLOPS_PER_PARAMETER_AND_TOKEN * n * d / self.points.c_P.max()))
        of_form_B = random.normal(0.0, self.result["extrapolation"]["drift"] * beyond, len(losses_B))
        tail = (1 - confidence) / 2
        low, high = (float(x) for x in np.quantile(losses_B * np.exp(of_run_B + of_form_B), [tail, 1 - tail]))
        return Prediction(value, low, high)


def to_points(outcomes: Sequence[Outcome]) -> Points:
    """Runs as points: N with embeddings, D as counted, C the planned budget."""
    n_P = np.array([outcome.trial.n for outcome in outcomes], np.float64)
    d_P = np.array([outcome.tokens for outcome in outcomes], np.float64)
    c_P = np.array([outcome.trial.budget for outcome in outcomes], np.float64)
    loss_P = np.array([outcome.loss for outcome in outcomes], np.float64)
    return Points(n_P, d_P, c_P, loss_P, np.ones_like(n_P))


def analyse(outcomes: Sequence[Outcome], settings: Any, beyond: float = BEYOND) -> Analysis:
    """Fit the finished trials.

    Args:
        outcomes: of all stages.
        settings: `config.fit` of a study.
        beyond: how far the bands go, over the largest budget.

    Raises UserError while fewer trials of the grid are finished than a surface has parameters.
    """
    grid = [outcome for outcome in outcomes if outcome.trial.stage == "grid"]
    if len(grid) <= len(uncertainty.PARAMETERS):
        raise UserError(f"{len(grid)} trials of the grid are finished, too few to fit anything")
    points = to_points(grid)
    huber = surface.fit_huber(points, delta=settings.delta)
    surfaces = tuple(
        uncertainty.bootstrap(points, huber, replicates=settings.bootstrap, seed=settings.seed, delta=settings.delta)
    )
    result = fit.fit(
        points,
        delta=settings.delta,
        digits=DIGITS,
        confidence=settings.confidence,
        max_hold_out_error=settings.max_holdout_error,
        seed=settings.seed,
        surfaces=surfaces,
    )
    residual_P = np.log(points.loss_P) - np.log(huber.loss(points.n_P, points.d_P))
    result["residuals"] = {"standard_deviation": float(np.std(residual_P, ddof=5)), "log_loss": residual_P.tolist()}
    extrapolated = uncertainty.extrapolations(points, DIGITS, settings.delta)
    result["extrapolation"] = {
        "drift": uncertainty.drift(extrapolated),
        "budgets": [dataclasses.asdict(one) for one in extrapolated],
    }
    result["noise_floor"] = noise_floor(outcomes)
    result["conventions"] = conventions(grid, settings.delta)
    result["bands"] = bands(points, huber, surfaces, settings.confidence, beyond)
    repeats = [outcome for outcome in outcomes if outcome.trial.stage == "repeats"]
    if len(repeats) >= repeated.MIN_RUNS:
        rows = [(o.trial.n, o.tokens, o.trial.unique_tokens, o.loss) for o in repeats]
        result["repeated"] = repeated.analyse(huber, repeated.make(rows), seed=settings.seed)
    return Analysis(points, huber, surfaces, residual_P, result, tuple(grid))


def noise_floor(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Spread of runs that differ in nothing but the seed; None of fewer than two."""
    seeds = [outcome for outcome in outcomes if outcome.trial.stage == "seeds"]
    if not seeds:
        return None
    one = seeds[0].trial
    same = [o for o in outcomes if o.trial.stage == "grid" and (o.trial.budget, o.trial.n) == (one.budget, one.n)]
    losses = [outcome.loss for outcome in [*same, *seeds]]
    if len(losses) < 2:
        return None
    return {
        "budget": one.budget,
        "n": one.n,
        "losses": losses,
        "mean": float(np.mean(losses)),
        "standard_deviation": float(np.std(losses, ddof=1)),
    }


def by_kind(found: Analysis, beyond: Outcome, delta: float) -> list[dict[str, Any]]:
    """Where a loss beyond the grid was foretold wrongly: by each kind of token's own surface, the largest error first.

    `contribution` is (foretold - measured) nats times the kind's share of all targets. The sum of many surfaces is not
    one surface, so contributions add up to the error of the whole only roughly.
    """
    total = sum(tokens for _, tokens in beyond.by_kind.values())
    rows = []
    for kind, (measured, tokens) in beyond.by_kind.items():
        losses = [outcome.by_kind[kind][0] for outcome in found.outcomes if kind in outcome.by_kind]
        # Not in every trial's evaluation, or so certain that nothing is left to fit.
        if len(losses) < len(found.outcomes) or min(losses) <= 0:
            continue
        fitted = surface.fit_huber(found.points.with_loss(np.array(losses)), delta=delta)
        foretold = float(fitted.loss(np.array(beyond.trial.n), np.array(beyond.tokens)))
        row = {"kind": kind, "share": tokens / total, "foretold": foretold, "measured": measured}
        rows.append(row | {"contribution": (foretold - measured) * tokens / total})
    return sorted(rows, key=lambda row: -abs(row["contribution"]))


def conventions(grid: Sequence[Outcome], delta: float) -> list[dict[str, Any]]:
    """The exponent a of N* = k C^a under each way to count N and C: the choice changes it (arXiv 2406.12907)."""
    rows = []
    for n_name, n_of in (("with embeddings", lambda o: o.trial.n), ("without", lambda o: o.trial.n_without_embeddings)):
        n_P = np.array([n_of(outcome) for outcome in grid], np.float64)
        d_P = np.array([outcome.tokens for outcome in grid], np.float64)
        loss_P = np.array([outcome.loss for outcome in grid])
        flops = {
            "6 N D": FLOPS_PER_PARAMETER_AND_TOKEN * n_P * d_P,
            "exact": np.array([outcome.flops for outcome in grid], np.float64),
        }
        fitted = surface.fit_huber(Points(n_P, d_P, flops["6 N D"], loss_P, np.ones_like(n_P)), delta=delta)
        for c_name, c_P in flops.items():
            # Budgets stay those of the plan; each stands at the mean of its trials' compute in this convention.
            planned = np.array([outcome.trial.budget for outcome in grid])
            mean_P = np.array([np.exp(np.log(c_P[planned == one]).mean()) for one in planned])
            law = frontier.isoflops(Points(n_P, d_P, mean_P, loss_P, np.ones_like(n_P)), DIGITS).law
            rows.append(
                {
                    "n": n_name,
                    "c": c_name,
                    "approach2": None if law is None else law.exponent,
                    "approach3": fitted.n_exponent if c_name == "6 N D" else None,
                    "E": fitted.E,
                    "alpha": fitted.alpha,
                    "beta": fitted.beta,
                }
            )
    return rows


def bands(
    points: Points, fitted: surface.Surface, surfaces: Sequence[surface.Surface], confidence: float, beyond: float
) -> dict[str, list[float]]:
    """N*, D* and the frontier's loss against C, with percentile bands, from half the least budget to
    `beyond` times the largest."""
    c = np.geomspace(points.c_P.min() / 2, points.c_P.max() * beyond, _BAND_POINTS)
    found = dict(zip(("n", "d", "loss"), _optimum(fitted, c), strict=True))
    if surfaces:
        tail = (1 - confidence) / 2
        drawn_BxKxC = np.array([_optimum(one, c) for one in surfaces])
        # A replicate without one of the terms has no optimum: it counts as nothing, not as zero.
        known_B = np.isfinite(drawn_BxKxC).all(axis=(1, 2))
        if known_B.any():
            low_KxC, high_KxC = np.quantile(drawn_BxKxC[known_B], [tail, 1 - tail], axis=0)
            for index, name in enumerate(("n", "d", "loss")):
                found |= {f"{name}_low": low_KxC[index], f"{name}_high": high_KxC[index]}
    found["c"] = c
    return {name: [float(value) for value in values] for name, values in found.items()}


def _optimum(fitted: surface.Surface, c: np.ndarray) -> np.ndarray:
    """(N*, D*, loss) at each C; NaN where the surface has no optimum, for want of one of its terms."""
    if not (fitted.A > 0 and fitted.B > 0):
        return np.full((3, len(c)), np.nan)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        n, d = fitted.optimum(c)
        values = np.array([n, d, fitted.loss(n, d)])
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
