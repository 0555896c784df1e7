"""Rivals on the same rows and history: prevalence, and logistic regression on counts of concepts.

N rows   C concepts   F features

The history of a row is what the prompt holds: every event up to and including its prediction time.
"""

import dataclasses

import numpy as np
import polars as pl
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from cometjax.tasks import BEFORE_ALL_TIME_US, MICROSECONDS_PER_DAY, Events

MICROSECONDS_PER_DECADE = 3652.5 * MICROSECONDS_PER_DAY
# A concept that fewer training subjects have cannot be told from noise.
MIN_SUBJECTS_PER_FEATURE = 3
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4


@dataclasses.dataclass(frozen=True)
class CountModel:
    """A fitted logistic regression on features of the history: log1p counts of `concepts`, then age in decades."""

    concepts: np.ndarray
    regression: LogisticRegression
    inverse_penalty: float
    training_rows: int
    training_positives: int

    def predict(self, events: Events, rows: pl.DataFrame) -> np.ndarray:
        """Probability of the outcome for each row, float64 [N]."""
        features_NxF = _features(events, rows, self.concepts)
        return self.regression.predict_proba(features_NxF)[:, 1]


def fit_count_model(events: Events, rows: pl.DataFrame, *, seed: int = 0) -> CountModel | str:
    """Fit on labelled training rows [subject_id, prediction_time, boolean_value]; a reason (str) where that can't be.

    Each subject weighs the same however many rows it has. The penalty is the one with the lowest cross-validated log
    loss, folds split by subject.
    """
    labels_N = rows.get_column("boolean_value").to_numpy().astype(bool)
    subjects_N = rows.get_column("subject_id").to_numpy()
    positives = int(labels_N.sum())
    if positives in (0, len(labels_N)):
        return f"the training rows lack a class ({positives} positive of {len(labels_N)})"
    concepts = _common_concepts(count_history(events, rows), subjects_N)
    features_NxF = _features(events, rows, concepts)
    _, inverse_N, counts_S = np.unique(subjects_N, return_inverse=True, return_counts=True)
    weights_N = 1.0 / counts_S[inverse_N]
    weights_N *= len(weights_N) / weights_N.sum()
    penalty = _choose_penalty(features_NxF, labels_N, weights_N, subjects_N, seed)
    regression = _fit(features_NxF, labels_N, weights_N, penalty)
    return CountModel(concepts, regression, penalty, len(labels_N), positives)


def count_history(events: Events, rows: pl.DataFrame) -> scipy.sparse.csr_array:
    """How often each concept occurs at or before each row's prediction time, int64 sparse [N, C] in row order.

    Each event is counted once, at the first row that sees it, and the counts are then summed along the subject's rows:
    memory grows with events + counts, not with events x rows.
    """
    times = rows.select(
        "subject_id", pl.col("prediction_time").cast(pl.Int64).alias("time_us"), row=pl.int_range(pl.len())
    ).sort("subject_id", "time_us")
    first_seen = (
        events.frame.filter(pl.col("subject_id").is_in(times.get_column("subject_id").implode()))
        .sort("time_us")
        .join_asof(
            times.with_columns(position=pl.int_range(pl.len())).sort("time_us"),
            on="time_us",
            by="subject_id",
            strategy="forward",
            check_sortedness=False,
        )
        .drop_nulls("position")
        .group_by("position", "concept")
        .len()
    )
    shape = (len(rows), len(events.concepts))
    where = (first_seen.get_column("position").to_numpy(), first_seen.get_column("concept").to_numpy().astype(np.int64))
    increments_NxC = scipy.sparse.csr_array((first_seen.get_column("len").to_numpy().astype(np.int64), where), shape)
    counts_NxC = _running_sums(times.get_column("subject_id").to_numpy()) @ increments_NxC
    # From (subject, time) order back to the order of `rows`.
    return scipy.sparse.csr_array(counts_NxC[np.argsort(times.get_column("row").to_numpy())])


def _running_sums(sorted_subjects_N: np.ndarray) -> scipy.sparse.csr_array:
    """Sparse [N, N]: row i adds up the rows of its own subject up to and including i."""
    rows = len(sorted_subjects_N)
    starts_N = np.searchsorted(sorted_subjects_N, sorted_subjects_N, side="left")
    lengths_N = np.arange(rows) - starts_N + 1
    offsets = np.concatenate(([0], np.cumsum(lengths_N)))
    columns = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_N) + np.repeat(starts_N, lengths_N)
    return scipy.sparse.csr_array((np.ones(len(columns), np.int64), columns, offsets), (rows, rows))


def _common_concepts(counts_NxC: scipy.sparse.csr_array, subjects_N: np.ndarray) -> np.ndarray:
    """Concepts that enough training subjects have in some row's history, ascending."""
    present = scipy.sparse.coo_array(counts_NxC)
    pairs = np.unique(np.stack([present.col.astype(np.int64), subjects_N[present.row]]), axis=1)
    concepts, subjects = np.unique(pairs[0], return_counts=True)
    enough = concepts[subjects >= MIN_SUBJECTS_PER_FEATURE]
    return enough if len(enough) else concepts


def _features(events: Events, rows: pl.DataFrame, concepts: np.ndarray) -> scipy.sparse.csr_array:
    counts_NxC = count_history(events, rows)[:, concepts].astype(np.float64)
    counts_NxC.data = np.log1p(counts_NxC.data)
    return scipy.sparse.csr_array(scipy.sparse.hstack([counts_NxC, _age_decades(events, rows)[:, None]]))


def _age_decades(events: Events, rows: pl.DataFrame) -> np.ndarray:
    """Age at the prediction time in decades, float64 [N]; 0 where no birth is recorded."""
    is_birth = pl.col("concept").is_in(events.in_role("birth")) & (pl.col("time_us") > BEFORE_ALL_TIME_US)
    births = events.frame.filter(is_birth).group_by("subject_id").agg(birth_us=pl.col("time_us").min())
    joined = rows.join(births, on="subject_id", how="left", maintain_order="left")
    age = (pl.col("prediction_time").cast(pl.Int64) - pl.col("birth_us")) / MICROSECONDS_PER_DECADE
    return joined.select(age.fill_null(0.0)).to_series().to_numpy()


def _choose_penalty(
    features_NxF: scipy.sparse.csr_array, labels_N: np.ndarray, weights_N: np.ndarray, subjects_N: np.ndarray, seed: int
) -> float:
    classes = [len(np.unique(subjects_N[labels_N == value])) for value in (False, True)]
    if min(classes) < FOLDS:
        # Too few subjects to tell penalties apart: a strong one, which a handful of positives can bear.
        return INVERSE_PENALTIES[1]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    splits = list(folds.split(features_NxF, labels_N, subjects_N))
    losses = []
    for penalty in INVERSE_PENALTIES:
        predictions_N = np.zeros(len(labels_N))
        for fit, test in splits:
            regression = _fit(features_NxF[fit], labels_N[fit], weights_N[fit], penalty)
            predictions_N[test] = regression.predict_proba(features_NxF[test])[:, 1]
        losses.append(log_loss(labels_N, predictions_N, sample_weight=weights_N, labels=[False, True]))
    return INVERSE_PENALTIES[int(np.argmin(losses))]


def _fit(
    features_NxF: scipy.sparse.csr_array, labels_N: np.ndarray, weights_N: np.ndarray, penalty: float
) -> LogisticRegression:
    # liblinear would penalise the intercept, which at low prevalence biases every probability upwards.
    regression = LogisticRegression(C=penalty, solver="lbfgs", max_iter=2000, tol=1e-4)
    return regression.fit(features_NxF, labels_N, sample_weight=weights_N)
