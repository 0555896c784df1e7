"""Which rows of a data set are scored, and which the baselines learn from."""

import datetime

import polars as pl
import pytest

from cometjax import task_rows
from cometjax.tasks import Task
from data_pipeline import code_maps, meds

DAY0 = datetime.datetime(2020, 1, 1)
SPLITS = dict.fromkeys((1, 2, 3), "train") | dict.fromkeys((4, 5), "held_out")
VISITS = 4
TASK = Task(
    name="readmission",
    index="ENCOUNTER//ENCOUNTER_END//INPATIENT.*",
    outcome="ENCOUNTER//ENCOUNTER_START//INPATIENT.*",
    horizon_days=30,
    censoring="assume_complete",
    index_choice="one",
)


@pytest.fixture
def ask(write_meds):
    """ask(split) -> the task's rows: five subjects with four discharges each, one row of each drawn."""
    rows = [
        (subject, DAY0 + datetime.timedelta(days=20 * visit + hours / 24), f"{code}//INPATIENT", None)
        for subject in SPLITS
        for visit in range(VISITS)
        for hours, code in ((0, "ENCOUNTER_START"), (9, "ENCOUNTER_END"))
    ]
    dataset = meds.open_dataset(write_meds({"all/0": rows}, SPLITS))

    def run(split: str) -> task_rows.Rows:
        bounds = {"max_rows_per_task": 100, "max_training_subjects": 100}
        asked = task_rows.ask(dataset, code_maps.named("world"), [TASK], split=split, seed=0, **bounds)
        return asked.rows[TASK.name]

    return run


def subjects(rows: pl.DataFrame) -> list[int]:
    return sorted(set(rows.get_column("subject_id")))


@pytest.mark.parametrize(
    ("split", "scored"), [("held_out", [4, 5]), ("train", [1, 2, 3]), ("train,held_out", [*SPLITS])]
)
def test_nobody_who_is_scored_is_learned_from(ask, split, scored) -> None:
    rows = ask(split)
    assert subjects(rows.scored) == scored
    assert subjects(rows.training) == ([] if "train" in split else [1, 2, 3])


def test_baselines_learn_from_every_candidate_where_one_row_a_subject_is_scored(ask) -> None:
    rows = ask("held_out")
    assert len(rows.scored) == 2 and len(rows.training) == 3 * VISITS
