"""Counts and durations from simulated futures: means, quantiles and standard errors.

S samples of a prompt   U distinct times at which something happens in them

A sample that runs out of tokens or of observation is censored there (`cometjax.estimators`). Mean counts then are
Nelson's mean cumulative function (Lawless and Nadeau 1995, its variance too), mean durations the area under Kaplan and
Meier's survival curve up to the horizon (Irwin 1949), with Greenwood's variance. Both give each cut sample what those
at risk have after it, on average; so its completed value is known, and quantiles are of the completed values. Where no
sample is cut, these are the samples' mean, and their standard deviation over the root of their number.
"""

import numpy as np
import polars as pl

from cometjax.estimators import KEYS, is_cut_short, times_column, window_end
from cometjax.tasks import MICROSECONDS_PER_DAY, Task

# The interval that `low` and `high` bound holds 80% of a prompt's futures.
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
_COLUMNS = ("mean", "standard_error", *QUANTILES, "truncated")


def estimate(times: pl.DataFrame, task: Task) -> pl.DataFrame:
    """The expected count or duration (in days) of a task for each prompt of `estimators.outcome_times`.

    A duration is that to the first outcome or the end of the window, whichever comes first, as in the task's labels.

    Returns [subject_id, prediction_time, mean, standard_error (of the mean; null of one sample), low, median, high
    (QUANTILES of the samples), samples, truncated (share of samples cut short before they answered)].
    """
    is_count = task.kind == "count"
    answered = pl.lit(False) if is_count else (pl.col(task.name) <= task.horizon_us).fill_null(False)
    value = pl.col(times_column(task)) if is_count else pl.min_horizontal(task.name, window_end(task))
    cut = ~answered & is_cut_short(task)
    needed = times.select(*KEYS, value=value, cut_us=pl.when(cut).then(pl.col("elapsed_us").clip(0)))
    columns: dict[str, list[float]] = {name: [] for name in (*_COLUMNS, "samples")}
    keys = []
    for key, group in needed.group_by(KEYS, maintain_order=True):
        keys.append(key)
        cut_S = group.get_column("cut_us").fill_null(np.iinfo(np.int64).max).to_numpy()
        if is_count:
            in_time = [np.array([t for t in events if t <= task.horizon_us], np.int64) for events in group["value"]]
            mean, error, value_S = mean_count(in_time, cut_S)
        else:
            days_S, cut_days_S = group["value"].to_numpy() / MICROSECONDS_PER_DAY, cut_S / MICROSECONDS_PER_DAY
            mean, error, value_S = mean_duration(days_S, cut_days_S, task.horizon_days)
        shares = np.quantile(value_S, list(QUANTILES.values()), method="inverted_cdf")
        truncated = 1 - group.get_column("cut_us").null_count() / len(group)
        for name, number in zip(_COLUMNS, (mean, error, *shares, truncated), strict=True):
            columns[name].append(float(number))
        columns["samples"].append(len(group))
    schema = {name: times.schema[name] for name in KEYS}
    found = pl.DataFrame(keys, schema=schema, orient="row").with_columns(
        pl.Series(name, numbers, dtype=pl.Int64 if name == "samples" else pl.Float64)
        for name, numbers in columns.items()
    )
    found = found.with_columns(standard_error=pl.when(pl.col("samples") > 1).then("standard_error"))
    return found.select(*KEYS, *_COLUMNS[:-1], "samples", "truncated")


def mean_count(times_by_sample: list[np.ndarray], cut_S: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(mean count, its standard error, completed count of each sample, float64 [S]).

    Args:
        times_by_sample: when the events of each sample happen, int64.
        cut_S: when each is cut short, int64; the largest number for never. What happens then is still seen.
    """
    samples = len(times_by_sample)
    times_U = np.unique(np.concatenate(times_by_sample)) if samples else np.zeros(0, np.int64)
    events_SxU = np.zeros((samples, len(times_U)))
    for sample, times in enumerate(times_by_sample):
        np.add.at(events_SxU[sample], np.searchsorted(times_U, times), 1)
    at_risk_SxU = cut_S[:, None] >= times_U
    # Where something happens, somebody is at risk of it.
    rate_U = events_SxU.sum(0) / at_risk_SxU.sum(0)
    influence_S = (at_risk_SxU * (events_SxU - rate_U) / at_risk_SxU.sum(0)).sum(1)
    completed_S = events_SxU.sum(1) + (~at_risk_SxU * rate_U).sum(1)
    return float(rate_U.sum()), float(np.sqrt((influence_S**2).sum())), completed_S


def mean_duration(until_S: np.ndarray, cut_S: np.ndarray, horizon: float) -> tuple[float, float, np.ndarray]:
    """(mean time to an end, its standard error, completed time of each sample, float64 [S]), in the arguments' unit.

    Args:
        until_S: when each sample ends, at most the horizon, had it not been cut.
        cut_S: when each is cut short, before its end; a number past the horizon for never.
        horizon: the time at which all end.
    """
    is_cut_S = cut_S < until_S
    seen_S = np.minimum(until_S, cut_S)
    times_U = np.unique(np.append(seen_S[~is_cut_S], horizon))
    ends_U = np.array([((seen_S == time) & ~is_cut_S).sum() for time in times_U])
    at_risk_U = np.array([(seen_S >= time).sum() for time in times_U])
    hazard_U = np.divide(ends_U, at_risk_U, out=np.zeros(len(times_U)), where=at_risk_U > 0)
    # All that have not ended before end at the horizon.
    hazard_U[-1] = 1.0
    survival_U = np.cumprod(1 - hazard_U)
    before_U = np.concatenate(([1.0], survival_U[:-1]))
    steps_U = np.diff(times_U, prepend=0)
    mean = float((before_U * steps_U).sum())
    area_after_U = mean - np.cumsum(before_U * steps_U)
    left_U = at_risk_U - ends_U
    terms_U = np.divide(ends_U, at_risk_U * left_U, out=np.zeros(len(times_U)), where=left_U > 0)
    completed_S = seen_S.astype(np.float64)
    for sample in np.flatnonzero(is_cut_S):
        # The mean over those still going on: the area under the curve from here on, over its height here.
        after = times_U > seen_S[sample]
        from_U = np.maximum(times_U - steps_U, seen_S[sample])
        area = (before_U * (times_U - from_U))[after].sum()
        height = before_U[after][0]
        completed_S[sample] += area / height if height > 0 else 0.0
    return mean, float(np.sqrt((area_after_U**2 * terms_U).sum())), completed_S
