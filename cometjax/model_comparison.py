"""What several evaluations say side by side: scores of every task, and on how many one predictor is the better one.

N rows of a task
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cometjax import amount_results, comparisons, rivals, scores
from cometjax.evaluations import Evaluation
from cometjax.labels import VALUE_COLUMN
from data_pipeline.progress_bar import progress_bar

# A model whose risks need not be stretched has a slope of 1; the bounds within which this is said of it.
SLOPES = (0.8, 1.2)
CONSTANT = "constant"
_METRICS = {
    "auroc": ("predicted_boolean_probability", scores.auroc_weighted),
    "rmsle": ("mean", scores.rmsle_weighted),
    "mae": ("median", scores.mae_weighted),
}


def compare(
    evaluations: Sequence[Evaluation],
    *,
    level: float = comparisons.LEVEL,
    min_events: int = comparisons.MIN_EVENTS,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that comparison.json says (docs/tasks.md).

    Args:
        evaluations: of `evaluations.read`: of the same rows, the smallest model first.
        level: of each family of comparisons (Holm's procedure).
        min_events: tasks with fewer rows that have the outcome are shown, and left out of every count and median.
        progress: show a bar.
    """
    first = evaluations[0]
    events = {name: int(task["positives"]) for name, task in first.asked.items()}
    how: dict[str, Any] = {"level": level, "min_events": min_events}
    pairs = list(itertools.combinations(evaluations, 2))
    between = {}
    for smaller, larger in progress_bar(pairs, desc="compare", unit="pair", enabled=progress):
        gains = {name: model_gain(larger, smaller, name) for name in first.asked}
        between[f"{larger.name} against {smaller.name}"] = comparisons.summarize(gains, events, **how)
    return {
        **how,
        "data": first.results["run"]["dataset"] | {"split": first.results["run"]["options"]["split"]},
        "corpus_fingerprint": first.results["run"]["corpus_fingerprint"],
        "models": {one.name: _describe(one, min_events) for one in evaluations},
        "tasks": {name: _scores_of(evaluations, name) for name in first.asked},
        "cannot_run": dict(first.results["cannot_run"]),
        "against_baselines": {
            one.name: {
                rival: comparisons.summarize(comparisons.gains_over(own, rival), events, **how)
                for rival, own in _answered_by(one).items()
            }
            for one in evaluations
        },
        "between_models": between,
    }


def model_gain(first: Evaluation, second: Evaluation, task: str) -> dict[str, Any]:
    """By how much the first model is better in the task's metric (a scores.Interval), paired by subject."""
    metric = metric_of(first.asked[task])
    column, score = _METRICS[metric]
    rows = first.predictions(task)
    target = VALUE_COLUMN[first.asked[task]["kind"]]
    target_N = rows.get_column(target).to_numpy().astype(np.float64)
    options = first.results["run"]["options"]
    drawn = scores.resample_subjects(rows.get_column("subject_id").to_numpy(), options["resamples"], options["seed"])
    better_N, worse_N = (one.predictions(task).get_column(column).to_numpy() for one in (first, second))
    if metric != "auroc":  # of errors less is better
        better_N, worse_N = worse_N, better_N
    return dataclasses.asdict(
        scores.difference(score, target_N, better_N, worse_N, drawn, needs_classes=metric == "auroc")
    )


def metric_of(task: Mapping[str, Any]) -> str:
    """The key of results.json that a task is compared by: auroc, rmsle or mae."""
    return amount_results.MAIN.get(task["kind"], "auroc")


def counted(evaluation: Evaluation, min_events: int) -> dict[str, Mapping[str, Any]]:
    """The yes-or-no tasks that medians are over: those with enough events and an AUROC."""
    tasks = evaluation.results["tasks"]
    return {name: task for name, task in tasks.items() if task["positives"] >= min_events and task["auroc"] is not None}


def shares(evaluation: Evaluation, min_events: int) -> dict[str, float]:
    """Of the counted tasks whose best possible AUROC is known: (AUROC - 0.5) / (best - 0.5)."""
    found = {
        name: (task.get("best") or {}).get("auroc_share") for name, task in counted(evaluation, min_events).items()
    }
    return {name: share["value"] for name, share in found.items() if share and share["value"] is not None}


def _describe(evaluation: Evaluation, min_events: int) -> dict[str, Any]:
    results = evaluation.results
    run, losses, simulation = results["run"], results["losses"], results["simulation"]
    tasks = counted(evaluation, min_events)
    of_best = shares(evaluation, min_events)
    slopes = [task["calibration_slope"]["value"] for task in tasks.values()]
    known = [slope for slope in slopes if slope is not None]
    return {
        "folder": evaluation.folder.resolve().name,
        "parameters": evaluation.parameters,
        "step": run["step"],
        "tuning_loss": losses.get("tuning_loss"),
        "floor": losses.get("floor"),
        "excess": losses.get("excess"),
        "samples": run["options"]["samples"],
        "estimator": run["options"]["estimator"],
        "futures": simulation["futures"],
        "simulation_s": simulation["wall_s"],
        "counted_tasks": len(tasks),
        "median_auroc": _median([task["auroc"] for task in tasks.values()]),
        "tasks_with_share": len(of_best),
        "median_auroc_share": _median(list(of_best.values())),
        "tasks_with_slope": len(known),
        "slopes_within": sum(SLOPES[0] <= slope <= SLOPES[1] for slope in known),
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _answered_by(evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """By baseline the tasks that it could answer."""
    fitted = [
        name for name in rivals.TITLES if any(name in t["baselines"] for t in evaluation.results["tasks"].values())
    ]
    return {"prevalence": evaluation.asked} | {name: evaluation.results["tasks"] for name in fitted}


def _scores_of(evaluations: Sequence[Evaluation], name: str) -> dict[str, Any]:
    """One line of the page's tables."""
    first = evaluations[0].asked[name]
    metric = metric_of(first)
    said: dict[str, Any] = {
        key: first[key] for key in ("family", "description", "kind", "horizon_days", "n", "subjects", "positives")
    }
    said |= {"metric": metric, "models": {}, "baselines": {}, "best": None}
    for one in evaluations:
        task = one.asked[name]
        said["models"][one.name] = _value(task, metric) | {"reason": task.get("reason", "")}
        best = task.get("best")
        if best:
            said["models"][one.name]["share"] = best.get(f"{metric}_share")
            said["best"] = said["best"] or _value(best, metric) | {"reason": best.get("reason", "")}
    said["baselines"] = _baselines(evaluations, name, metric)
    return said


def _baselines(evaluations: Sequence[Evaluation], name: str, metric: str) -> dict[str, Any]:
    """Scores by title. Baselines of counts are the same whatever the model; those of the backbone are each model's."""
    if metric != "auroc":
        constant = evaluations[0].asked[name]["constant"]
        return {CONSTANT: {"value": constant[metric], "low": None, "high": None, "reason": ""}}
    found: dict[str, Any] = {}
    for rival, title in rivals.TITLES.items():
        for one in evaluations:
            entry = one.asked[name]["baselines"].get(rival)
            if entry is None:
                continue
            is_own = rival in rivals.OF_BACKBONE and len(evaluations) > 1
            found.setdefault(
                f"{title} ({one.name})" if is_own else title, _value(entry, metric) | {"reason": entry["reason"]}
            )
    return found


def _value(scored: Mapping[str, Any], metric: str) -> dict[str, Any]:
    prefix = "" if metric == "auroc" else f"{metric}_"
    return {
        "value": scored.get(metric),
        "low": scored.get(f"{prefix}low"),
        "high": scored.get(f"{prefix}high"),
    }


def by_task(comparison: Mapping[str, Any], keep: Callable[[Mapping[str, Any]], bool]) -> dict[str, Mapping[str, Any]]:
    """The lines of the tables that `keep` is true of."""
    return {name: line for name, line in comparison["tasks"].items() if keep(line)}
