"""Logistic regression on counts of concepts, the plainest rival that has learned a task from its labels.

N rows   F features (`cometjax.count_features`)
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cometjax.count_features import CountFeatures, window_counts
from cometjax.tasks import Events

# Else imported where something is fitted: it takes half a second, and most commands that import this fit nothing.
if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# From strong to weak.
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """Labelled rows to learn from: labels, subjects, and weights of mean 1 with which each subject counts the same."""

    labels_N: np.ndarray
    subjects_N: np.ndarray
    weights_N: np.ndarray

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "TrainingRows":
        """Of a label frame [subject_id, boolean_value, ...]."""
        subjects_N = rows.get_column("subject_id").to_numpy()
        return cls.weighted(rows.get_column("boolean_value").to_numpy().astype(bool), subjects_N)

    @classmethod
    def weighted(cls, labels_N: np.ndarray, subjects_N: np.ndarray) -> "TrainingRows":
        """Of labels and subjects; the weights follow."""
        if not len(subjects_N):
            return cls(labels_N, subjects_N, np.zeros(0))
        _, inverse_N, counts_S = np.unique(subjects_N, return_inverse=True, return_counts=True)
        weights_N = 1.0 / counts_S[inverse_N]
        return cls(labels_N, subjects_N, weights_N * (len(weights_N) / weights_N.sum()))

    def part(self, chosen: np.ndarray) -> "TrainingRows":
        """Some of the rows, weighted anew."""
        return self.weighted(self.labels_N[chosen], self.subjects_N[chosen])

    def lacks_a_class(self) -> str:
        """Why nothing can be learned from them; "" where something can."""
        positives = int(self.labels_N.sum())
        if positives in (0, len(self.labels_N)):
            return f"the training rows lack a class ({positives} positive of {len(self.labels_N)})"
        return ""

    def folds(self, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(rows to fit, rows to judge), no subject in both; empty where a class has too few subjects to tell."""
        classes = [len(np.unique(self.subjects_N[self.labels_N == value])) for value in (False, True)]
        if min(classes) < FOLDS:
            return []
        from sklearn.model_selection import StratifiedGroupKFold

        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        return list(splitter.split(np.zeros((len(self.labels_N), 1)), self.labels_N, self.subjects_N))

    def loss(self, predictions_N: np.ndarray) -> float:
        """Weighted log loss of predictions."""
        from sklearn.metrics import log_loss

        return log_loss(self.labels_N, predictions_N, sample_weight=self.weights_N, labels=[False, True])

    def described(self) -> dict[str, int]:
        """What results say of them."""
        return {"training_rows": len(self.labels_N), "training_positives": int(self.labels_N.sum())}


@dataclasses.dataclass(frozen=True)
class CountModel:
    """A logistic regression fitted to a task's training rows."""

    features: CountFeatures
    regression: "LogisticRegression"
    inverse_penalty: float
    training_rows: int
    training_positives: int

    def predict(self, events: Events, rows: pl.DataFrame) -> np.ndarray:
        """Probability of the outcome for each row, float64 [N]."""
        return self.regression.predict_proba(self.features.of(events, rows))[:, 1]


def fit_count_model(events: Events, rows: pl.DataFrame, *, seed: int = 0) -> CountModel | str:
    """Fit on labelled training rows [subject_id, prediction_time, boolean_value]; else the reason (str)."""
    training = TrainingRows.of(rows)
    if reason := training.lacks_a_class():
        return reason
    counts_NxF = window_counts(events, rows)
    features = CountFeatures.choose(counts_NxF, training.subjects_N)
    regression, penalty = fit_regression(features.of_counts(counts_NxF, events, rows), training, seed)
    return CountModel(features, regression, penalty, **training.described())


def fit_regression(features_NxF: Any, training: TrainingRows, seed: int) -> "tuple[LogisticRegression, float]":
    """(logistic regression, its C) on any features, dense or sparse.

    C is the one with the lowest cross-validated log loss, folds split by subject, on the way from strong penalties to
    weak ones until the loss rises: the weakest, which never won, would cost more than all others together.
    """
    splits = training.folds(seed)
    # Too few subjects to tell penalties apart: a strong one, which a handful of positives can bear.
    best = INVERSE_PENALTIES[1]
    least = np.inf
    paths = [_path(features_NxF[fit], training, fit) for fit, _ in splits]
    for penalty in INVERSE_PENALTIES if splits else ():
        predictions_N = np.zeros(len(training.labels_N))
        for path, (_, judge) in zip(paths, splits, strict=True):
            predictions_N[judge] = next(path).predict_proba(features_NxF[judge])[:, 1]
        loss = training.loss(predictions_N)
        if loss > least:
            break
        best, least = penalty, loss
    everything = np.arange(len(training.labels_N))
    regression = next(
        fitted for fitted in _path(features_NxF, training, everything) if fitted.get_params()["C"] == best
    )
    return regression, best


def _path(features_NxF: Any, training: TrainingRows, chosen: np.ndarray) -> "Iterator[LogisticRegression]":
    """The regression under one penalty after another, each begun where the last ended."""
    from sklearn.linear_model import LogisticRegression

    # liblinear would penalise the intercept, which at low prevalence biases every probability upwards.
    regression = LogisticRegression(solver="lbfgs", max_iter=2000, tol=1e-4, warm_start=True)
    for penalty in INVERSE_PENALTIES:
        regression.set_params(C=penalty)
        yield regression.fit(features_NxF, training.labels_N[chosen], sample_weight=training.weights_N[chosen])
