"""Many small smooth minimisations at once, as array operations: a bootstrap's refits differ in their weights only.

BFGS with the bracketing line search of Lewis and Overton 2013 (Nonsmooth optimization via quasi-Newton methods,
Math. Program. 141), which asks for the weak Wolfe conditions and copes with the kinks that a Huber loss of small delta
nearly has. Each problem's path depends on no other.

    R problems   K unknowns
"""

from typing import Protocol

import numpy as np

_DESCENTS, _STEPS, _TRIALS = 10, 300, 40
_SUFFICIENT, _FLAT = 1e-4, 0.9  # of the Wolfe conditions


class Problems(Protocol):
    """What is minimised. `which_R` numbers the problems that the rows of x belong to."""

    def value_and_gradient(self, x_RxK: np.ndarray, which_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [R] and gradients [R, K]."""

    def curvature(self, x_RxK: np.ndarray, which_R: np.ndarray) -> np.ndarray:
        """Positive definite guesses [R, K, K] of the Hessians, to begin with."""


def minimise(problems: Problems, start_RxK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where, value) of a local minimum of each problem, searched for from its row of `start_RxK`."""
    x_RxK, value_R = start_RxK.copy(), np.full(len(start_RxK), np.inf)
    active_R = np.arange(len(start_RxK))
    # Begun anew where it stopped: a fresh guess of the curvature frees the search from a kink.
    for _ in range(_DESCENTS):
        x, value = _descend(problems, x_RxK[active_R], active_R)
        better = value < value_R[active_R] * (1 - 1e-9)
        x_RxK[active_R], value_R[active_R] = x, value
        active_R = active_R[better]
        if not len(active_R):
            break
    return x_RxK, value_R


def _descend(problems: Problems, x_RxK: np.ndarray, which_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One run of BFGS for each row, until a step promises nothing or cannot be found."""
    x_RxK = x_RxK.copy()
    value_R, gradient_RxK = problems.value_and_gradient(x_RxK, which_R)
    inverse_RxKxK = np.linalg.inv(problems.curvature(x_RxK, which_R))
    going = np.arange(len(x_RxK))
    for _ in range(_STEPS):
        direction = -_times(inverse_RxKxK[going], gradient_RxK[going])
        slope = np.sum(direction * gradient_RxK[going], axis=1)
        promising = -slope > 1e-13 * value_R[going]
        going, direction, slope = going[promising], direction[promising], slope[promising]
        if not len(going):
            break
        found, step, value, gradient = _search(problems, x_RxK[going], direction, value_R[going], slope, which_R[going])
        going, step, value, gradient = going[found], step[found, None] * direction[found], value[found], gradient[found]
        inverse_RxKxK[going] = _update(inverse_RxKxK[going], step, gradient - gradient_RxK[going])
        x_RxK[going] += step
        value_R[going], gradient_RxK[going] = value, gradient
    return x_RxK, value_R


def _search(
    problems: Problems, x_RxK: np.ndarray, direction_RxK: np.ndarray, value_R: np.ndarray, slope_R: np.ndarray,
    which_R: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(whether found, step length, value, gradient) of a point that meets the weak Wolfe conditions, by bisection."""
    count = len(x_RxK)
    low, high, step = np.zeros(count), np.full(count, np.inf), np.ones(count)
    found, values, gradients = np.zeros(count, bool), np.empty(count), np.empty_like(x_RxK)
    for _ in range(_TRIALS):
        left = np.flatnonzero(~found)
        if not len(left):
            break
        tried = x_RxK[left] + step[left, None] * direction_RxK[left]
        value, gradient = problems.value_and_gradient(tried, which_R[left])
        values[left], gradients[left] = value, gradient
        # Written so that a value that is not finite counts as too high.
        falls = value <= value_R[left] + _SUFFICIENT * step[left] * slope_R[left]
        flat = np.sum(gradient * direction_RxK[left], axis=1) >= _FLAT * slope_R[left]
        found[left] = falls & flat
        high[left] = np.where(falls, high[left], step[left])
        low[left] = np.where(falls & ~flat, step[left], low[left])
        bounded = np.isfinite(high[left])
        middle = (low[left] + np.where(bounded, high[left], 0.0)) / 2
        step[left] = np.where(found[left], step[left], np.where(bounded, middle, 2 * step[left]))
    return found, step, values, gradients


def _update(inverse_RxKxK: np.ndarray, step_RxK: np.ndarray, change_RxK: np.ndarray) -> np.ndarray:
    """The BFGS update of inverse Hessians (Nocedal and Wright 2006, eq. 6.17); Wolfe keeps them positive."""
    along_R = np.sum(step_RxK * change_RxK, axis=1)
    usable_R = along_R > 1e-300
    along_R = np.where(usable_R, along_R, 1.0)
    moved_RxK = _times(inverse_RxKxK, change_RxK)
    squared_R = (along_R + np.sum(change_RxK * moved_RxK, axis=1)) / along_R**2
    cross_RxKxK = moved_RxK[:, :, None] * step_RxK[:, None, :]
    updated = (
        inverse_RxKxK
        + squared_R[:, None, None] * step_RxK[:, :, None] * step_RxK[:, None, :]
        - (cross_RxKxK + cross_RxKxK.transpose(0, 2, 1)) / along_R[:, None, None]
    )
    return np.where(usable_R[:, None, None], updated, inverse_RxKxK)


def _times(matrix_RxKxK: np.ndarray, vector_RxK: np.ndarray) -> np.ndarray:
    # Not by einsum or BLAS: they may sum in another order when there are other rows.
    return np.sum(matrix_RxKxK * vector_RxK[:, None, :], axis=2)
