"""The parametric loss surface L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, eq. 2), fitted in two ways.

`fit_huber`: least summed Huber loss of log-residuals (arXiv 2203.15556, section 3.3; arXiv 2404.10102: why the sum).
`fit_varpro`: variable projection (Golub and Pereyra 1973): for given exponents E, A and B are a non-negative linear
least-squares problem of three unknowns, solved exactly; only (alpha, beta) are searched. It needs no starting point,
and finds those of the other.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.optimize

from experiments.scaling import quasi_newton
from experiments.scaling.points import Points

DELTA = 1e-3  # of the Huber loss, in log-loss: arXiv 2203.15556, section 3.3
EXPONENTS = np.geomspace(0.02, 2.0, 48)  # where exponents are looked for first
_STARTS = 4


@dataclasses.dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token; `objective` is what its fit minimised."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    objective: float

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Predicted loss at N parameters and D tokens."""
        return np.asarray(self.E + self.A * np.asarray(n) ** -self.alpha + self.B * np.asarray(d) ** -self.beta)

    @property
    def n_exponent(self) -> float:
        """The a of N* proportional to C^a (arXiv 2203.15556, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N*, D*): what minimises the loss at compute C = 6 N D (arXiv 2203.15556, eq. 4)."""
        product = np.asarray(c, np.float64) / 6.0
        ratio = (self.alpha * self.A) / (self.beta * self.B)
        n = ratio ** (1 / (self.alpha + self.beta)) * product**self.n_exponent
        return n, product / n


def fit_huber(points: Points, *, delta: float = DELTA) -> Surface:
    """The surface of least summed Huber loss of log(predicted) - log(measured).

    Searched for from each local minimum of `fit_varpro`'s grid of exponents: no start is a guess.

    Args:
        points: at least five runs.
        delta: residuals in log-loss up to this count squared, larger ones linearly.
    """
    starts = _grid_minima(points)
    (fitted,) = _fit_from(points, points.weight_P[None], np.zeros(len(starts), int), starts, delta)
    return fitted


def refit_huber(points: Points, weight_BxP: np.ndarray, near: Surface, *, delta: float = DELTA) -> list[Surface]:
    """The surface of least summed Huber loss under each row of weights (0 leaves a run out), all searched for at once.

    Args:
        points: the runs; their own weights are not used.
        weight_BxP: of B fits.
        near: the fit of much the same runs; each search starts there, and from the best exponents of its own grid.
        delta: as of `fit_huber`.
    """
    starts = [start for weight_P in weight_BxP for start in (near, _grid_minima(points.weighted(weight_P))[0])]
    return _fit_from(points, weight_BxP, np.repeat(np.arange(len(weight_BxP)), 2), starts, delta)


def _fit_from(
    points: Points, weight_BxP: np.ndarray, fit_S: np.ndarray, starts: Sequence[Surface], delta: float
) -> list[Surface]:
    """The best of each fit's searches; search s starts at `starts[s]` and belongs to fit `fit_S[s]`."""
    problems = _LogProblems(points, weight_BxP[fit_S], delta)
    theta_SxK, objective_S = quasi_newton.minimise(problems, np.array([problems.theta(start) for start in starts]))
    best = [min(np.flatnonzero(fit_S == b), key=lambda s: objective_S[s]) for b in range(len(weight_BxP))]
    return [problems.surface(theta_SxK[s], float(objective_S[s])) for s in best]


class _LogProblems:
    """Huber loss in theta = (a, b, e, log alpha, log beta): log L = logsumexp(a - alpha n, b - beta d, e).

    n and d are log N and log D about their means: else a and alpha (b and beta) are all but collinear. One problem for
    each row of weights.
    """

    def __init__(self, points: Points, weight_SxP: np.ndarray, delta: float) -> None:
        log_n_P, log_d_P = np.log(points.n_P), np.log(points.d_P)
        self._mean_n, self._mean_d = log_n_P.mean(), log_d_P.mean()
        self._n_P, self._d_P = log_n_P - self._mean_n, log_d_P - self._mean_d
        self._log_loss_P, self._weight_SxP, self._delta = np.log(points.loss_P), weight_SxP, delta

    def value_and_gradient(self, x_RxK: np.ndarray, which_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `quasi_newton.Problems`."""
        residual_RxP, slopes_RxKxP = self._residuals(x_RxK)
        clipped_RxP = np.clip(residual_RxP, -self._delta, self._delta)
        # Huber(r) = c (r - c / 2) with c = r clipped to +-delta; its derivative is c.
        weighted_RxP = self._weight_SxP[which_R] * clipped_RxP
        value_R = np.sum(weighted_RxP * (residual_RxP - clipped_RxP / 2), axis=1)
        return value_R, np.sum(slopes_RxKxP * weighted_RxP[:, None], axis=2)

    def curvature(self, x_RxK: np.ndarray, which_R: np.ndarray) -> np.ndarray:
        """Of the parabolas that touch each run's Huber loss from above (iteratively reweighted least squares)."""
        residual_RxP, slopes_RxKxP = self._residuals(x_RxK)
        weight_RxP = self._weight_SxP[which_R] * self._delta / np.maximum(np.abs(residual_RxP), self._delta)
        curvature_RxKxK = np.einsum("rp,rkp,rlp->rkl", weight_RxP, slopes_RxKxP, slopes_RxKxP)
        # A term that is all but absent has none of its own.
        largest_R = np.einsum("rkk->rk", curvature_RxKxK).max(axis=1)
        return curvature_RxKxK + 1e-6 * largest_R[:, None, None] * np.eye(x_RxK.shape[1])

    def _residuals(self, x_RxK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log predicted - log measured [R, P], its derivatives [R, K, P])."""
        a, b, e = (x_RxK[:, k, None] for k in range(3))
        alpha, beta = (np.exp(x_RxK[:, k, None]) for k in (3, 4))
        by_n, by_d = a - alpha * self._n_P, b - beta * self._d_P
        highest = np.maximum(np.maximum(by_n, by_d), e)
        shares = np.stack([np.exp(term - highest) for term in (by_n, by_d, e)], axis=1)
        sums = shares.sum(axis=1)
        shares /= sums[:, None]
        to_alpha, to_beta = -alpha * self._n_P * shares[:, 0], -beta * self._d_P * shares[:, 1]
        slopes = np.concatenate((shares, to_alpha[:, None], to_beta[:, None]), axis=1)
        return highest + np.log(sums) - self._log_loss_P, slopes

    def theta(self, start: Surface) -> np.ndarray:
        """A surface as a starting point."""
        a = np.log(max(start.A, 1e-300)) - start.alpha * self._mean_n
        b = np.log(max(start.B, 1e-300)) - start.beta * self._mean_d
        # A term that the start lacks begins small, not at log 0, where its gradient is nothing.
        a, b, e = np.maximum((a, b, np.log(max(start.E, 1e-300))), -10.0)
        return np.array([a, b, e, np.log(start.alpha), np.log(start.beta)])

    def surface(self, theta: np.ndarray, objective: float) -> Surface:
        """Inverse of `theta`."""
        a, b, e = (float(value) for value in theta[:3])
        alpha, beta = (float(np.exp(value)) for value in theta[3:])
        return Surface(
            A=float(np.exp(a + alpha * self._mean_n)),
            B=float(np.exp(b + beta * self._mean_d)),
            E=float(np.exp(e)),
            alpha=alpha,
            beta=beta,
            objective=objective,
        )


def fit_varpro(points: Points) -> Surface:
    """The surface of least squared relative residuals, (predicted - measured) / measured."""
    best = _grid_minima(points)[0]
    result = scipy.optimize.minimize(
        lambda logs: _project(points, np.exp(logs[:1]), np.exp(logs[1:]))[0][0, 0],
        np.log([best.alpha, best.beta]),
        method="Nelder-Mead",
        # What is minimised is the weights' sum minus what is explained: nothing below its rounding is worth a search.
        options={"xatol": 1e-7, "fatol": 1e-14, "maxiter": 4000},
    )
    alpha, beta = (float(value) for value in np.exp(result.x))
    return _surface_at(points, alpha, beta)


def _surface_at(points: Points, alpha: float, beta: float) -> Surface:
    objective, coefficients = _project(points, np.array([alpha]), np.array([beta]))
    E, A, B = (float(value) for value in coefficients[0, 0])
    return Surface(A, B, E, alpha, beta, float(objective[0, 0]))


def _grid_minima(points: Points) -> list[Surface]:
    """The surfaces of the grid's local minima over (alpha, beta), best first, at most _STARTS of them."""
    objective_IxJ, _ = _project(points, EXPONENTS, EXPONENTS)
    padded = np.pad(objective_IxJ, 1, constant_values=np.inf)
    lowest = np.ones_like(objective_IxJ, bool)
    for i, j in itertools.product((-1, 0, 1), repeat=2):
        if i or j:
            shifted = padded[1 + i : len(padded) - 1 + i, 1 + j : len(padded) - 1 + j]
            lowest &= objective_IxJ <= shifted
    found = sorted(zip(*np.nonzero(lowest), strict=True), key=lambda index: objective_IxJ[index])
    return [_surface_at(points, float(EXPONENTS[i]), float(EXPONENTS[j])) for i, j in found[:_STARTS]]


def _project(points: Points, alpha_I: np.ndarray, beta_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best non-negative (E, A, B) for every pair of exponents: (sums of squares [I, J], coefficients [I, J, 3]).

    Three unknowns have seven supports; the normal equations of each are solved, and the best one whose solution is
    non-negative is the non-negative least-squares solution. Columns are scaled to unit length, so that the equations
    are well conditioned wherever the columns are not collinear.
    """
    root_P = np.sqrt(points.weight_P)
    by_n_IxP = points.n_P ** -alpha_I[:, None] / points.loss_P * root_P
    by_d_JxP = points.d_P ** -beta_J[:, None] / points.loss_P * root_P
    constant_P = root_P / points.loss_P
    lengths = [np.linalg.norm(column, axis=-1, keepdims=True) for column in (by_n_IxP, by_d_JxP, constant_P)]
    by_n_IxP, by_d_JxP, constant_P = by_n_IxP / lengths[0], by_d_JxP / lengths[1], constant_P / lengths[2]
    shape = (len(alpha_I), len(beta_J))
    # Normal equations in the order (E, A, B), each entry [I, J].
    gram = np.empty((*shape, 3, 3))
    gram[..., 0, 0] = gram[..., 1, 1] = gram[..., 2, 2] = 1.0
    gram[..., 0, 1] = gram[..., 1, 0] = (by_n_IxP @ constant_P)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (by_d_JxP @ constant_P)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = by_n_IxP @ by_d_JxP.T
    right = np.empty((*shape, 3))
    right[..., 0], right[..., 1], right[..., 2] = (
        constant_P @ root_P, (by_n_IxP @ root_P)[:, None], (by_d_JxP @ root_P)[None, :]
    )  # fmt: skip
    best, coefficients = np.full(shape, np.sum(points.weight_P)), np.zeros((*shape, 3))
    for size in (1, 2, 3):
        for support in itertools.combinations(range(3), size):
            rows = np.array(support)
            # A ridge of rounding size: collinear columns (equal exponents on an isoFLOP line) stay solvable.
            inner = gram[..., rows[:, None], rows] + 1e-14 * np.eye(size)
            solved = np.linalg.solve(inner, right[..., rows, None])[..., 0]
            explained = np.einsum("ijk,ijk->ij", solved, right[..., rows])
            better = (solved >= 0).all(axis=-1) & (np.sum(points.weight_P) - explained < best)
            best = np.where(better, np.sum(points.weight_P) - explained, best)
            full = np.zeros((*shape, 3))
            full[..., rows] = solved
            coefficients = np.where(better[..., None], full, coefficients)
    scales = np.empty((*shape, 3))
    scales[..., 0], scales[..., 1], scales[..., 2] = lengths[2], lengths[0], lengths[1].T
    return np.maximum(best, 0.0), coefficients / scales
