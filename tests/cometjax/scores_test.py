"""Scores equal scikit-learn's, and the intervals mean what they say."""

import datetime

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn import metrics

from cometjax import scores


def _rows(seed: int, rows: int = 200, levels: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    predictions_N = rng.integers(0, levels, rows) / (levels - 1)
    return (rng.random(rows) < 0.15 + 0.6 * predictions_N).astype(float), predictions_N


@pytest.mark.parametrize("levels", [2, 9, 100_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_equal_scikit_learn_with_ties_and_weights(seed: int, levels: int) -> None:
    labels_N, predictions_N = _rows(seed, levels=levels)
    weights_RxN = np.random.default_rng(seed).integers(0, 4, (3, len(labels_N))).astype(float)
    for ours, theirs in (
        (scores.auroc_weighted, metrics.roc_auc_score),
        (scores.auprc_weighted, metrics.average_precision_score),
        (scores.brier_weighted, metrics.brier_score_loss),
    ):
        expected_R = [theirs(labels_N, predictions_N, sample_weight=weights) for weights in weights_RxN]
        np.testing.assert_allclose(ours(labels_N, predictions_N, weights_RxN), expected_R, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_of_amounts_equal_scikit_learn_and_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets_N, predictions_N = rng.poisson(3.0, 120).astype(float), np.round(rng.gamma(3.0, 1.0, 120), 1)
    weights_RxN = rng.integers(0, 4, (3, 120)).astype(float)
    for ours, theirs in (
        (scores.mae_weighted, metrics.mean_absolute_error),
        (scores.rmsle_weighted, metrics.root_mean_squared_log_error),
    ):
        expected_R = [theirs(targets_N, predictions_N, sample_weight=weights) for weights in weights_RxN]
        np.testing.assert_allclose(ours(targets_N, predictions_N, weights_RxN), expected_R, rtol=1e-12)
    expected_R = []
    for weights_N in weights_RxN.astype(int):
        # Somers' D leaves pairs with equal targets out, and counts equal predictions as 0: C = (D + 1) / 2.
        expected_R.append(stats.somersd(np.repeat(targets_N, weights_N), np.repeat(predictions_N, weights_N)).statistic)
    found_R = scores.concordance_weighted(targets_N, predictions_N, weights_RxN)
    np.testing.assert_allclose(found_R, (np.array(expected_R) + 1) / 2, rtol=1e-12)


def test_concordance_with_classes_is_the_auroc_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_N, predictions_N = _rows(5)
    weights_RxN = np.random.default_rng(5).integers(0, 3, (4, len(labels_N))).astype(float)
    expected_R = scores.auroc_weighted(labels_N, predictions_N, weights_RxN)
    monkeypatch.setattr(scores, "_BLOCK_ELEMENTS", 7 * len(labels_N))
    np.testing.assert_allclose(scores.concordance_weighted(labels_N, predictions_N, weights_RxN), expected_R)
    assert np.isnan(scores.concordance_weighted(np.ones(5), np.arange(5.0), np.ones((1, 5)))).all()


def test_a_negative_amount_has_no_rmsle() -> None:
    with pytest.raises(ValueError, match="0 and more"):
        scores.rmsle_weighted(np.array([1.0]), np.array([-0.5]), np.ones((1, 1)))


def test_scores_equal_meds_evaluation() -> None:
    evaluation = pytest.importorskip(
        "meds_evaluation.evaluate", reason="SKIPPED FOR LACK OF A PACKAGE: pip install 'cometjax[evaluation]'"
    )
    labels_N, predictions_N = _rows(7)
    predictions = pl.DataFrame(
        {"subject_id": np.arange(len(labels_N)), "boolean_value": labels_N.astype(bool)}
    ).with_columns(
        prediction_time=pl.lit(datetime.datetime(2020, 1, 1)),
        predicted_boolean_value=pl.lit(None, pl.Boolean),
        predicted_boolean_probability=pl.Series(predictions_N),
    )
    theirs = evaluation.evaluate_binary_classification(predictions)["samples_equally_weighted"]
    for ours, name in (
        (scores.auroc_weighted, "roc_auc_score"),
        (scores.auprc_weighted, "average_precision_score"),
        (scores.brier_weighted, "brier_score"),
    ):
        found = ours(labels_N, predictions_N, np.ones((1, len(labels_N))))[0]
        assert found == pytest.approx(theirs[name], rel=1e-6)


def test_roc_corners_enclose_the_auroc() -> None:
    labels_N, predictions_N = _rows(3)
    curve = scores.roc_curve(labels_N, predictions_N)
    area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
    assert area == pytest.approx(metrics.roc_auc_score(labels_N, predictions_N))


def test_rows_of_one_subject_are_drawn_together() -> None:
    subjects_N = np.array([7, 7, 3, 3, 3, 9])
    weights_RxN = scores.resample_subjects(subjects_N, 500, seed=0).weights_RxN
    for subject in (3, 7, 9):
        members = weights_RxN[:, subjects_N == subject]
        assert (members == members[:, :1]).all()
    subject_draws_R = weights_RxN[:, 0] + weights_RxN[:, 2] + weights_RxN[:, 5]
    assert (subject_draws_R == 3).all()
    assert weights_RxN.mean() == pytest.approx(1.0, abs=0.1)


def test_interval_contains_the_point_and_repeats_with_the_seed() -> None:
    labels_N, predictions_N = _rows(4)
    drawn = scores.resample_subjects(np.arange(len(labels_N)), 400, seed=5)
    interval = scores.interval(scores.auroc_weighted, labels_N, predictions_N, drawn)
    assert interval.low < interval.value < interval.high
    again = scores.resample_subjects(np.arange(len(labels_N)), 400, seed=5)
    assert scores.interval(scores.auroc_weighted, labels_N, predictions_N, again) == interval


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_N, predictions_N = _rows(4)
    drawn = scores.resample_subjects(np.arange(len(labels_N)), 50, seed=5)
    whole = scores.bootstrap(scores.auroc_weighted, labels_N, predictions_N, drawn.weights_RxN)
    monkeypatch.setattr(scores, "_BLOCK_ELEMENTS", 7 * len(labels_N))
    np.testing.assert_array_equal(
        scores.bootstrap(scores.auroc_weighted, labels_N, predictions_N, drawn.weights_RxN), whole
    )


def test_about_95_percent_of_intervals_cover_the_truth() -> None:
    # Scores N(0, 1) against N(1, 1): the true AUROC is Phi(1 / sqrt 2).
    truth, covered = 0.760250, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels_N = (np.arange(150) % 3 == 0).astype(float)
        predictions_N = rng.normal(labels_N, 1.0)
        drawn = scores.resample_subjects(np.arange(150), 200, seed)
        interval = scores.interval(scores.auroc_weighted, labels_N, predictions_N, drawn)
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_clustered_rows_widen_the_interval() -> None:
    labels_N, predictions_N = _rows(6, rows=60)
    labels_N, predictions_N = np.repeat(labels_N, 5), np.repeat(predictions_N, 5)
    widths = []
    for subjects_N in (np.arange(300), np.repeat(np.arange(60), 5)):
        drawn = scores.resample_subjects(subjects_N, 400, seed=0)
        interval = scores.interval(scores.auroc_weighted, labels_N, predictions_N, drawn)
        widths.append(interval.high - interval.low)
    assert widths[1] > 1.7 * widths[0]


@pytest.mark.parametrize(
    ("labels", "reason"), [([0, 0, 0], "no positive rows"), ([1, 1], "no negative rows"), ([], "no rows")]
)
def test_a_missing_class_gives_null_and_the_reason(labels: list[int], reason: str) -> None:
    labels_N = np.array(labels, float)
    drawn = scores.resample_subjects(np.arange(len(labels)), 10, seed=0)
    interval = scores.interval(scores.auroc_weighted, labels_N, labels_N, drawn)
    assert (interval.value, interval.low, interval.high, interval.reason) == (None, None, None, reason)
    assert scores.difference(scores.auroc_weighted, labels_N, labels_N, labels_N, drawn).reason == reason
    assert scores.roc_curve(labels_N, labels_N)["true_positive_rate"] == []


def test_one_positive_subject_gives_a_value_without_an_interval() -> None:
    labels_N = np.array([1.0, 1.0] + [0.0] * 9)
    drawn = scores.resample_subjects(np.array([1, 1, *range(2, 11)]), 200, seed=0)
    interval = scores.interval(scores.auroc_weighted, labels_N, np.linspace(1, 0, 11), drawn)
    assert interval.value == 1.0 and interval.low is None and "positive" in interval.reason
    of_two = scores.resample_subjects(np.arange(11), 200, seed=0)
    assert scores.interval(scores.auroc_weighted, labels_N, np.linspace(1, 0, 11), of_two).low == 1.0


def test_differences_are_paired() -> None:
    labels_N, predictions_N = _rows(8)
    drawn = scores.resample_subjects(np.arange(len(labels_N)), 200, seed=1)
    same = scores.difference(scores.auroc_weighted, labels_N, predictions_N, predictions_N**3, drawn)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_calibration_bins_hold_every_row_once_and_never_split_a_tie() -> None:
    labels_N, predictions_N = _rows(9, rows=1000, levels=5)
    table, error = scores.calibration(labels_N, predictions_N, np.arange(len(labels_N)))
    assert sum(row["rows"] for row in table) == 1000
    assert [row["predicted"] for row in table] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for row in table:
        assert row["observed"] == pytest.approx(labels_N[predictions_N == row["predicted"]].mean())
        assert row["low"] <= row["observed"] <= row["high"]
    expected = sum(abs(row["observed"] - row["predicted"]) * row["rows"] for row in table) / 1000
    assert error == pytest.approx(expected) and error > 0.02


def test_calibration_bins_of_few_rows_are_few() -> None:
    labels_N, predictions_N = np.arange(59) % 2.0, np.linspace(0, 1, 59)
    assert [row["rows"] for row in scores.calibration(labels_N, predictions_N, np.arange(len(labels_N)))[0]] == [30, 29]
    assert len(scores.calibration(labels_N, predictions_N, np.arange(59), min_rows=5)[0]) == 10
    assert [row["rows"] for row in scores.calibration(labels_N[:9], predictions_N[:9], np.arange(9))[0]] == [9]


def test_calibration_intervals_cover_the_rate_where_subjects_have_several_rows_that_are_alike() -> None:
    """As if rows were independent, seven in ten would."""
    rng = np.random.default_rng(3)
    subject_N = np.repeat(np.arange(60), 10)
    covered, repeats = 0, 400
    for _ in range(repeats):
        risk_S = rng.beta(0.6, 1.4, 60)
        labels_N = (rng.random(600) < risk_S[subject_N]).astype(float)
        ((row,), _) = scores.calibration(labels_N, np.full(600, 0.3), subject_N)
        covered += row["low"] <= 0.3 <= row["high"]
    assert 0.91 < covered / repeats < 0.98
    # A row of each subject: as Wilson has it. All alike: no surer than so many subjects are.
    one_each = [
        scores.calibration(labels_N, labels_N * 0 + 0.3, np.arange(600))[0][0][side] for side in ("low", "high")
    ]
    np.testing.assert_allclose(one_each, scores._wilson(labels_N.mean(), 600), atol=1e-3)
    ((row,), _) = scores.calibration(np.zeros(600), np.zeros(600), subject_N)
    assert row["high"] == pytest.approx(scores._wilson(0.0, 60)[1])


def test_calibration_error_of_true_probabilities_is_small_and_of_shifted_ones_is_the_shift() -> None:
    rng = np.random.default_rng(0)
    true_N = rng.uniform(0.1, 0.7, 20_000)
    labels_N = (rng.random(20_000) < true_N).astype(float)
    assert scores.calibration(labels_N, true_N, np.arange(20_000))[1] < 0.015
    assert scores.calibration(labels_N, true_N + 0.2, np.arange(20_000))[1] == pytest.approx(0.2, abs=0.015)
