"""Scores by sex, by age, and by how often a subject's history has had events of late.

A score over all rows may hide that a model fails those whom it has seen little of. Strata of few subjects are left out,
with the reason: their scores would say nothing, and might say something of somebody.

N rows of a task
"""

import math
from typing import Any

import numpy as np
import polars as pl

from cometjax import count_features, scores
from cometjax.tasks import BEFORE_ALL_TIME_US, Events

# Of fewer subjects nothing is said but how many rows there are.
MIN_SUBJECTS = 20
AGE_BANDS = {"under 45": 45, "45 to 64": 65, "65 to 79": 80, "80 and over": math.inf}
NOT_RECORDED = "not recorded"
_DAYS = 365


def score(
    events: Events, rows: pl.DataFrame, risks_N: np.ndarray, drawn: scores.Resamples
) -> dict[str, dict[str, dict[str, Any]]]:
    """By "sex", "age" and "events_in_last_year", by stratum: rows, and scores where subjects suffice.

    `rows`: [subject_id, prediction_time, boolean_value]. Intervals come from the same resamples as those of all rows.
    Each stratum has n, subjects, positives, prevalence, mean_risk, auroc, low, high, reason.
    """
    labels_N = rows.get_column("boolean_value").to_numpy().astype(np.float64)
    parts = {
        "sex": _sexes(events, rows),
        "age": _age_bands(events, rows),
        "events_in_last_year": _frequencies(events, rows),
    }
    return {
        name: {
            stratum: _score(labels_N, risks_N, drawn, np.array([one == stratum for one in of_row])) for stratum in names
        }
        for name, (names, of_row) in parts.items()
    }


def _score(labels_N: np.ndarray, risks_N: np.ndarray, drawn: scores.Resamples, part_N: np.ndarray) -> dict[str, Any]:
    own = scores.Resamples(drawn.weights_RxN[:, part_N], drawn.subject_N[part_N])
    labels_n, risks_n = labels_N[part_N], risks_N[part_N]
    subjects = len(np.unique(own.subject_N))
    said: dict[str, Any] = {"n": len(labels_n), "subjects": subjects}
    if subjects < MIN_SUBJECTS:
        nothing = dict.fromkeys(("positives", "prevalence", "mean_risk", "auroc", "low", "high"))
        return said | nothing | {"reason": f"fewer than {MIN_SUBJECTS} subjects"}
    auroc = scores.interval(scores.auroc_weighted, labels_n, risks_n, own)
    return said | {
        "positives": int(labels_n.sum()),
        "prevalence": float(labels_n.mean()),
        "mean_risk": float(risks_n.mean()),
        "auroc": auroc.value,
        "low": auroc.low,
        "high": auroc.high,
        "reason": auroc.reason,
    }


def _in_use(names: list[str], of_row: list[str]) -> tuple[list[str], list[str]]:
    return [name for name in [*names, NOT_RECORDED] if name in of_row], of_row


def _sexes(events: Events, rows: pl.DataFrame) -> tuple[list[str], list[str]]:
    """(strata, stratum of each row): as recorded; of several records the first counts."""
    recorded = events.frame.filter(pl.col("concept").is_in(events.in_role("sex")))
    first = recorded.group_by("subject_id", maintain_order=True).agg(pl.col("concept").first())
    found = rows.select("subject_id").join(first, on="subject_id", how="left", maintain_order="left")
    of_row = [
        NOT_RECORDED if index is None else events.concepts[index].name.split("//")[-1]
        for index in found.get_column("concept")
    ]
    return _in_use(sorted(set(of_row) - {NOT_RECORDED}), of_row)


def _age_bands(events: Events, rows: pl.DataFrame) -> tuple[list[str], list[str]]:
    years_N = 10 * count_features.age_decades(events, rows)
    is_birth = pl.col("concept").is_in(events.in_role("birth")) & (pl.col("time_us") > BEFORE_ALL_TIME_US)
    born = set(events.frame.filter(is_birth).get_column("subject_id"))
    of_row = [
        next(name for name, below in AGE_BANDS.items() if years < below) if subject in born else NOT_RECORDED
        for subject, years in zip(rows.get_column("subject_id"), years_N, strict=True)
    ]
    return _in_use(list(AGE_BANDS), of_row)


def _frequencies(events: Events, rows: pl.DataFrame) -> tuple[list[str], list[str]]:
    """Thirds of these rows by their dated events in the year up to the prediction time."""
    if not len(rows):
        return [], []
    dated = Events(events.frame.filter(pl.col("time_us") != BEFORE_ALL_TIME_US), events.concepts, events.end_us)
    earlier = rows.with_columns(pl.col("prediction_time") - pl.duration(days=_DAYS))
    until_N, before_N = (
        np.asarray(count_features.count_history(dated, frame).sum(axis=1)).ravel() for frame in (rows, earlier)
    )
    count_N = (until_N - before_N).astype(np.int64)
    # Equal counts stay together, so thirds may be unequal, and fewer than three.
    edges = np.unique(np.quantile(count_N, [1 / 3, 2 / 3], method="inverted_cdf"))
    third_N = np.searchsorted(edges, count_N, side="left")
    names = {}
    for third in np.unique(third_N):
        low, high = int(count_N[third_N == third].min()), int(count_N[third_N == third].max())
        names[third] = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return _in_use(list(names.values()), [names[third] for third in third_N])
