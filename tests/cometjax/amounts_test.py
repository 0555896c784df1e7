"""Counts and durations: means and standard errors of the samples, and what is made of those cut short."""

import numpy as np
import polars as pl
import pytest

from cometjax import amounts, estimators
from cometjax.tasks import Task

DAY = 86_400_000_000
NEVER = np.iinfo(np.int64).max
VISITS = Task(name="visits", index="X", horizon_days=30, outcome="VISIT", kind="count")
STAY = Task(name="stay", index="X", horizon_days=30, outcome="END", kind="duration")


def test_where_nothing_is_cut_the_mean_count_is_the_samples_and_so_is_its_error() -> None:
    rng = np.random.default_rng(0)
    times = [np.sort(rng.integers(0, 1000, rng.poisson(3))) for _ in range(40)]
    mean, error, completed_S = amounts.mean_count(times, np.full(40, NEVER))
    counts = np.array([len(own) for own in times])
    assert mean == pytest.approx(counts.mean()) and error == pytest.approx(counts.std() / np.sqrt(40))
    assert completed_S == pytest.approx(counts)


def test_a_cut_sample_has_what_those_still_at_risk_have_later() -> None:
    # The third is cut at 15: of the other two, one has an event at 20. One event each before.
    times = [np.array([10, 20]), np.array([10]), np.array([10])]
    mean, _, completed_S = amounts.mean_count(times, np.array([NEVER, NEVER, 15]))
    assert mean == pytest.approx(1 + 1 / 2)
    assert completed_S == pytest.approx([2, 1, 1.5])


def test_events_at_the_instant_of_the_cut_are_seen() -> None:
    mean, *_ = amounts.mean_count([np.array([10]), np.array([], np.int64)], np.array([10, NEVER]))
    assert mean == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(3))
def test_completed_counts_have_the_mean_that_is_told_and_it_is_unbiased(seed) -> None:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.integers(0, 1000, rng.poisson(4))) for _ in range(4000)]
    cut_S = rng.integers(0, 3000, 4000)
    seen = [own[own <= cut] for own, cut in zip(times, cut_S, strict=True)]
    mean, error, completed_S = amounts.mean_count(seen, cut_S)
    assert completed_S.mean() == pytest.approx(mean)
    assert abs(mean - 4) < 4 * error < 0.3
    assert np.mean([len(own) for own in seen]) < 3.6  # as many as are lost


@pytest.mark.parametrize("seed", range(3))
def test_mean_durations_are_unbiased_under_censoring(seed) -> None:
    rng = np.random.default_rng(seed)
    until_S = np.minimum(rng.exponential(10, 4000), 30)
    cut_S = rng.exponential(20, 4000)
    mean, error, completed_S = amounts.mean_duration(until_S, cut_S, 30)
    truth = 10 * (1 - np.exp(-3))
    assert abs(mean - truth) < 4 * error < 1 and completed_S.mean() == pytest.approx(mean)
    assert np.minimum(until_S, cut_S).mean() < truth - 2


def test_where_nothing_is_cut_durations_are_plain_too() -> None:
    until_S = np.array([1.0, 2.0, 2.0, 7.0, 30.0, 30.0])
    mean, error, completed_S = amounts.mean_duration(until_S, np.full(6, np.inf), 30)
    assert mean == pytest.approx(until_S.mean()) and error == pytest.approx(until_S.std() / np.sqrt(6))
    assert completed_S == pytest.approx(until_S)


def test_all_samples_cut_have_what_they_had_and_a_duration_up_to_the_horizon() -> None:
    assert amounts.mean_count([np.array([3]), np.array([5])], np.array([6, 7]))[0] == pytest.approx(1.0)
    assert amounts.mean_duration(np.array([9.0, 9.0]), np.array([2.0, 4.0]), 9)[0] == pytest.approx(9.0)


def times_table(**columns: list) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    table = pl.DataFrame(columns).with_columns(pl.lit(5, pl.Int64).alias("subject_id"), sample=pl.int_range(rows))
    return table.with_columns(prediction_time=pl.lit(0, pl.Int64).cast(pl.Datetime("us")))


def test_counts_are_of_the_horizon_and_quantiles_of_the_samples() -> None:
    times = times_table(
        visits=[DAY, DAY, None, 31 * DAY],
        **{estimators.times_column(VISITS): [[DAY, 2 * DAY, 40 * DAY], [DAY], [], [31 * DAY]]},
        stop=["horizon", "death", "horizon", "horizon"],
        elapsed_us=[50 * DAY] * 4,
    )
    (row,) = amounts.estimate(times, VISITS).iter_rows(named=True)
    assert (row["mean"], row["median"], row["high"], row["samples"], row["truncated"]) == (0.75, 0.0, 2.0, 4, 0.0)
    assert row["subject_id"] == 5 and row["standard_error"] == pytest.approx(np.std([2, 1, 0, 0]) / 2)


def test_durations_are_in_days_and_end_with_the_window() -> None:
    times = times_table(
        stay=[2 * DAY, 6 * DAY, None, 3 * DAY], stop=["horizon"] * 3 + ["length"], elapsed_us=[50 * DAY] * 3 + [3 * DAY]
    )
    (row,) = amounts.estimate(times, STAY).iter_rows(named=True)
    assert (row["mean"], row["median"], row["low"], row["high"]) == (pytest.approx(41 / 4), 3.0, 2.0, 30.0)
    assert row["truncated"] == 0.0  # the last ran out of tokens only after its answer


def test_no_prompt_gives_an_empty_table() -> None:
    empty = times_table(stay=[DAY], stop=["horizon"], elapsed_us=[DAY]).clear()
    table = amounts.estimate(empty, STAY)
    assert not len(table) and table.columns[:3] == ["subject_id", "prediction_time", "mean"]
