"""Evaluations of models that there are not: real rows of real tasks, scored as ever, with predictions made up."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from cometjax import comparisons, evaluation_files, scores, shrinkage, task_rows
from cometjax.amount_results import score_amounts
from cometjax.labels import VALUE_COLUMN
from cometjax.rivals import Prediction
from cometjax.task_results import score_task
from cometjax.tasks import Task
from data_pipeline import meds
from data_pipeline.corpus import Corpus

RESAMPLES = 60


def ask(root: pathlib.Path, corpus: pathlib.Path, tasks: Sequence[Task], *, split: str, rows: int) -> Any:
    """The tasks' rows on a data set, for `write`."""
    vocabulary = Corpus.open(corpus).vocabulary
    asked = task_rows.ask(
        meds.open_dataset(root),
        vocabulary.code_map,
        tasks,
        split=split,
        max_rows_per_task=rows,
        max_training_subjects=100,
        seed=0,
        producible=[event.concept for event in vocabulary.events],
    )
    return asked, vocabulary, [task for task in tasks if task.name in asked.rows]


def write(out: pathlib.Path, rows: Any, name: str, *, parameters: int, skill: float) -> pathlib.Path:
    """An evaluation's folder of a model whose predictions tell so much of the truth (0 none, 1 most)."""
    asked, vocabulary, tasks = rows
    rng = np.random.default_rng(parameters)
    results: dict[str, Any] = {**_about(name, parameters), "tasks": {}, "amounts": {}}
    risks, amounts = {}, {}
    common = {"resamples": RESAMPLES, "seed": 0}
    for task in tasks:
        own = asked.rows[task.name]
        truth_N = own.scored.get_column(VALUE_COLUMN[task.kind]).to_numpy().astype(np.float64)
        noise_N = rng.normal(size=len(truth_N))
        if task.kind == "binary":
            risk_N = np.round(16 / (1 + np.exp(2 - 3 * skill * truth_N - noise_N))) / 16
            estimates = own.scored.with_columns(
                pl.Series("risk", risk_N), standard_error=pl.lit(0.05), truncated=pl.lit(0.01), samples=pl.lit(16)
            )
            risks[task.name] = shrinkage.predictions(estimates, counted=True)
            rival = Prediction(1 / (1 + np.exp(2 - truth_N - rng.normal(size=len(truth_N)))), {"features": 9})
            said = score_task(
                task, own, risks[task.name], asked.events, vocabulary, {"logistic_regression": rival}, **common
            )
            said["best"] = _best(truth_N, own.scored, rng)
            said["by_samples"] = [
                {
                    "samples": m,
                    "sets": 1,
                    "auroc": said["auroc"],
                    "auroc_low": None,
                    "auroc_high": None,
                    "brier": 0.2 / m,
                }
                for m in ((1, 2, 4) if said["auroc"] is not None else ())
            ]
            results["tasks"][task.name] = said
        else:
            mean_N = truth_N.mean() + skill * (truth_N - truth_N.mean())
            mean_N = np.maximum(0, mean_N + 0.4 * truth_N.std() * noise_N)
            columns = {key: pl.Series(mean_N) for key in ("mean", "median", "low", "high")}
            amounts[task.name] = own.scored.with_columns(
                **columns, standard_error=pl.lit(0.1), truncated=pl.lit(0.0), samples=pl.lit(16)
            )
            said = score_amounts(task, own, amounts[task.name], asked.events, vocabulary, **common)
            results["amounts"][task.name] = said | {"baselines": {}}
    every = results["tasks"] | results["amounts"]
    events = {name: task["positives"] for name, task in every.items()}
    results["comparisons"] = {"prevalence": comparisons.summarize(comparisons.gains_over(every, "prevalence"), events)}
    results["cannot_run"] = dict(asked.cannot_run)
    evaluation_files.write(out, results, risks, amounts, "<html></html>")
    return out


def _best(truth_N: np.ndarray, scored: pl.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    if scores.undefined(truth_N):
        return {"auroc": None, "low": None, "high": None, "auroc_share": None, "reason": "no positive rows"}
    risk_N = 1 / (1 + np.exp(2 - 4 * truth_N - rng.normal(size=len(truth_N))))
    drawn = scores.resample_subjects(scored.get_column("subject_id").to_numpy(), RESAMPLES, 0)
    found = scores.interval(scores.auroc_weighted, truth_N, risk_N, drawn)
    share = {"value": 0.8, "low": 0.7, "high": 0.9, "reason": "", "standard_error": 0.05}
    curve = dict(scores.roc_curve(truth_N, risk_N))
    return {
        "auroc": found.value,
        "low": found.low,
        "high": found.high,
        "reason": "",
        "auroc_share": share,
        "roc": curve,
    }


def _about(name: str, parameters: int) -> dict[str, Any]:
    options = {"samples": 16, "estimator": "monte_carlo", "split": "held_out", "resamples": RESAMPLES, "seed": 0}
    return {
        "run": {
            "workdir": name,
            "step": 100,
            "parameters": parameters,
            "corpus_fingerprint": "0f" * 32,
            "dataset": {"name": "made up", "version": "1", "subjects": 300},
            "options": options | {"max_training_subjects": 100},
        },
        "losses": {"tuning_loss": 1 + 1e4 / parameters, "floor": 0.6, "excess": 0.4 + 1e4 / parameters},
        "simulation": {"futures": 1600, "wall_s": 12.5},
        "cannot_run": {},
    }
