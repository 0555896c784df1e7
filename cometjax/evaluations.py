"""Evaluations read back from the folders that `cometjax.evaluate` wrote, and the refusal to compare unlike ones.

What is compared must have been asked the same: the same tasks, of the same rows of the same data set, through the same
vocabulary; and baselines must have learned from as many subjects. Samples, estimators and token bounds may differ: they
are how a model answers.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from cometjax.estimators import KEYS
from cometjax.tasks import Task
from data_pipeline.errors import UserError
from data_pipeline.plurals import counted

_PARTS = ("run", "losses", "simulation", "tasks", "amounts", "cannot_run", "comparisons")
_TASK_FIELDS = tuple(field.name for field in dataclasses.fields(Task))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's evaluation.

    Attributes:
        name: of the model, on the page.
        folder: that `cometjax.evaluate` wrote.
        results: its results.json.
    """

    name: str
    folder: pathlib.Path
    results: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Of the model's decoder."""
        return int(self.results["run"]["parameters"])

    @functools.cached_property
    def asked(self) -> dict[str, Mapping[str, Any]]:
        """By name the results of all tasks that ran."""
        return self.results["tasks"] | self.results["amounts"]

    def labels(self, task: str) -> pl.DataFrame:
        """The task's scored rows in order, [subject_id, prediction_time, the label]."""
        return self._table("labels", task)

    def predictions(self, task: str) -> pl.DataFrame:
        """The same rows with what the model predicts."""
        return self._table("predictions", task)

    def _table(self, kind: str, task: str) -> pl.DataFrame:
        path = self.folder / kind / f"{task}.parquet"
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError("cannot be read", where=str(path), fix="evaluate again") from error


def read(folders: Sequence[pathlib.Path], names: Sequence[str] = ()) -> list[Evaluation]:
    """The evaluations in these folders, the smallest model first; `names`: of the models, else by their workdirs.

    Raises UserError: no evaluation's folder, one that an older version wrote, one given twice, wrong names, and as
    `refuse_unlike`.
    """
    if not folders:
        raise UserError("no folder", where="--evaluations", fix="give folders that python -m cometjax.evaluate wrote")
    if names and (len(names) != len(folders) or len(set(names)) < len(names)):
        raise UserError(
            f"{len(names)} names for {len(folders)} evaluations, {len(set(names))} of them different",
            where="--names",
            fix="give one of its own to each evaluation",
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a folder is given twice", where="--evaluations", fix="give each once")
    results = [_read_results(folder) for folder in folders]
    names = names or _names(folders, results)
    found = [Evaluation(*parts) for parts in zip(names, folders, results, strict=True)]
    found.sort(key=lambda evaluation: evaluation.parameters)
    for other in found[1:]:
        refuse_unlike(found[0], other)
    return found


def refuse_unlike(first: Evaluation, other: Evaluation) -> None:
    """Raise UserError, with both values, unless both models were asked the same."""
    settings = [_settings(evaluation) for evaluation in (first, other)]
    for what, value in settings[0].items():
        if value != settings[1][what]:
            _refuse(first, other, what, value, settings[1][what])
    for name in sorted({*settings_of_tasks(first), *settings_of_tasks(other)}):
        own, theirs = (settings_of_tasks(evaluation).get(name, "not asked") for evaluation in (first, other))
        if own != theirs:
            differing = _first_difference(own, theirs)
            _refuse(first, other, f"task {name!r}", *differing)
    for name in first.asked:
        _refuse_other_rows(first, other, name)


def settings_of_tasks(evaluation: Evaluation) -> dict[str, Any]:
    """By task what it asks, or why it could not be asked."""
    asked = {name: {key: task[key] for key in _TASK_FIELDS} for name, task in evaluation.asked.items()}
    return asked | {name: f"cannot run ({reason})" for name, reason in evaluation.results["cannot_run"].items()}


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    run = evaluation.results["run"]
    data = run["dataset"]
    return {
        "the corpus": str(run["corpus_fingerprint"])[:16],
        "the data set": f"{data['name']} {data['version']} of {data['subjects']:,} subjects",
        "max_training_subjects": run["options"]["max_training_subjects"],
        "seed": run["options"]["seed"],
    }


def _first_difference(own: Any, theirs: Any) -> tuple[Any, Any]:
    if isinstance(own, str) or isinstance(theirs, str):
        return tuple(one if isinstance(one, str) else "asked" for one in (own, theirs))  # type: ignore[return-value]
    key = next(key for key in own if own[key] != theirs[key])
    return f"{key} {own[key]!r}", f"{key} {theirs[key]!r}"


def _refuse_other_rows(first: Evaluation, other: Evaluation, name: str) -> None:
    own, theirs = first.labels(name), other.labels(name)
    if own.equals(theirs):
        return
    shared = len(own.join(theirs, on=own.columns, nulls_equal=True)) if own.columns == theirs.columns else 0
    counts = [
        f"{counted(len(rows), 'row')} of {counted(rows.get_column(KEYS[0]).n_unique(), 'subject')}"
        for rows in (own, theirs)
    ]
    _refuse(first, other, f"task {name!r}, {shared:,} rows in common", *counts)


def _refuse(first: Evaluation, other: Evaluation, what: str, own: Any, theirs: Any) -> None:
    raise UserError(
        f"differ in {what}: {own} and {theirs}",
        where=f"{first.folder} and {other.folder}",
        fix="evaluate both models on the same corpus, data, tasks, seed and rows",
    )


def _read_results(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            "is no evaluation's folder", where=str(folder), fix="give folders that python -m cometjax.evaluate wrote"
        ) from error
    missing = [part for part in _PARTS if part not in results] if isinstance(results, dict) else list(_PARTS)
    for task in () if missing else (*results["tasks"].values(), *results["amounts"].values()):
        # Of the newest parts of a task's results.
        if "auroc_standard_error" not in task and "gain_of_model" not in task.get("constant", {}):
            missing = [f"a standard error of task {task.get('name')!r}"]
    if missing:
        raise UserError(f"lacks {missing[0]}", where=str(path), fix="evaluate again with this version of cometjax")
    return dict(results)


def _names(folders: Sequence[pathlib.Path], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The workdirs' names, or the folders' where those are not all different, or their paths."""
    for names in (
        [str(one["run"]["workdir"]) for one in results],
        [folder.resolve().name for folder in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
