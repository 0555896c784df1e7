"""What is said of a count or a duration: what was predicted from simulated futures, beside what was recorded."""

import dataclasses
import math
from typing import Any

import numpy as np
import polars as pl

from cometjax import scores
from cometjax.labels import VALUE_COLUMN
from cometjax.task_results import Rows, outcome_coverage
from cometjax.tasks import Events, Task
from data_pipeline.vocabulary import Vocabulary

# What is predicted, and its score.
# The median is what a mean absolute error asks for; the mean tells few apart that are alike in it, and ranks them.
SCORES = {
    "mae": ("median", scores.mae_weighted),
    "rmsle": ("mean", scores.rmsle_weighted),
    "concordance": ("mean", scores.concordance_weighted),
}
# The score that a kind of task is compared by.
MAIN = {"count": "rmsle", "duration": "mae"}


def score_amounts(
    task: Task,
    rows: Rows,
    estimates: pl.DataFrame,
    events: Events,
    vocabulary: Vocabulary,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that results.json says of such a task; amounts are events, or days.

    `estimates`: amounts.estimate's columns, one row for each of `rows.scored`, in its order. Scores are of their median
    (MAE) or mean (RMSLE, Harrell's concordance), with 95% intervals by resampling subjects.
    """
    column = VALUE_COLUMN[task.kind]
    target_N = rows.scored.get_column(column).to_numpy().astype(np.float64)
    subjects_N = rows.scored.get_column("subject_id").to_numpy()
    inside = estimates.select((pl.col("low") <= target_N) & (pl.col("high") >= target_N)).to_series()
    drawn = scores.resample_subjects(subjects_N, resamples, seed)
    result: dict[str, Any] = {
        **dataclasses.asdict(task),
        "n": len(target_N),
        "subjects": len(np.unique(subjects_N)),
        "positives": int(rows.scored.get_column("boolean_value").sum()),
        "mean_recorded": float(target_N.mean()),
        "median_recorded": float(np.median(target_N)),
        "mean_predicted": estimates.get_column("mean").mean(),
        "median_predicted": estimates.get_column("median").median(),
        "mean_standard_error": estimates.get_column("standard_error").mean(),
        "share_between_low_and_high": inside.mean(),
        "truncated_share": estimates.get_column("truncated").mean(),
        "outcome_in_vocabulary": outcome_coverage(task, events, vocabulary),
        "constant": _constant_scores(task, target_N, rows, estimates, drawn),
        **rows.counts,
    }
    for name, (predicted, score) in SCORES.items():
        predictions_N = estimates.get_column(predicted).to_numpy()
        found = scores.interval(score, target_N, predictions_N, drawn, needs_classes=False)
        result |= {name: _number(found.value), f"{name}_low": _number(found.low), f"{name}_high": _number(found.high)}
    return result


def _constant_scores(
    task: Task, target_N: np.ndarray, rows: Rows, estimates: pl.DataFrame, drawn: scores.Resamples
) -> dict[str, Any]:
    """Of the best constants by the training rows: their median, and their mean on the scale of the RMSLE.

    `value`: the one of the task's main metric; `gain_of_model`: by how much the model's error is less in it, paired.
    """
    train_N = rows.training.get_column(VALUE_COLUMN[task.kind]).to_numpy().astype(np.float64)
    weights_N = rows.training_weights_N
    if not len(train_N):
        return {"mae": None, "rmsle": None, "value": None, "gain_of_model": None}
    constants = {
        "mae": float(np.quantile(train_N, 0.5, weights=weights_N, method="inverted_cdf")),
        "rmsle": float(np.expm1(np.average(np.log1p(train_N), weights=weights_N))),
    }
    ones_1xN = np.ones((1, len(target_N)))
    said: dict[str, Any] = {
        name: float(SCORES[name][1](target_N, np.full(len(target_N), value), ones_1xN)[0])
        for name, value in constants.items()
    }
    main = MAIN[task.kind]
    predicted, score = SCORES[main]
    constant_N = np.full(len(target_N), constants[main])
    gain = scores.difference(
        score, target_N, constant_N, estimates.get_column(predicted).to_numpy(), drawn, needs_classes=False
    )
    return said | {"value": constants[main], "gain_of_model": dataclasses.asdict(gain)}


def _number(value: float | None) -> float | None:
    """None also for a score that is not defined: of equal targets there is no order."""
    return None if value is None or math.isnan(value) else value
