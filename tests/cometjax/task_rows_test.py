"""The prompts that many tasks share."""

import datetime

import numpy as np
import polars as pl

from cometjax import task_rows
from cometjax.task_results import Rows
from cometjax.tasks import Task


def rows_of(subjects: list[int]) -> Rows:
    times = pl.lit(datetime.datetime(2020, 1, 1)).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"subject_id": subjects}, schema={"subject_id": pl.Int64}).with_columns(prediction_time=times)
    return Rows(frame, frame[:0], np.zeros(0), {})


def test_a_prompt_is_simulated_once_for_the_longest_horizon_asked_of_it() -> None:
    tasks = [Task(name=name, index="X", horizon_days=days, outcome="Y") for name, days in (("a", 30), ("b", 365))]
    prompts, asks_PxK = task_rows.union(tasks, {"a": rows_of([1, 2, 3]), "b": rows_of([3, 5])})
    assert prompts.select("subject_id", "days").rows() == [(1, 30), (2, 30), (3, 365), (5, 365)]
    assert asks_PxK.tolist() == [[True, False], [True, False], [True, True], [False, True]]
    none, asks_PxK = task_rows.union(tasks, {"a": rows_of([]), "b": rows_of([])})
    assert none.is_empty() and asks_PxK.shape == (0, 2)
