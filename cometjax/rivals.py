"""What baselines predict for a task's rows: each fitted to the task once, and kept (`cometjax.prediction_cache`).

N rows

"prevalence" is a number and needs no fitting; the others see the same rows and the same history as the model does.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
import polars as pl
from absl import logging

from cometjax import baselines, boosted_trees, fine_tuned, futures, prediction_cache
from cometjax.labels import draw_rows
from cometjax.tasks import Events
from data_pipeline import meds, prompts
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

NAMES = ("prevalence", "logistic_regression", "xgboost", "probe", "fine_tuned")
# Those that are fitted, as reports name them.
TITLES = {
    "logistic_regression": "logistic regression",
    "xgboost": "XGBoost",
    "probe": "linear probe",
    "fine_tuned": "fine-tuned",
}
OF_BACKBONE = ("probe", "fine_tuned")
DEFAULT = ("prevalence", "logistic_regression")
NOT_FOR_AMOUNTS = "baselines answer yes-or-no tasks; this one asks for an amount"
# Raise it whenever a baseline predicts otherwise than before.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A baseline's probabilities for the scored rows (float64 [N], in their order), and how it was fitted."""

    risks_N: np.ndarray
    about: Mapping[str, Any]


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a baseline that there is not, or where all that is asked for is one that is not installed."""
    if unknown := sorted(set(names) - set(NAMES)):
        raise UserError(f"unknown baseline {unknown[0]!r}", where="baselines", fix=f"use some of {', '.join(NAMES)}")
    if set(names) - {"prevalence"} == {"xgboost"} and boosted_trees.version() is None:
        what, _, fix = boosted_trees.MISSING.partition(": ")
        raise UserError(
            what, where="baselines", fix=f"{fix}, or name others too: its place in the results then says so"
        )


@dataclasses.dataclass(frozen=True)
class Rivals:
    """The baselines of an evaluation.

    Attributes:
        names: some of NAMES.
        dataset, vocabulary: of the evaluation.
        events: of all subjects that are scored or learned from.
        seed: of folds and of what is drawn.
        backbone: the evaluated model, for OF_BACKBONE; None where none of them is asked for.
        prompt_tokens: bound on a prompt's tokens, as in simulation.
    """

    names: Sequence[str]
    dataset: meds.MedsDataset
    events: Events
    vocabulary: Vocabulary
    seed: int
    backbone: fine_tuned.Backbone | None = None
    prompt_tokens: int = 512
    _hidden: dict[tuple[int, int], np.ndarray] = dataclasses.field(default_factory=dict)

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
            "probe": self._probe,
            "fine_tuned": self._fine_tuned,
        }[name]
        made = fit(training, scored)
        if isinstance(made, Prediction):
            prediction_cache.save(key, made.risks_N, made.about)
        return made

    def _what_it_depends_on(self, name: str) -> dict[str, Any]:
        parts = {
            "version": VERSION,
            "baseline": name,
            "seed": self.seed,
            "data": prediction_cache.stamp(self.dataset),
            "vocabulary": self.vocabulary.fingerprint,
            "library": boosted_trees.version() if name == "xgboost" else metadata.version("scikit-learn"),
        }
        if name in OF_BACKBONE:
            parts |= {
                "weights": self._model.digest,
                "model": dataclasses.asdict(self._model.shape),
                "settings": dataclasses.asdict(self._model.settings),
                "optimizer": self._model.config.optimizer.to_dict(),
                "tokens": [self.prompt_tokens, self._model.length],
                "jax": [jax.__version__, jax.default_backend()],
            }
        return parts

    @property
    def _model(self) -> fine_tuned.Backbone:
        if self.backbone is None:
            raise ValueError(f"{' and '.join(OF_BACKBONE)} need a backbone")
        return self.backbone

    def _logistic_regression(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        return self._of_counts(baselines.fit_count_model, ("inverse_penalty",), training, scored)

    def _xgboost(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        return self._of_counts(boosted_trees.fit_boosted_trees, ("depth", "rounds"), training, scored)

    def _of_counts(
        self, fit: Callable[..., Any], chosen: Sequence[str], training: pl.DataFrame, scored: pl.DataFrame
    ) -> Prediction | str:
        """What a model of counts predicts; `chosen` are the settings that cross-validation chose for it."""
        model = fit(self.events, training, seed=self.seed)
        if isinstance(model, str):
            return model
        of_rows = {"training_rows": model.training_rows, "training_positives": model.training_positives}
        about = {"features": len(model.features)} | {name: getattr(model, name) for name in chosen} | of_rows
        return Prediction(model.predict(self.events, scored), about)

    def _probe(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        drawn = draw_rows(training, self._model.settings.max_rows, seed=self.seed)
        learned = baselines.TrainingRows.of(drawn)
        if reason := learned.lacks_a_class():
            return reason
        probe = self._model.fit_probe(self._hidden_states(drawn), learned, self.seed)
        about = {"inverse_penalty": probe.inverse_penalty, **learned.described()}
        return Prediction(probe.predict(self._hidden_states(scored)), about)

    def _fine_tuned(self, training: pl.DataFrame, scored: pl.DataFrame) -> Prediction | str:
        drawn = draw_rows(training, self._model.settings.max_rows, seed=self.seed)
        learned = baselines.TrainingRows.of(drawn)
        if reason := learned.lacks_a_class():
            return reason
        tuned = self._model.fine_tune(self._prompts(drawn), learned, self.seed)
        if isinstance(tuned, str):
            return tuned
        about = {"epoch": tuned.epoch, "validation_loss": tuned.validation_loss, **learned.described()}
        return Prediction(tuned.predict(self._prompts(scored)), about)

    def _prompts(self, rows: pl.DataFrame) -> list[np.ndarray]:
        """The tokens that a simulation of each row would begin with."""
        limit = min(self.prompt_tokens, self._model.length)
        built = prompts.build_prompts(self.dataset, rows, self.vocabulary)
        return [futures.start_of(prompt, self.vocabulary, limit).tokens_T for prompt in built]

    def _hidden_states(self, rows: pl.DataFrame) -> np.ndarray:
        """float32 [N, D]; tasks share prompts, and each prompt is read once."""
        keys = list(rows.select("subject_id", pl.col("prediction_time").dt.epoch("us")).iter_rows())
        unread = rows[[index for index, key in enumerate(keys) if key not in self._hidden]]
        if len(unread):
            states_NxD = self._model.hidden_states(self._prompts(unread))
            read = unread.select("subject_id", pl.col("prediction_time").dt.epoch("us")).iter_rows()
            self._hidden.update(zip(read, states_NxD, strict=True))
        return np.stack([self._hidden[key] for key in keys])
