"""What is said of a task: scores of the simulated risks, and of the baselines on the same rows."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from cometjax import recalibration, scores, strata
from cometjax.estimators import outcome_concepts
from cometjax.rivals import Prediction
from cometjax.tasks import Events, Task
from data_pipeline.tokenizer import find_event
from data_pipeline.vocabulary import Vocabulary

_GAIN_OVER_CHANCE = {"value": "auroc", "low": "low", "high": "high"}


@dataclasses.dataclass(frozen=True)
class Rows:
    """A task's labelled rows: those scored, and those that its baselines learn from. `training_weights_N`: what each of
    these counts in a mean, so that it is of rows such as the scored ones (of which a subject may have one only)."""

    scored: pl.DataFrame
    training: pl.DataFrame
    training_weights_N: np.ndarray
    counts: Mapping[str, Any]


def score_task(
    task: Task,
    rows: Rows,
    risks: pl.DataFrame,
    events: Events,
    vocabulary: Vocabulary,
    rivals: Mapping[str, Prediction | str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that results.json says of a task.

    `risks`: shrinkage.predictions, one row for each of `rows.scored`, in its order. `rivals`: what
    `cometjax.rivals` predicts for these rows.
    """
    labels_N = rows.scored.get_column("boolean_value").to_numpy().astype(np.float64)
    subjects_N = rows.scored.get_column("subject_id").to_numpy()
    risks_N = risks.get_column("risk").to_numpy()
    reason = scores.undefined(labels_N)
    drawn = scores.resample_subjects(subjects_N, resamples, seed)
    result = {
        **dataclasses.asdict(task),
        **_scores(labels_N, risks_N, drawn),
        "reason": reason,
        "n": len(labels_N),
        "subjects": len(np.unique(subjects_N)),
        "positives": int(labels_N.sum()),
        "prevalence": float(labels_N.mean()) if len(labels_N) else None,
        "mean_risk": float(risks_N.mean()) if len(risks_N) else None,
        "mean_standard_error": risks.get_column("standard_error").mean(),
        "reliability": risks.get_column("reliability").mean(),
        "unshrunk": _unshrunk(labels_N, risks.get_column("unshrunk").to_numpy()),
        "truncated_share": risks.get_column("truncated").mean(),
        # No future of theirs tells of the horizon: what they have is a risk of the time before.
        "unseen_horizon": int((risks.get_column("truncated") >= 1).sum()),
        "outcome_in_vocabulary": outcome_coverage(task, events, vocabulary),
        **rows.counts,
    }
    result["by_history"] = _by_history(rows.scored.get_column("prior_outcome"), labels_N, risks_N, drawn)
    result["strata"] = strata.score(events, rows.scored, risks_N, drawn)
    result["baselines"] = {"prevalence": _prevalence_scores(labels_N, rows, result)} | {
        name: _rival_scores(rival, labels_N, risks_N, drawn) for name, rival in rivals.items()
    }
    return result


def _by_history(
    is_repeat: pl.Series, labels_N: np.ndarray, risks_N: np.ndarray, drawn: scores.Resamples
) -> dict[str, Any]:
    """Scores of the rows whose outcome would be the first, and of those that have had it; {} where all are of a kind.

    Whoever has had something is likelier to have it again: of a task with both, the score of all rows says mostly that.
    """
    repeat_N = is_repeat.to_numpy()
    if repeat_N.all() or not repeat_N.any():
        return {}
    parts = {}
    for name, part_N in (("new_onset", ~repeat_N), ("repeat", repeat_N)):
        own = scores.Resamples(drawn.weights_RxN[:, part_N], drawn.subject_N[part_N])
        auroc = scores.interval(scores.auroc_weighted, labels_N[part_N], risks_N[part_N], own)
        parts[name] = {
            "n": int(part_N.sum()),
            "positives": int(labels_N[part_N].sum()),
            "auroc": auroc.value,
            "low": auroc.low,
            "high": auroc.high,
            "brier": float(np.mean((risks_N[part_N] - labels_N[part_N]) ** 2)),
            "reason": auroc.reason,
        }
    return parts


def _scores(labels_N: np.ndarray, predictions_N: np.ndarray, drawn: scores.Resamples) -> dict[str, Any]:
    auroc = scores.interval(scores.auroc_weighted, labels_N, predictions_N, drawn)
    auprc = scores.interval(scores.auprc_weighted, labels_N, predictions_N, drawn)
    brier = scores.interval(scores.brier_weighted, labels_N, predictions_N, drawn, needs_classes=False)
    table, error = scores.calibration(labels_N, predictions_N, drawn.subject_N)
    return {
        "auroc": auroc.value,
        "low": auroc.low,
        "high": auroc.high,
        "auroc_standard_error": auroc.standard_error,
        "auprc": auprc.value,
        "auprc_low": auprc.low,
        "auprc_high": auprc.high,
        "brier": brier.value,
        "brier_low": brier.low,
        "brier_high": brier.high,
        "ece": error if table else None,
        "calibration": table,
        **{
            f"calibration_{name}": dataclasses.asdict(found)
            for name, found in recalibration.intervals(labels_N, predictions_N, drawn).items()
        },
        "roc": dict(scores.roc_curve(labels_N, predictions_N)),
    }


def _unshrunk(labels_N: np.ndarray, risks_N: np.ndarray) -> dict[str, float | None]:
    """Brier score and calibration slope of the risks as they were before `shrinkage`; None where there is none."""
    ones_1xN = np.ones((1, len(labels_N)))
    slope = float(recalibration.slope_weighted(labels_N, risks_N, ones_1xN)[0]) if len(labels_N) else math.nan
    return {
        "brier": float(np.mean((risks_N - labels_N) ** 2)) if len(labels_N) else None,
        "calibration_slope": None if math.isnan(slope) else slope,
    }


def _prevalence_scores(labels_N: np.ndarray, rows: Rows, of_model: Mapping[str, Any]) -> dict[str, Any]:
    """The constant prediction: the training rows' prevalence. Its AUROC is 0.5, whatever the rows."""
    train_N = rows.training.get_column("boolean_value").to_numpy()
    prevalence = float(np.average(train_N, weights=rows.training_weights_N)) if len(train_N) else None
    brier = float(np.mean((labels_N - prevalence) ** 2)) if prevalence is not None and len(labels_N) else None
    auroc = None if scores.undefined(labels_N) else 0.5
    gain = {name: None if of_model[key] is None else of_model[key] - 0.5 for name, key in _GAIN_OVER_CHANCE.items()}
    gain |= {"reason": of_model["reason"], "standard_error": of_model["auroc_standard_error"]}
    return {
        "auroc": auroc,
        "low": auroc,
        "high": auroc,
        "brier": brier,
        "predicted": prevalence,
        "auroc_gain_of_model": gain,
    }


def _rival_scores(
    rival: Prediction | str, labels_N: np.ndarray, risks_N: np.ndarray, drawn: scores.Resamples
) -> dict[str, Any]:
    if isinstance(rival, str):
        return {"auroc": None, "low": None, "high": None, "brier": None, "ece": None, "reason": rival}
    gain = scores.difference(scores.auroc_weighted, labels_N, risks_N, rival.risks_N, drawn)
    return {
        **_scores(labels_N, rival.risks_N, drawn),
        "reason": scores.undefined(labels_N),
        "auroc_gain_of_model": dataclasses.asdict(gain),
        **rival.about,
    }


def outcome_coverage(task: Task, events: Events, vocabulary: Vocabulary) -> float | None:
    """Share of the recorded outcome events that the model can produce as such."""
    matching = events.matching(task.outcome)
    counted = events.frame.filter(pl.col("concept").is_in(matching)).get_column("concept")
    if not len(counted):
        return None
    reachable = outcome_concepts(vocabulary, task)
    # A rare code is told as a shorter one, or as UNKNOWN: what the tokenizer makes of it must still be the outcome.
    told_as = {index: find_event(events.concepts[index], vocabulary) for index in matching}
    known = [index for index, event in told_as.items() if vocabulary.events[event].concept in reachable]
    return int(counted.is_in(known).sum()) / len(counted)
