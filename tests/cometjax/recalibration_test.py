"""Slope and intercept equal an unpenalized logistic regression's, and are null where there is no finite fit."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cometjax import recalibration, scores


def _rows(seed: int, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true_N = rng.beta(1, 3, rows)
    return (rng.random(rows) < true_N).astype(float), true_N


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_slope_and_intercept_equal_scikit_learn_with_weights(seed: int) -> None:
    labels_N, predictions_N = _rows(seed)
    predictions_N = predictions_N**2
    weights_RxN = np.random.default_rng(seed).integers(0, 4, (3, len(labels_N))).astype(float)
    slope_R, intercept_R = recalibration.slope_and_intercept_weighted(labels_N, predictions_N, weights_RxN)
    logit_Nx1 = np.log(predictions_N / (1 - predictions_N))[:, None]
    for slope, intercept, weights_N in zip(slope_R, intercept_R, weights_RxN, strict=True):
        theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        theirs.fit(logit_Nx1, labels_N, sample_weight=weights_N)
        assert slope == pytest.approx(theirs.coef_[0, 0], rel=1e-5)
        assert intercept == pytest.approx(theirs.intercept_[0], rel=1e-5)


def test_of_true_risks_the_intervals_hold_one_and_zero_and_of_stretched_ones_they_do_not() -> None:
    labels_N, true_N = _rows(3, rows=2000)
    drawn = scores.resample_subjects(np.arange(len(labels_N)), 200, seed=0)
    right = recalibration.intervals(labels_N, true_N, drawn)
    assert right["slope"].low < 1 < right["slope"].high
    assert right["intercept"].low < 0 < right["intercept"].high
    odds_N = (true_N / (1 - true_N)) ** 2 * np.exp(1.0)
    wrong = recalibration.intervals(labels_N, odds_N / (1 + odds_N), drawn)
    # logit true = (logit stretched - 1) / 2
    assert wrong["slope"].low < 0.5 < wrong["slope"].high < 0.7
    assert wrong["intercept"].low < -0.5 < wrong["intercept"].high < -0.2


def test_risks_of_zero_and_one_count_as_half_as_far_as_the_nearest_other() -> None:
    rng = np.random.default_rng(4)
    risks_N = rng.integers(0, 17, 400) / 16
    labels_N = (rng.random(400) < 0.1 + 0.8 * risks_N).astype(float)
    ones_1xN = np.ones((1, 400))
    moved_N = np.clip(risks_N, 1 / 32, 31 / 32)
    assert recalibration.slope_weighted(labels_N, risks_N, ones_1xN) == pytest.approx(
        recalibration.slope_weighted(labels_N, moved_N, ones_1xN)
    )


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3]),
        ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.7]),
        ([0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0]),
    ],
    ids=["all alike", "separated", "no logit"],
)
def test_without_a_finite_fit_there_is_null_and_the_reason(labels: list[int], predictions: list[float]) -> None:
    labels_N, predictions_N = np.array(labels, float), np.array(predictions)
    drawn = scores.resample_subjects(np.arange(4), 20, seed=0)
    assert np.isnan(recalibration.slope_weighted(labels_N, predictions_N, np.ones((1, 4)))).all()
    for found in recalibration.intervals(labels_N, predictions_N, drawn).values():
        assert (found.value, found.low) == (None, None) and "alike" in found.reason


def test_a_missing_class_is_the_reason_that_is_given() -> None:
    drawn = scores.resample_subjects(np.arange(3), 20, seed=0)
    found = recalibration.intervals(np.zeros(3), np.array([0.1, 0.2, 0.3]), drawn)
    assert found["slope"].value is None and found["slope"].reason == "no positive rows"
