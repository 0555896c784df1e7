"""Risk from simulated futures: how often the outcome happens in time among a prompt's samples.

A sample that runs out of tokens before the horizon is censored there: the sickest have the most tokens a day, so taking
their cut futures for uneventful ones would tell the least risk of those who have the most. So is one whose observation
ends (`futures.CENSORED`), where the corpus tells how long subjects were observed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from cometjax import trajectories
from cometjax.futures import CENSORED, Future, clock
from cometjax.open_questions import Question, Questions, places
from cometjax.tasks import Task, compiled
from data_pipeline.vocabulary import Vocabulary

KEYS = ("subject_id", "prediction_time")
# What a task's other columns of `outcome_times` add to its name; no name of a task has a slash.
_UNTIL, _TIMES = "//until", "//times"


def outcome_concepts(vocabulary: Vocabulary, task: Task) -> frozenset[str]:
    """The concepts of the vocabulary that are this task's outcome; the model can produce no others."""
    return _producible(vocabulary, task.outcome)


def closing_concepts(vocabulary: Vocabulary, task: Task) -> frozenset[str]:
    """The concepts of the vocabulary that close this task's window before its horizon."""
    return _producible(vocabulary, task.until) if task.until else frozenset()


def questions(vocabulary: Vocabulary, tasks: Sequence[Task]) -> Questions:
    """What these tasks ask of a future: a count all of its window, the others whether and when it first happens."""
    return Questions(
        vocabulary,
        [
            Question(
                outcome_concepts(vocabulary, task),
                closing_concepts(vocabulary, task),
                task.horizon_us,
                first_only=task.kind != "count",
            )
            for task in tasks
        ],
    )


def _producible(vocabulary: Vocabulary, pattern: str) -> frozenset[str]:
    """The concepts that match; where all of a kind do, its UNKNOWN too, whatever rare code that is."""
    concepts_of_kind: dict[str, set[str]] = {}
    for event in vocabulary.events:
        concepts_of_kind.setdefault(event.kind, set()).add(event.concept)
    producible: set[str] = set()
    for kind, concepts in concepts_of_kind.items():
        matching = {concept for concept in concepts if compiled(pattern).fullmatch(concept)}
        is_whole = bool(matching) and matching >= concepts - {f"UNKNOWN//{kind}"}
        producible |= concepts if is_whole else matching
    return frozenset(producible)


def outcome_times(futures: Sequence[Future], vocabulary: Vocabulary, tasks: Sequence[Task]) -> pl.DataFrame:
    """When each task's outcome happens in each future, in its window: one pass serves all tasks.

    Returns, one row per future, [subject_id, prediction_time, sample, stop, elapsed_us (simulated time covered)], and
    of each task in microseconds from the prediction time: <name> (the first outcome, null if none before the window is
    closed), with `until` <name>//until (when that closed the window, null if it did not), of counts <name>//times (all
    outcomes before that).
    """
    names = [name for task in tasks for name in _columns_of(task)]
    asking = places([outcome_concepts(vocabulary, task) for task in tasks])
    closing = places([closing_concepts(vocabulary, task) for task in tasks])
    schema: dict[str, Any] = dict.fromkeys(("subject_id", "time_us", "sample", "stop", "elapsed_us", *names), pl.Int64)
    schema |= {"stop": pl.String} | {name: pl.List(pl.Int64) for name in names if name.endswith(_TIMES)}
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    for future in futures:
        columns["subject_id"].append(future.subject_id)
        columns["time_us"].append(future.prediction_time_us)
        columns["sample"].append(future.sample)
        columns["stop"].append(future.stop)
        clock_T = clock(future, vocabulary)
        columns["elapsed_us"].append(1_000_000 * int(clock_T[-1] if len(clock_T) else future.start_seconds))
        times: list[list[int]] = [[] for _ in tasks]
        until: list[int | None] = [None] * len(tasks)
        for concept, _, time_us, _ in trajectories.events_of(future, vocabulary):
            time = time_us - future.prediction_time_us
            # An event less than a minute on has no interval token: simulated at the prediction time, it is after it.
            if time >= 0:
                for index in asking.get(concept, ()):
                    times[index].append(time)
                for index in closing.get(concept, ()):
                    until[index] = time if until[index] is None else until[index]
        for task, found, closed in zip(tasks, times, until, strict=True):
            found = [time for time in found if closed is None or time <= closed]
            values = {"": found[0] if found else None, _UNTIL: closed, _TIMES: found}
            for name in _columns_of(task):
                columns[name].append(values[name.removeprefix(task.name)])
    table = pl.DataFrame(columns, schema=schema)
    return table.with_columns(pl.col("time_us").cast(pl.Datetime("us"))).rename({"time_us": "prediction_time"})


def window_seconds(futures: Sequence[Future], vocabulary: Vocabulary, tasks: Sequence[Task]) -> np.ndarray:
    """When each future's window of each task ends, in seconds from the prediction time, float64 [futures, tasks]: at
    the horizon, or the event that closes it before."""
    end_SxK = np.tile([task.horizon_us / 1e6 for task in tasks], (len(futures), 1))
    closing = places([closing_concepts(vocabulary, task) for task in tasks])
    if not closing:
        return end_SxK
    for end_K, future in zip(end_SxK, futures, strict=True):
        for concept, _, time_us, _ in trajectories.events_of(future, vocabulary):
            seconds = (time_us - future.prediction_time_us) / 1e6
            for index in closing.get(concept, ()) if seconds >= 0 else ():
                end_K[index] = min(end_K[index], seconds)
    return end_SxK


def _columns_of(task: Task) -> list[str]:
    suffixes = ["", *([_UNTIL] if task.until else []), *([_TIMES] if task.kind == "count" else [])]
    return [task.name + suffix for suffix in suffixes]


def times_column(task: Task) -> str:
    """The column of `outcome_times` with all times of a count's outcomes."""
    return task.name + _TIMES


def window_end(task: Task) -> pl.Expr:
    """Of a row of `outcome_times`: microseconds to the end of the task's window."""
    horizon = pl.lit(task.horizon_us)
    return pl.min_horizontal(horizon, pl.col(task.name + _UNTIL)) if task.until else horizon


def is_cut_short(task: Task) -> pl.Expr:
    """Of a row of `outcome_times`: was the future censored before the end of the task's window?"""
    is_open = pl.col(task.name + _UNTIL).is_null() if task.until else pl.lit(True)
    return is_open & pl.col("stop").is_in(CENSORED) & (pl.col("elapsed_us") < task.horizon_us)


def monte_carlo(times: pl.DataFrame, task: Task) -> pl.DataFrame:
    """The risk of the task's outcome for each prompt of `outcome_times`, by Kaplan and Meier (1958).

    Where no sample is cut short, that is the share of samples with the outcome within the horizon. Samples that end
    otherwise (death, timeline end) stay without it until the horizon.

    Returns [subject_id, prediction_time, risk, standard_error (Greenwood's; sqrt(p (1 - p) / n) where none is cut
    short; null of one sample), samples, truncated (share of samples cut short before the horizon without the outcome)].
    """
    has_outcome = (pl.col(task.name) <= task.horizon_us).fill_null(False)
    cut_short = ~has_outcome & is_cut_short(task)
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
        standard_error=pl.when(pl.len() > 1).then(survival * pl.col("term").sum().sqrt()),
        samples=pl.len(),
        truncated=pl.col("cut_short").mean(),
    )
    return times.select(KEYS).unique(maintain_order=True).join(estimated, on=KEYS, how="left", maintain_order="left")
