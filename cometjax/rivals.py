"""What baselines predict for a task's rows: each fitted to the task once, and kept (`cometjax.prediction_cache`).

N rows

"prevalence" is a number and needs no fitting; the others see the same rows and the same history as the model does.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import polars as pl
from absl import logging

from cometjax import baselines, boosted_trees, prediction_cache
from cometjax.tasks import Events
from data_pipeline import meds
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

NAMES = ("prevalence", "logistic_regression", "xgboost")
# Those that are fitted, as reports name them.
TITLES = {"logistic_regression": "logistic regression", "xgboost": "XGBoost"}
DEFAULT = ("prevalence", "logistic_regression")
# Raise it whenever a baseline predicts otherwise than before.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A baseline's probabilities for the scored rows (float64 [N], in their order), and how it was fitted."""

    risks_N: np.ndarray
    about: Mapping[str, Any]


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a baseline that there is not."""
    if unknown := sorted(set(names) - set(NAMES)):
        raise UserError(f"unknown baseline {unknown[0]!r}", where="baselines", fix=f"use some of {', '.join(NAMES)}")


@dataclasses.dataclass(frozen=True)
class Rivals:
    """The baselines of an evaluation.

    Attributes:
        names: some of NAMES.
        dataset, vocabulary: of the evaluation.
        events: of all subjects that are scored or learned from.
        seed: of folds and of what is drawn.
    """

    names: Sequence[str]
    dataset: meds.MedsDataset
    events: Events
    vocabulary: Vocabulary
    seed: int

    def __post_init__(self) -> None:
        check_names(self.names)
        if "xgboost" in self.names and boosted_trees.version() is None:
            logging.warning("%s; its place in the results says so", boosted_trees.MISSING)

    def predict(self, training: pl.DataFrame, scored: pl.DataFrame) -> dict[str, Prediction | str]:
        """By name (prevalence apart): predictions for the scored rows, or the reason why there are none.

        Both frames have [subject_id, prediction_time, boolean_value]; the scored labels are not used.
        """
        return {
            name: self._predict(name, training, scored) if len(scored) else "no rows"
            for name in self.names
            if name != "prevalence"
        }

    def _predict(self, name: str, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        if name == "xgboost" and boosted_trees.version() is None:
            return boosted_trees.MISSING
        key = prediction_cache.key(self._what_it_depends_on(name), training, scored)
        if kept := prediction_cache.load(key, len(scored)):
            return Prediction(*kept)
        fit: Callable[..., Prediction | str] = {
            "logistic_regression": self._logistic_regression,
            "xgboost": self._xgboost,
        }[name]
        made = fit(training, scored)
        if isinstance(made, Prediction):
            prediction_cache.save(key, made.risks_N, made.about)
        return made

    def _what_it_depends_on(self, name: str) -> dict[str, Any]:
        return {
            "version": VERSION,
            "baseline": name,
            "library": boosted_trees.version() if name == "xgboost" else metadata.version("scikit-learn"),
            "seed": self.seed,
            "data": prediction_cache.stamp(self.dataset),
            "vocabulary": self.vocabulary.fingerprint,
        }

    def _logistic_regression(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        model = baselines.fit_count_model(self.events, training, seed=self.seed)
        if isinstance(model, str):
            return model
        about = {
            "features": len(model.features),
            "inverse_penalty": model.inverse_penalty,
            "training_rows": model.training_rows,
            "training_positives": model.training_positives,
        }
        return Prediction(model.predict(self.events, scored), about)

    def _xgboost(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        model = boosted_trees.fit_boosted_trees(self.events, training, seed=self.seed)
        if isinstance(model, str):
            return model
        about = {
            "features": len(model.features),
            "depth": model.depth,
            "rounds": model.rounds,
            "training_rows": model.training_rows,
            "training_positives": model.training_positives,
        }
        return Prediction(model.predict(self.events, scored), about)
