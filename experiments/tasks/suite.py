"""The suite of 78 tasks (docs/tasks.md), for any model and any MEDS data set.

    python -m cometjax.evaluate --workdir runs/demo/model --meds runs/demo/meds --tasks experiments/tasks/suite.py \
        --out runs/demo/suite
    python -m cometjax.evaluate ... --tasks experiments/tasks/suite.py:assume_complete   # dates shifted by subject
    python -m cometjax.evaluate ... --tasks experiments/tasks/suite.py:2023-12-31   # the data's last day, or another
                                                                                    # value of Task.censoring

    python -m cometjax.evaluate ... --only=readmission_30d,emergency_ecg

A task whose codes a data set lacks is listed under "cannot run", with the reason. Override a field as in any
configuration: `--tasks.tasks.readmission_30d.horizon_days=90`.
"""

import dataclasses

from ml_collections import ConfigDict

from cometjax.tasks import Task, described
from experiments.tasks import (
    differential_diagnosis,
    disease_outcomes,
    incident_disease,
    operations,
    plausibility,
    single_encounter,
)

FAMILIES = {
    "plausibility": plausibility.QUESTIONS,
    "single encounter": single_encounter.QUESTIONS,
    "disease-specific outcomes": disease_outcomes.QUESTIONS,
    "incident disease": incident_disease.QUESTIONS,
    "differential diagnosis": differential_diagnosis.QUESTIONS,
    "operations": operations.QUESTIONS,
}


def get_config(censoring: str = "dataset_end") -> ConfigDict:
    """Tasks by name; the fields are those of cometjax.tasks.Task. `censoring`: Task.censoring of all of them."""
    fields = {task.name: dataclasses.asdict(task) for task in _undescribed(censoring)}
    return ConfigDict({"tasks": {name: {k: v for k, v in own.items() if k != "name"} for name, own in fields.items()}})


def make_tasks(censoring: str = "dataset_end") -> tuple[Task, ...]:
    """The tasks in the order of their families (a ConfigDict sorts by name)."""
    return tuple(map(described, _undescribed(censoring)))


def _undescribed(censoring: str) -> list[Task]:
    return [question.task(family, censoring) for family, own in FAMILIES.items() for question in own]
