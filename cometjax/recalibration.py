"""Logistic recalibration: how far predicted risks must be stretched and shifted to be right.

logit P(label) = intercept + slope · logit(prediction), fitted to the rows (Cox 1958, "Two further applications of a
model for binary regression"). 1 and 0 are right; a slope below 1 says that predictions are too extreme, as they are
where noise is part of them: with few samples a Monte-Carlo risk has a slope below 1 even if the model is the truth.

N rows   R resamples   P parameters (intercept, slope)
"""

from collections.abc import Callable

import numpy as np

from cometjax import scores

_STEPS = 60
_TOLERANCE = 1e-9
# Standardized slopes beyond belong to rows that a threshold separates: there is no finite fit.
_MOST = 30.0


def slope_and_intercept_weighted(
    labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(slope, intercept) under each row of weights, float64 [R] each; NaN where there is no finite fit.

    That is so where a class has no weight, where predictions are all alike, or where a threshold separates the classes.
    A prediction of 0 or 1, whose logit is infinite, counts as half as far from there as the nearest other prediction.
    """
    slope_R, intercept_R = np.full((2, len(weights_RxN)), np.nan)
    logit_N = _logits(predictions_N)
    if logit_N is None or logit_N.std() == 0:
        return slope_R, intercept_R
    centre, spread = logit_N.mean(), logit_N.std()
    beta_RxP, fitted_R = _fit(labels_N, (logit_N - centre) / spread, weights_RxN)
    slope_R[fitted_R] = beta_RxP[fitted_R, 1] / spread
    intercept_R[fitted_R] = beta_RxP[fitted_R, 0] - slope_R[fitted_R] * centre
    return slope_R, intercept_R


def slope_weighted(labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Calibration slope under each row of weights, float64 [R], as `slope_and_intercept_weighted`."""
    return slope_and_intercept_weighted(labels_N, predictions_N, weights_RxN)[0]


def intercept_weighted(labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Calibration intercept under each row of weights, float64 [R], as `slope_and_intercept_weighted`."""
    return slope_and_intercept_weighted(labels_N, predictions_N, weights_RxN)[1]


def intervals(labels_N: np.ndarray, predictions_N: np.ndarray, drawn: scores.Resamples) -> dict[str, scores.Interval]:
    """By "slope" and "intercept" the value and its bootstrap interval; None and the reason where there is none."""
    return {
        name: _interval(score, labels_N, predictions_N, drawn)
        for name, score in (("slope", slope_weighted), ("intercept", intercept_weighted))
    }


def _interval(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    labels_N: np.ndarray,
    predictions_N: np.ndarray,
    drawn: scores.Resamples,
) -> scores.Interval:
    if not scores.undefined(labels_N) and np.isnan(score(labels_N, predictions_N, np.ones((1, len(labels_N))))[0]):
        reason = "predictions are all alike, or separate the classes"
        return scores.Interval(None, None, None, reason)
    return scores.interval(score, labels_N, predictions_N, drawn)


def _logits(predictions_N: np.ndarray) -> np.ndarray | None:
    inside_N = (predictions_N > 0) & (predictions_N < 1)
    if not inside_N.any():
        return None
    least, most = predictions_N[inside_N].min() / 2, 1 - (1 - predictions_N[inside_N].max()) / 2
    clipped_N = np.clip(predictions_N, least, most)
    return np.log(clipped_N) - np.log1p(-clipped_N)


def _fit(labels_N: np.ndarray, x_N: np.ndarray, weights_RxN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(parameters [R, P], which fits ended): Newton's method, all resamples at once, steps bounded."""
    total_R = weights_RxN.sum(axis=1)
    rate_R = (weights_RxN @ labels_N) / total_R
    ok_R = (rate_R > 0) & (rate_R < 1)
    safe_R = np.where(ok_R, rate_R, 0.5)
    beta_RxP = np.stack([np.log(safe_R / (1 - safe_R)), np.zeros(len(safe_R))], axis=1)
    step_R = np.full(len(beta_RxP), np.inf)
    active_R = ok_R.copy()
    for _ in range(_STEPS):
        rows = np.flatnonzero(active_R)
        if not len(rows):
            break
        weights_rxN = weights_RxN[rows]
        p_rxN = 1 / (1 + np.exp(-(beta_RxP[rows, :1] + beta_RxP[rows, 1:] * x_N)))
        residual_rxN = weights_rxN * (labels_N - p_rxN)
        curvature_rxN = weights_rxN * p_rxN * (1 - p_rxN)
        g0_r, g1_r = residual_rxN.sum(1), residual_rxN @ x_N
        h00_r, h01_r, h11_r = curvature_rxN.sum(1), curvature_rxN @ x_N, curvature_rxN @ (x_N * x_N)
        determinant_r = h00_r * h11_r - h01_r**2
        solvable_r = determinant_r > 1e-14 * np.maximum(h00_r * h11_r, 1e-300)
        safe_r = np.where(solvable_r, determinant_r, 1.0)
        step_rxP = np.stack([h11_r * g0_r - h01_r * g1_r, h00_r * g1_r - h01_r * g0_r], axis=1) / safe_r[:, None]
        longest_r = np.abs(step_rxP).max(axis=1)
        beta_RxP[rows] += step_rxP * np.minimum(1.0, 2.0 / np.maximum(longest_r, 1e-300))[:, None]
        step_R[rows] = longest_r
        gone_r = ~solvable_r | (np.abs(beta_RxP[rows]).max(axis=1) > _MOST)
        ok_R[rows[gone_r]] = False
        active_R[rows] = ~gone_r & (longest_r > _TOLERANCE)
    return beta_RxP, ok_R & (step_R <= _TOLERANCE)
