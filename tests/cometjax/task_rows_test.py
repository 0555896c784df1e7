"""The prompts that many tasks share."""

import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest

from cometjax import task_rows
from cometjax.task_results import Rows
from cometjax.tasks import Task
from data_pipeline import code_maps, meds
from data_pipeline.errors import UserError
from experiments.tasks.__main__ import survey


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


VISIT = Task("visit", r".*CPT.*", 30, r".*CPT.*")


def subjects_who_leave(last_day: int) -> list[tuple]:
    """Two visits of four subjects, of whom the second leaves between them; the last visit of all is on this day."""
    start = datetime.datetime(2020, 1, 1)
    rows = []
    for subject in range(4):
        visits = (0, last_day if subject == 3 else 100)
        ends = [(10, "OBSERVATION_END")] if subject == 1 else []
        events = sorted([*ends, *((days, "CPT//99213") for days in visits)])
        rows += [(subject, start + datetime.timedelta(days), code, None) for days, code in events]
    return rows


def test_rows_of_which_nobody_looked_and_a_stray_end_are_told(write_meds, tmp_path, caplog) -> None:
    dataset = meds.open_dataset(write_meds({"0": subjects_who_leave(9_000)}, dict.fromkeys(range(4), "train")))
    bounds = {"split": "train", "max_rows_per_task": 300, "max_training_subjects": 9, "seed": 0}

    def ask(task: Task, **options) -> task_rows.Asked:
        # Training subjects there are none, as everybody is scored.
        return task_rows.ask(dataset, code_maps.named("world"), [task], **bounds, **options)

    told = ask(VISIT)
    assert told.rows["visit"].counts["observed_in_part"] == 2  # on the last day too, after observation
    assert [line.split(",")[0] for line in told.warnings] == ["the data's last event is of 2044-08-22"]
    assert told.warnings[0] in caplog.text and "visit" not in caplog.text
    assert ask(dataclasses.replace(VISIT, censoring="2020-06-30")).rows["visit"].scored.height == 7
    by_observation = dataclasses.replace(VISIT, censoring="observation_end")
    assert ask(by_observation).rows["visit"].counts["excluded"]["horizon_past_observation"] == 2
    listed = survey(dataset, code_maps.named("world"), [VISIT], "train")
    assert listed == {"visit": "7 rows (2 observed in part), 4 subjects, 0 positive"}
    # A label file is as it is: no censoring applies, nor is its end told.
    frame = told.rows["visit"].scored.select("subject_id", "prediction_time", "boolean_value")
    (tmp_path / "labels").mkdir()
    frame.write_parquet(tmp_path / "labels" / "visit.parquet")
    of_files = ask(by_observation, label_folder=str(tmp_path / "labels"))
    assert of_files.rows["visit"].scored.height == 7 and not of_files.warnings
    assert of_files.rows["visit"].counts["observed_in_part"] == 2


def test_by_observation_label_files_need_none(write_meds, tmp_path) -> None:
    rows = [row for row in subjects_who_leave(100) if row[2] != "OBSERVATION_END"]
    dataset = meds.open_dataset(write_meds({"0": rows}, dict.fromkeys(range(4), "train")))
    asked = {"split": "train", "max_rows_per_task": 300, "max_training_subjects": 9, "seed": 0}
    task = dataclasses.replace(VISIT, censoring="observation_end")
    with pytest.raises(UserError, match="the data say of nobody"):
        task_rows.ask(dataset, code_maps.named("world"), [task], **asked)
    labels = pl.DataFrame({"subject_id": [1], "prediction_time": [rows[0][1]], "boolean_value": [True]})
    labels.write_parquet(tmp_path / "visit.parquet")
    of_files = task_rows.ask(dataset, code_maps.named("world"), [task], label_folder=str(tmp_path), **asked)
    assert of_files.rows["visit"].counts["observed_in_part"] == 0
