"""Risk from simulated futures: the Monte-Carlo share of a prompt's samples in which the outcome happens in time."""

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
    """The risk of the task's outcome for each prompt of `outcome_times`.

    Returns [subject_id, prediction_time, risk, standard_error (sqrt(p (1 - p) / (n - 1)); null for n = 1), samples,
    truncated]. `truncated` is the share of samples that ran out of tokens before the horizon without the outcome; they
    count as not having it, so a large share biases the risk downwards.
    """
    has_outcome = (pl.col(task.name) <= task.horizon_us).fill_null(False)
    cut_short = ~has_outcome & (pl.col("stop") == "length") & (pl.col("elapsed_us") < task.horizon_us)
    risk, samples = has_outcome.mean(), pl.len()
    return times.group_by(KEYS, maintain_order=True).agg(
        risk=risk,
        standard_error=pl.when(samples > 1).then((risk * (1 - risk) / (samples - 1)).sqrt()),
        samples=samples,
        truncated=cut_short.mean(),
    )
