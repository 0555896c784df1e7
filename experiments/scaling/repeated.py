"""The data-constrained form: what passes over the same patients are worth (arXiv 2305.16264, section 3 and eq. 5-7).

    L = E + A / N'^alpha + B / D'^beta
    D' = U + U R*_D (1 - exp(-R_D / R*_D)),  R_D = D / U - 1        U: unique tokens, R_D: passes beyond the first
    N' = M + M R*_N (1 - exp(-R_N / R*_N)),  M = min(N, N_opt(U)),  R_N = N / M - 1

E, A, B, alpha, beta come from runs that see every token once; only R*_D and R*_N are fitted to runs that repeat. R*_D
is the number of passes after which another is worth 1/e of fresh data.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from experiments.scaling.surface import DELTA, Surface

MIN_RUNS = 4
_BOUNDS = (math.log(0.05), math.log(1e4))


@dataclasses.dataclass(frozen=True)
class Repeated:
    """R runs that repeat their data: parameters, tokens seen, unique tokens, final loss."""

    n_R: np.ndarray
    d_R: np.ndarray
    unique_R: np.ndarray
    loss_R: np.ndarray

    def __len__(self) -> int:
        return len(self.n_R)

    def take(self, index: np.ndarray) -> "Repeated":
        """The runs at `index`."""
        return Repeated(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class DataConstrained:
    """A surface with R*_D and R*_N (`r_d`, `r_n`); `objective` is the summed Huber loss of log-residuals."""

    surface: Surface
    r_d: float
    r_n: float
    objective: float

    def effective_tokens(self, d: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """D': the fresh tokens that `d` tokens over `unique` ones are worth."""
        d, unique = np.asarray(d, np.float64), np.minimum(unique, d)
        return np.asarray(unique * (1 + self.r_d * -np.expm1(-(d / unique - 1) / self.r_d)))

    def loss(self, n: np.ndarray, d: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """Predicted loss of N parameters trained on D tokens of which `unique` differ."""
        base = np.minimum(n, optimal_size(self.surface, np.minimum(unique, d)))
        excess = np.asarray(n) / base - 1
        effective_n = base * (1 + self.r_n * -np.expm1(-excess / self.r_n))
        return self.surface.loss(effective_n, self.effective_tokens(d, unique))


def optimal_size(fitted: Surface, d: np.ndarray) -> np.ndarray:
    """N_opt(D): the size for which D tokens are compute-optimal, from alpha A / N^alpha = beta B / D^beta."""
    ratio = (fitted.alpha * fitted.A) / (fitted.beta * fitted.B)
    return np.asarray((ratio * np.asarray(d, np.float64) ** fitted.beta) ** (1 / fitted.alpha))


def fit(
    fitted: Surface, runs: Repeated, *, delta: float = DELTA, near: DataConstrained | None = None
) -> DataConstrained:
    """R*_D and R*_N of least summed Huber loss, searched for from a grid, or from a fit of much the same runs.

    Raises ValueError for fewer than MIN_RUNS runs.
    """
    if len(runs) < MIN_RUNS:
        raise ValueError(f"{len(runs)} runs that repeat their data, {MIN_RUNS} are needed")

    def objective(logs: np.ndarray) -> float:
        r_d, r_n = np.exp(np.clip(logs, *_BOUNDS))
        predicted = DataConstrained(fitted, float(r_d), float(r_n), 0.0).loss(runs.n_R, runs.d_R, runs.unique_R)
        residual_R = np.log(predicted) - np.log(runs.loss_R)
        clipped_R = np.clip(residual_R, -delta, delta)
        return float(np.sum(clipped_R * (residual_R - clipped_R / 2))) * 1e6

    if near is None:
        grid = np.log(np.geomspace(0.3, 300, 13))
        start = min(((x, y) for x in grid for y in grid), key=lambda pair: objective(np.array(pair)))
    else:
        start = (np.log(near.r_d), np.log(near.r_n))
    found = scipy.optimize.minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8})
    r_d, r_n = (float(value) for value in np.exp(np.clip(found.x, *_BOUNDS)))
    return DataConstrained(fitted, r_d, r_n, float(found.fun) / 1e6)


def analyse(fitted: Surface, runs: Repeated, *, replicates: int = 200, seed: int = 0) -> dict[str, Any]:
    """The fit with bootstrap intervals over runs, residuals, and what it advises, as nested dictionaries."""
    best = fit(fitted, runs)
    resampled = []
    for replicate in range(replicates):
        index = np.random.default_rng((seed, replicate)).integers(0, len(runs), len(runs))
        resampled.append(fit(fitted, runs.take(index), near=best))
    predicted = best.loss(runs.n_R, runs.d_R, runs.unique_R)
    once = fitted.loss(runs.n_R, runs.d_R)
    result: dict[str, Any] = {
        "runs": len(runs),
        "r_d": best.r_d,
        "r_n": best.r_n,
        "mean_error": float(np.mean(np.abs(predicted / runs.loss_R - 1))),
        "mean_error_as_if_fresh": float(np.mean(np.abs(once / runs.loss_R - 1))),
        "bounded": {"r_d": _at_bound(best.r_d), "r_n": _at_bound(best.r_n)},
    }
    for name in ("r_d", "r_n"):
        values = [getattr(one, name) for one in resampled]
        low, high = (float(value) for value in np.quantile(values, [0.025, 0.975])) if values else (math.nan,) * 2
        result[f"{name}_interval"] = [low, high]
    result["worth"] = [
        {
            "epochs": epochs,
            "effective_epochs": float(best.effective_tokens(np.array(epochs), np.array(1.0))),
            "next_pass_worth": float(math.exp(-(epochs - 1) / best.r_d)),
        }
        for epochs in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    ]
    result["advice"] = advice(best, result["r_d_interval"])
    return result


def advice(best: DataConstrained, r_d_interval: Sequence[float]) -> list[str]:
    """What the fit implies for an engineer who has so many patients, in sentences.

    Where the runs do not bound R*_D from above, only its interval's lower end is advice.
    """
    least, highest = r_d_interval[0], max(best.r_d, r_d_interval[1])
    if highest > 1 and _at_bound(highest):
        return [
            f"These runs do not show where passes stop to pay: R*_D may be anything above {least:.3g} (95%).",
            f"Up to {1 + least * math.log(2):.1f} passes another pass is worth at least half of as many new patients; "
            "to learn what lies beyond, repeat fewer patients more often (config.repeats).",
        ]
    half = 1 + best.r_d * math.log(2)
    most = 1 + best.r_d
    return [
        f"Up to {half:.1f} passes another pass is worth at least half of as many new patients; "
        f"beyond that, more patients beat more passes two to one.",
        f"However often they are repeated, U unique tokens are never worth more than {most:.1f} U fresh ones.",
        f"So where a budget asks for more than {most:.1f} times the tokens that there are, no number of passes gets "
        "there: spend the rest on more patients.",
    ]


def _at_bound(value: float) -> bool:
    return not _BOUNDS[0] + 1e-3 < math.log(value) < _BOUNDS[1] - 1e-3


def make(rows: Sequence[tuple[float, float, float, float]]) -> Repeated:
    """Runs from (N, D, unique tokens, loss) rows."""
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    return Repeated(*columns)
