"""Risk from simulated futures: how often the outcome happens in time among a prompt's samples.

A sample that runs out of tokens before the horizon is censored there: the sickest have the most tokens a day, so taking
their cut futures for uneventful ones would tell the least risk of those who have the most.
"""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from cometjax import decoding, trajectories
from cometjax.engine import Future
from cometjax.tasks import Task
from data_pipeline.vocabulary import Vocabulary

KEYS = ("subject_id", "prediction_time")


def outcome_concepts(vocabulary: Vocabulary, task: Task) -> frozenset[str]:
    """The concepts of the vocabulary that are this task's outcome; the model can produce no others."""
    pattern = re.compile(task.outcome)
    return frozenset(event.concept for event in vocabulary.events if pattern.fullmatch(event.concept))


def outcome_times(futures: Sequence[Future], vocabulary: Vocabulary, tasks: Sequence[Task]) -> pl.DataFrame:
    """When each task's outcome first happens in each future: one pass serves all tasks.

    Returns [subject_id, prediction_time, sample, stop, elapsed_us (simulated time covered), <task name> (microseconds
    from the prediction time to the first outcome, null if none)], one row per future.
    """
    wanted = {task.name: outcome_concepts(vocabulary, task) for task in tasks}
    any_wanted = frozenset().union(*wanted.values())
    seconds_V = decoding.token_seconds(vocabulary).astype(np.int64)
    columns: dict[str, list[int | str | None]] = {
        name: [] for name in ("subject_id", "time_us", "sample", "stop", "elapsed_us", *wanted)
    }
    for future in futures:
        columns["subject_id"].append(future.subject_id)
        columns["time_us"].append(future.prediction_time_us)
        columns["sample"].append(future.sample)
        columns["stop"].append(future.stop)
        columns["elapsed_us"].append(1_000_000 * int(future.start_seconds + seconds_V[future.tokens_T].sum()))
        relevant = [
            (concept, time_us - future.prediction_time_us)
            for concept, _, time_us, _ in trajectories.events_of(future, vocabulary)
            if concept in any_wanted
        ]
        for name, concepts in wanted.items():
            # An event less than a minute on has no interval token: simulated at the prediction time, it is after it.
            times = [time for concept, time in relevant if concept in concepts and time >= 0]
            columns[name].append(min(times, default=None))
    schema = {name: pl.String if name == "stop" else pl.Int64 for name in columns}
    table = pl.DataFrame(columns, schema=schema)
    return table.with_columns(pl.col("time_us").cast(pl.Datetime("us"))).rename({"time_us": "prediction_time"})


def monte_carlo(times: pl.DataFrame, task: Task) -> pl.DataFrame:
    """The risk of the task's outcome for each prompt of `outcome_times`, by Kaplan and Meier (1958).

    Where no sample is cut short, that is the share of samples with the outcome within the horizon. Samples that end
    otherwise (death, timeline end) stay without it until the horizon.

    Returns [subject_id, prediction_time, risk, standard_error (Greenwood's; sqrt(p (1 - p) / n) where none is cut
    short), samples, truncated (share of samples cut short before the horizon without the outcome)].
    """
    has_outcome = (pl.col(task.name) <= task.horizon_us).fill_null(False)
    cut_short = ~has_outcome & (pl.col("stop") == "length") & (pl.col("elapsed_us") < task.horizon_us)
    until = pl.when(has_outcome).then(task.name).when(cut_short).then("elapsed_us").otherwise(task.horizon_us + 1)
    # At one instant outcomes come before samples cut short, which were still at risk of it.
    order = times.select(*KEYS, until=until, cut_short=cut_short, has_outcome=has_outcome).sort(
        "until", "cut_short", maintain_order=True
    )
    at_risk = (pl.len() - pl.int_range(pl.len())).over(KEYS)
    survivors = order.with_columns(at_risk=at_risk).with_columns(
        kept=1 - pl.col("has_outcome") / pl.col("at_risk"),
        # The terms of Greenwood's sum; the last sample at risk has no finite one, and leaves a survival of zero.
        term=pl.when(pl.col("has_outcome") & (pl.col("at_risk") > 1))
        .then(1 / (pl.col("at_risk") * (pl.col("at_risk") - 1)))
        .otherwise(0.0),
    )
    survival = pl.col("kept").product()
    estimated = survivors.group_by(KEYS).agg(
        # The same number where none is cut short, without the product's rounding.
        risk=pl.when(pl.col("cut_short").any()).then(1 - survival).otherwise(pl.col("has_outcome").mean()),
        standard_error=survival * pl.col("term").sum().sqrt(),
        samples=pl.len(),
        truncated=pl.col("cut_short").mean(),
    )
    return times.select(KEYS).unique(maintain_order=True).join(estimated, on=KEYS, how="left", maintain_order="left")
