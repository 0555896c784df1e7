"""The parametric loss surface L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, eq. 2), fitted in two ways.

`fit_huber`: least summed Huber loss of log-residuals (arXiv 2203.15556, section 3.3; arXiv 2404.10102: why the sum).
`fit_varpro`: variable projection (Golub and Pereyra 1973): for given exponents E, A and B are a non-negative linear
least-squares problem of three unknowns, solved exactly; only (alpha, beta) are searched. It needs no starting point,
and finds those of the other.
"""

import dataclasses
import itertools

import numpy as np
import scipy.optimize

from experiments.scaling.points import Points

DELTA = 1e-3  # of the Huber loss, in log-loss: arXiv 2203.15556, section 3.3
EXPONENTS = np.geomspace(0.02, 2.0, 48)  # where exponents are looked for first
_STARTS = 4
# The objective is a sum of about 1e-3; the search's tolerance is for functions near 1.
_SCALE = 1e6


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


def fit_huber(points: Points, *, delta: float = DELTA, near: Surface | None = None) -> Surface:
    """The surface of least summed Huber loss of log(predicted) - log(measured).

    Args:
        points: at least five runs.
        delta: residuals in log-loss up to this count squared, larger ones linearly.
        near: a fit of much the same runs: then the search starts there and from the best exponents of `fit_varpro`'s
            grid only, and not from each of the grid's local minima, as it does by default. No start is a guess.
    """
    problem = _LogProblem(points, delta)
    minima = _grid_minima(points)
    candidates = minima if near is None else [near, minima[0]]
    best = min((problem.minimise(start) for start in candidates), key=lambda result: result[0])
    return problem.surface(*best)


class _LogProblem:
    """Huber loss in theta = (a, b, e, log alpha, log beta): log L = logsumexp(a - alpha n, b - beta d, e).

    n and d are log N and log D about their means: else a and alpha (b and beta) are all but collinear.
    """

    def __init__(self, points: Points, delta: float) -> None:
        log_n_P, log_d_P = np.log(points.n_P), np.log(points.d_P)
        self._mean_n, self._mean_d = log_n_P.mean(), log_d_P.mean()
        self._n_P, self._d_P = log_n_P - self._mean_n, log_d_P - self._mean_d
        self._log_loss_P, self._weight_P, self._delta = np.log(points.loss_P), points.weight_P, delta

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, log_alpha, log_beta = theta
        alpha, beta = np.exp(log_alpha), np.exp(log_beta)
        terms_3xP = np.stack((a - alpha * self._n_P, b - beta * self._d_P, np.full_like(self._n_P, e)))
        highest_P = terms_3xP.max(axis=0)
        shares_3xP = np.exp(terms_3xP - highest_P)
        sums_P = shares_3xP.sum(axis=0)
        shares_3xP /= sums_P
        residual_P = highest_P + np.log(sums_P) - self._log_loss_P
        clipped_P = np.clip(residual_P, -self._delta, self._delta)
        # Huber(r) = c (r - c / 2) with c = r clipped to +-delta; its derivative is c.
        value = float(np.sum(self._weight_P * clipped_P * (residual_P - clipped_P / 2)))
        slopes_3xP = shares_3xP * (self._weight_P * clipped_P)
        to_alpha, to_beta = -alpha * np.sum(slopes_3xP[0] * self._n_P), -beta * np.sum(slopes_3xP[1] * self._d_P)
        return value * _SCALE, np.array([*slopes_3xP.sum(axis=1), to_alpha, to_beta]) * _SCALE

    def minimise(self, start: Surface) -> tuple[float, np.ndarray]:
        a = np.log(max(start.A, 1e-300)) - start.alpha * self._mean_n
        b = np.log(max(start.B, 1e-300)) - start.beta * self._mean_d
        # A term that the start lacks begins small, not at log 0, where its gradient is nothing.
        a, b, e = np.maximum((a, b, np.log(max(start.E, 1e-300))), -10.0)
        theta, value = np.array([a, b, e, np.log(start.alpha), np.log(start.beta)]), np.inf
        # Restarted where it stopped: a fresh curvature estimate frees the search from the kinks of a small delta.
        for _ in range(10):
            result = scipy.optimize.minimize(
                self.value_and_gradient, theta, jac=True, method="BFGS", options={"maxiter": 2000, "gtol": 1e-7}
            )
            theta = result.x
            if not result.fun < value * (1 - 1e-9):
                break
            value = float(result.fun)
        return float(result.fun) / _SCALE, theta

    def surface(self, objective: float, theta: np.ndarray) -> Surface:
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
