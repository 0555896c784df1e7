"""The rows of many tasks on one data set, and which tasks cannot be asked of it, and why."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from absl import logging

from cometjax import data_end
from cometjax import labels as label_module
from cometjax import tasks as task_module
from cometjax.baselines import TrainingRows
from cometjax.task_results import Rows
from cometjax.tasks import Events, Task
from data_pipeline import code_maps, meds
from data_pipeline.errors import UserError

# Patterns without which there is nothing to ask; nobody may have what is excluded.
_NEEDED = ("index", "cohort", "outcome", "until")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a data set.

    Attributes:
        events: of the scored and training subjects.
        rows: by the names of the tasks that can be asked.
        cannot_run: by the names of the others, the reason.
        warnings: signs that the tasks' censoring misleads (`cometjax.data_end`); none where labels are read from files.
    """

    events: Events
    rows: Mapping[str, Rows]
    cannot_run: Mapping[str, str]
    warnings: Sequence[str] = ()


def obstacle(task: Task, concepts: Iterable[str], *, where: str, fields: Sequence[str] = _NEEDED) -> str:
    """Why the task cannot be asked: the first of its patterns that no concept matches; "" where it can."""
    names = list(concepts)
    for field in fields:
        pattern = getattr(task, field)
        if pattern and not any(task_module.compiled(pattern).fullmatch(name) for name in names):
            return f"{field} {pattern} matches no concept of {where}"
    return ""


def no_rows(labelled: label_module.Labels) -> str:
    """Why a task whose concepts occur has no row."""
    counts = ", ".join(f"{reason} {count}" for reason, count in labelled.excluded.items() if count)
    return f"no row is left of {labelled.candidates} candidates" + (f" ({counts})" if counts else "")


def ask(
    dataset: meds.MedsDataset,
    code_map: code_maps.CodeMap,
    tasks: Sequence[Task],
    *,
    split: str,
    max_rows_per_task: int,
    max_training_subjects: int,
    seed: int,
    label_folder: str = "",
    producible: Iterable[str] | None = None,
) -> Asked:
    """Label the tasks on the subjects of the split, and on training subjects for what learns, none of them scored.

    Args:
        dataset, code_map: the data and how its codes are read.
        tasks: what to ask.
        split: the split that is scored; several with commas between.
        max_rows_per_task: rows beyond are left out by a hash of (seed, subject, time), so that tasks share prompts.
        max_training_subjects: training subjects, drawn likewise.
        seed: of drawing.
        label_folder: where labels come from (`labels.label_files`), in place of the tasks' index and what goes with it.
        producible: concepts that the model can write; None: any.

    Raises UserError: a split without subjects, no task with a row, wrong label files, a censoring that the data do not
    allow (`labels.label`). What `cometjax.data_end` finds is told in the log.
    """
    scored = subjects_of(dataset, split.split(","))
    training = subjects_of(dataset, ["train"])
    training = training.filter(~training.is_in(scored.implode()))
    keys = label_module.row_hash(training, pl.zeros(len(training), pl.Int64, eager=True), seed)
    training = training.gather(np.sort(np.argsort(keys, kind="stable")[:max_training_subjects]))
    events = task_module.read_events(dataset, pl.concat([scored, training]).unique().to_list(), code_map)
    files = label_module.label_files(label_folder, tasks, dataset) if label_folder else {}
    warnings = [] if files else data_end.warnings(events, tasks)
    for line in warnings:
        logging.warning("%s", line)
    rows, cannot_run = {}, {}
    for task in tasks:
        reason = obstacle(
            task,
            (concept.name for concept in events.concepts),
            where=f"the data (code map {code_map.name!r})",
            fields=("outcome", "until") if files else _NEEDED,
        )
        if producible is not None:
            reason = reason or obstacle(task, producible, where="the model's vocabulary", fields=("outcome", "until"))
        if not reason:
            labelled = _label(events, scored, task, files, seed)
            reason = "" if len(labelled.frame) else no_rows(labelled)
        if reason:
            cannot_run[task.name] = reason
            continue
        drawn = label_module.draw_rows(labelled.frame, max_rows_per_task, seed=seed)
        # Every candidate trains the rival, not one a subject: more to learn from, and each subject weighs the same.
        is_one = task.index_choice == "one" and not files
        everything = dataclasses.replace(task, index_choice="all") if is_one else task
        learned = _label(events, training, everything, files, seed).frame
        excluded = {**labelled.excluded, "over_max_rows": len(labelled.frame) - len(drawn)}
        rows[task.name] = Rows(
            scored=drawn,
            training=learned,
            training_weights_N=TrainingRows.of(learned).weights_N if is_one else np.ones(len(learned)),
            counts={
                "candidates": labelled.candidates,
                "excluded": excluded,
                "observed_in_part": label_module.observed_in_part(drawn, events, task),
            },
        )
    if not rows:
        raise UserError(
            f"no task has a row in split {split}; of {tasks[0].name!r}: {cannot_run[tasks[0].name]}",
            where="tasks",
            fix="check each task's patterns and censoring against this data set's concepts",
        )
    return Asked(events, rows, cannot_run, warnings)


def union(tasks: Sequence[Task], rows: Mapping[str, Rows]) -> tuple[pl.DataFrame, np.ndarray]:
    """The prompts of these tasks' scored rows, each once, sorted: [subject_id, prediction_time, days (the longest
    horizon asked of it)]; and which of the tasks ask it, bool [prompts, tasks]."""
    keys = ["subject_id", "prediction_time"]
    asked = pl.concat(
        [rows[task.name].scored.select(*keys, days=float(task.horizon_days), k=k) for k, task in enumerate(tasks)]
    )
    prompts = asked.group_by(keys).agg(pl.col("days").max(), "k").sort(keys)
    asks_PxK = np.array([[k in own for k in range(len(tasks))] for own in prompts.get_column("k").to_list()], bool)
    return prompts.drop("k"), asks_PxK.reshape(len(prompts), len(tasks))


def _label(
    events: Events, subjects: pl.Series, task: Task, files: Mapping[str, pl.DataFrame], seed: int
) -> label_module.Labels:
    if not files:
        return label_module.label(events, subjects.to_list(), task, seed=seed)
    own = files[task.name].filter(pl.col("subject_id").is_in(subjects.implode()))
    return label_module.Labels(label_module.complete(own, events, task), len(own), {})


def subjects_of(dataset: meds.MedsDataset, splits: Sequence[str]) -> pl.Series:
    """Ids of the subjects of these splits, sorted. Raises UserError where there are none."""
    subjects = dataset.splits.filter(pl.col("split").is_in(list(splits))).get_column("subject_id").sort()
    if subjects.is_empty():
        known = ", ".join(dataset.splits.get_column("split").unique().sort())
        raise UserError(f"no subject in split {','.join(splits)}", where=str(dataset.root), fix=f"splits: {known}")
    return subjects
