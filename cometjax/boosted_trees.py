"""Gradient-boosted trees (XGBoost) on counts of concepts, the strongest rival of the usual kind.

N rows   F features (`cometjax.count_features`)

The package is an extra: `pip install -e '.[baselines]'`.
"""

import dataclasses
from importlib import metadata
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse

from cometjax.baselines import TrainingRows
from cometjax.count_features import CountFeatures, window_counts
from cometjax.tasks import Events

MISSING = "xgboost is not installed: pip install -e '.[baselines]'"
DEPTHS = (2, 4)
MAX_ROUNDS = 300
# Rounds without a better cross-validated loss, after which a fold's training stops.
PATIENCE = 20
# For training rows with too few subjects of a class to cross-validate.
FEW_ROUNDS = 30
_SETTINGS = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "eta": 0.1,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "min_child_weight": 2.0,
    "nthread": 2,
    "verbosity": 0,
}


@dataclasses.dataclass(frozen=True)
class BoostedTrees:
    """Trees fitted to a task's training rows."""

    features: CountFeatures
    booster: Any
    depth: int
    rounds: int
    training_rows: int
    training_positives: int

    def predict(self, events: Events, rows: pl.DataFrame) -> np.ndarray:
        """Probability of the outcome for each row, float64 [N]."""
        return self.booster.predict(_matrix(self.features.of(events, rows))).astype(np.float64)


def version() -> str | None:
    """XGBoost's version; None where it is not installed."""
    try:
        import xgboost  # noqa: F401

        return metadata.version("xgboost")
    except (ImportError, metadata.PackageNotFoundError):
        return None


def fit_boosted_trees(events: Events, rows: pl.DataFrame, *, seed: int = 0) -> BoostedTrees | str:
    """Fit on labelled training rows [subject_id, prediction_time, boolean_value]; a reason (str) where that can't be.

    Depth and number of rounds are those with the lowest cross-validated log loss, folds split by subject; each subject
    weighs the same.
    """
    if version() is None:
        return MISSING
    training = TrainingRows.of(rows)
    if reason := training.lacks_a_class():
        return reason
    counts_NxF = window_counts(events, rows)
    features = CountFeatures.choose(counts_NxF, training.subjects_N)
    features_NxF = features.of_counts(counts_NxF, events, rows)
    depth, rounds = _choose(features_NxF, training, seed)
    import xgboost

    everything = _matrix(features_NxF, training)
    booster = xgboost.train(_SETTINGS | {"max_depth": depth, "seed": seed}, everything, num_boost_round=rounds)
    return BoostedTrees(features, booster, depth, rounds, **training.described())


def _choose(features_NxF: scipy.sparse.csr_array, training: TrainingRows, seed: int) -> tuple[int, int]:
    import xgboost

    splits = training.folds(seed)
    matrices = [(_matrix(features_NxF, training, fit), _matrix(features_NxF, training, judge)) for fit, judge in splits]
    least, best = np.inf, (DEPTHS[0], FEW_ROUNDS)
    for depth in DEPTHS if splits else ():
        losses_FoldxT = np.full((len(splits), MAX_ROUNDS), np.inf)
        for fold, (fit, judge) in enumerate(matrices):
            told: dict[str, Any] = {}
            xgboost.train(
                _SETTINGS | {"max_depth": depth, "seed": seed},
                fit,
                num_boost_round=MAX_ROUNDS,
                evals=[(judge, "judge")],
                evals_result=told,
                early_stopping_rounds=PATIENCE,
                verbose_eval=False,
            )
            losses = told["judge"]["logloss"]
            losses_FoldxT[fold, : len(losses)] = losses
            # A fold that stopped early would have had, at best, about the loss that it stopped with.
            losses_FoldxT[fold, len(losses) :] = losses[-1]
        mean_T = losses_FoldxT.mean(axis=0)
        if mean_T.min() < least:
            least, best = float(mean_T.min()), (depth, int(mean_T.argmin()) + 1)
    return best


def _matrix(
    features_NxF: scipy.sparse.csr_array, training: TrainingRows | None = None, chosen: np.ndarray | slice = slice(None)
) -> Any:
    # XGBoost takes what a sparse matrix does not store for missing, and learns which way to send it: a count of 0.
    import xgboost

    features_NxF = scipy.sparse.csr_matrix(features_NxF[chosen])
    if training is None:
        return xgboost.DMatrix(features_NxF, nthread=_SETTINGS["nthread"])
    return xgboost.DMatrix(
        features_NxF,
        label=training.labels_N[chosen],
        weight=training.weights_N[chosen],
        nthread=_SETTINGS["nthread"],
    )
