"""What is said of a count or a duration: what was predicted from simulated futures, beside what was recorded."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from cometjax.labels import VALUE_COLUMN
from cometjax.task_results import Rows, outcome_coverage
from cometjax.tasks import Events, Task
from data_pipeline.vocabulary import Vocabulary


def score_amounts(
    task: Task, rows: Rows, estimates: pl.DataFrame, events: Events, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Everything that results.json says of such a task; amounts are events, or days.

    `estimates`: amounts.estimate's columns, one row for each of `rows.scored`, in its order.
    """
    target_N = rows.scored.get_column(VALUE_COLUMN[task.kind]).to_numpy().astype(np.float64)
    inside = estimates.select((pl.col("low") <= target_N) & (pl.col("high") >= target_N)).to_series()
    return {
        **dataclasses.asdict(task),
        "n": len(target_N),
        "subjects": rows.scored.get_column("subject_id").n_unique(),
        "positives": int(rows.scored.get_column("boolean_value").sum()),
        "mean_recorded": float(target_N.mean()),
        "median_recorded": float(np.median(target_N)),
        "mean_predicted": estimates.get_column("mean").mean(),
        "median_predicted": estimates.get_column("median").median(),
        "mean_standard_error": estimates.get_column("standard_error").mean(),
        "share_between_low_and_high": inside.mean(),
        "truncated_share": estimates.get_column("truncated").mean(),
        "outcome_in_vocabulary": outcome_coverage(task, events, vocabulary),
        **rows.counts,
    }
