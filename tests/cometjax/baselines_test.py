"""The count model sees the history and nothing later, counts right, and finds a signal that is there."""

import datetime

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from cometjax import baselines, boosted_trees, count_features
from cometjax.tasks import BEFORE_ALL_TIME_US, Events
from data_pipeline.code_maps import Concept

DAY_US = 86_400_000_000


def made_events(rows: list[tuple[int, int, int]], concepts: int = 4) -> Events:
    """Events from (subject, day or BEFORE_ALL_TIME_US, concept); the last concept is the birth."""
    roles = [""] * (concepts - 1) + ["birth"]
    named = tuple(Concept(f"C{i}", "OTHER", role, (f"C{i}",), 0) for i, role in enumerate(roles))
    rows = [(s, d if d == BEFORE_ALL_TIME_US else d * DAY_US, c) for s, d, c in rows]
    schema = {"subject_id": pl.Int64, "time_us": pl.Int64, "concept": pl.UInt32}
    frame = pl.DataFrame(rows, schema=schema, orient="row").sort("subject_id", "time_us")
    return Events(frame, named, 10**18)


def made_rows(rows: list[tuple[int, int, bool]]) -> pl.DataFrame:
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Int64, "boolean_value": pl.Boolean}
    frame = pl.DataFrame([(s, d * DAY_US, y) for s, d, y in rows], schema=schema, orient="row")
    return frame.cast({"prediction_time": pl.Datetime("us")})


def test_counts_equal_a_count_by_hand_whatever_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    raw = [(int(s), int(d), int(c)) for s, d, c in zip(*rng.integers(0, [6, 40, 4], (400, 3)).T, strict=True)]
    raw += [(2, BEFORE_ALL_TIME_US, 1), (3, BEFORE_ALL_TIME_US, 0)]
    asked = [(int(s), int(d), False) for s, d in rng.integers(0, [7, 45], (60, 2))]
    counts_NxC = count_features.count_history(made_events(raw), made_rows(asked)).toarray()
    for row, (subject, day, _) in enumerate(asked):
        for concept in range(4):
            expected = sum(s == subject and d <= day and c == concept for s, d, c in raw)
            assert counts_NxC[row, concept] == expected


def test_windows_hold_the_last_days_and_static_events_are_in_none() -> None:
    raw = [(1, BEFORE_ALL_TIME_US, 2), (1, 0, 0), (1, 370, 0), (1, 371, 1), (1, 400, 1), (1, 401, 1)]
    rows = made_rows([(1, 400, True), (1, 735, True)])
    month_NxC, year_NxC, ever_NxC = np.split(count_features.window_counts(made_events(raw), rows).toarray(), 3, axis=1)
    # (400 - 30, 400] leaves day 370 out; (735 - 365, 735] likewise.
    assert month_NxC.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]
    assert year_NxC.tolist() == [[1, 2, 0, 0], [0, 3, 0, 0]]
    assert ever_NxC.tolist() == [[2, 2, 1, 0], [2, 3, 1, 0]]


def test_later_events_change_nothing() -> None:
    past = [(1, 1, 0), (1, 5, 1), (2, 2, 1)]
    rows = made_rows([(1, 5, True), (2, 3, False)])
    later = [(1, 6, 0), (2, 4, 2), (3, 1, 0)]
    np.testing.assert_array_equal(
        count_features.window_counts(made_events(past), rows).toarray(),
        count_features.window_counts(made_events(past + later), rows).toarray(),
    )


def _world(seed: int, subjects: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, bool]]]:
    rng = np.random.default_rng(seed)
    events, rows = [], []
    for subject in range(seed * 10_000, seed * 10_000 + subjects):
        risky = rng.random() < 0.4
        events.append((subject, -int(rng.integers(8000, 30_000)), 4))
        events += [(subject, int(day), int(rng.integers(1, 4))) for day in rng.integers(0, 50, 10)]
        events += [(subject, 20, 0)] * int(risky * rng.integers(1, 4))
        rows.append((subject, 50, bool(rng.random() < (0.7 if risky else 0.1))))
    return events, rows


def test_it_learns_what_counts_tell_and_its_probabilities_are_calibrated() -> None:
    train_events, train_rows = _world(1, 400)
    test_events, test_rows = _world(2, 400)
    events = made_events(train_events + test_events, concepts=5)
    model = baselines.fit_count_model(events, made_rows(train_rows))
    predictions_N = model.predict(events, made_rows(test_rows))
    labels_N = np.array([label for *_, label in test_rows])
    assert predictions_N[labels_N].mean() > predictions_N[~labels_N].mean() + 0.2
    assert predictions_N.mean() == pytest.approx(labels_N.mean(), abs=0.08)
    assert model.training_rows == 400 and 0 < model.training_positives < 400


def _recency_world(seed: int, subjects: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, bool]]]:
    """Everyone has had the event as often; at risk are those who had it within the last month."""
    rng = np.random.default_rng(seed)
    events, rows = [], []
    for subject in range(seed * 10_000, seed * 10_000 + subjects):
        recent = rng.random() < 0.5
        events.append((subject, 480 if recent else int(rng.integers(0, 120)), 0))
        rows.append((subject, 500, bool(rng.random() < (0.9 if recent else 0.1))))
    return events, rows


@pytest.mark.parametrize("fit", [baselines.fit_count_model, boosted_trees.fit_boosted_trees])
@pytest.mark.parametrize("world", [_world, _recency_world])
def test_every_fitted_baseline_finds_what_counts_and_their_times_tell(fit, world) -> None:
    if fit is boosted_trees.fit_boosted_trees:
        pytest.importorskip("xgboost", reason="SKIPPED FOR LACK OF xgboost: pip install -e '.[baselines]'")
    train_events, train_rows = world(1, 300)
    test_events, test_rows = world(2, 300)
    events = made_events(train_events + test_events, concepts=5)
    predictions_N = fit(events, made_rows(train_rows)).predict(events, made_rows(test_rows))
    labels_N = np.array([label for *_, label in test_rows])
    best = {_world: 0.77, _recency_world: 0.9}[world]  # AUROC of the two risks that there are
    assert roc_auc_score(labels_N, predictions_N) > best - 0.08
    assert predictions_N.mean() == pytest.approx(labels_N.mean(), abs=0.08)
    again_N = fit(events, made_rows(train_rows)).predict(events, made_rows(test_rows))
    np.testing.assert_array_equal(predictions_N, again_N)


def test_without_both_classes_it_says_why() -> None:
    events, rows = _world(3, 20)
    never = [(subject, day, False) for subject, day, _ in rows]
    assert "0 positive of 20" in baselines.fit_count_model(made_events(events, 5), made_rows(never))


def test_a_few_positives_are_borne() -> None:
    events, rows = _world(4, 30)
    few = [(subject, day, index < 2) for index, (subject, day, _) in enumerate(rows)]
    model = baselines.fit_count_model(made_events(events, 5), made_rows(few))
    predictions_N = model.predict(made_events(events, 5), made_rows(few))
    assert np.isfinite(predictions_N).all() and predictions_N.max() < 0.9


def test_age_is_in_decades_and_zero_where_unknown() -> None:
    events = made_events([(1, -36_525, 3), (1, 0, 0), (2, 0, 0)])
    ages_N = count_features.age_decades(events, made_rows([(2, 0, True), (1, 0, True)]))
    assert ages_N.tolist() == pytest.approx([0.0, 10.0])
    assert datetime.timedelta(microseconds=count_features.MICROSECONDS_PER_DECADE).days == 3652
