"""The check of the estimators: it calls right what is right, finds what is biased, and keeps each step at its time."""

import types

import numpy as np
import pytest

from cometjax import anticipation
from data_pipeline.world.reading import Reader
from experiments import estimator_check
from experiments.estimator_check import TASKS, Estimates

PROMPTS, SAMPLES, DRAWS = 400, 256, 1_000


def lines_of(shift: float) -> list[dict]:
    rng = np.random.default_rng(0)
    true_PxQ = rng.uniform(0.1, 0.9, (PROMPTS, len(TASKS)))
    judged_PxQ = rng.binomial(DRAWS, true_PxQ) / DRAWS
    found = {}
    for name in estimator_check.ESTIMATORS:
        risk_PxQ = rng.binomial(SAMPLES, true_PxQ) / SAMPLES
        error_PxQ = np.sqrt(risk_PxQ * (1 - risk_PxQ) / SAMPLES)
        if name != "monte_carlo":  # not in steps of a sample
            risk_PxQ = true_PxQ + error_PxQ * rng.normal(size=true_PxQ.shape) + shift
        found[name] = Estimates(risk_PxQ, error_PxQ, np.ones_like(risk_PxQ))
    everyone_PxQ = np.ones_like(true_PxQ, bool)
    return estimator_check.compare(found, judged_PxQ, everyone_PxQ, draws=DRAWS, samples=SAMPLES, seed=0)


def test_what_is_unbiased_passes_and_a_bias_of_a_percent_is_found() -> None:
    for line in lines_of(0.0):
        assert line["ks_p"] > 0.001 and abs(line["z_mean"]) < 0.2 and 0.9 < line["z_sd"] < 1.1
        assert line["variance_at_equal_cost"] == pytest.approx(1.0, abs=0.05)
    for line in lines_of(0.01):
        assert line["estimator"] == "monte_carlo" or (
            line["ks_p"] < 1e-3 and line["bias"] == pytest.approx(0.01, abs=2e-3)
        )


def test_steps_of_a_walk_become_futures_with_hazards_at_their_times() -> None:
    """Two prompts of one sample: one with hazards at 1 and 3 minutes, one with none."""
    step = (np.array([0]), np.array([1.0]), np.array([[0.25]]), np.array([[False]]))
    later = (np.array([0]), np.array([3.0]), np.array([[0.5]]), np.array([[True]]))
    (first,), (second,) = estimator_check.as_futures(types.SimpleNamespace(steps=[later, step][::-1]), 2, 1)
    assert len(second.tokens_T) == 0 and first.start_seconds == 60
    for horizon, scope in ((59, 0.0), (60, 0.25), (179, 0.25), (180, 0.75)):
        share, cut = anticipation.contributions([first], np.array([horizon]), suppressed=False)
        assert share[0, 0] == pytest.approx(scope) and not cut.any()
    reach, _ = anticipation.contributions([first], np.array([180]), suppressed=True)
    assert reach[0, 0] == pytest.approx(1 - 0.75 * 0.5)


@pytest.mark.slow
def test_the_estimators_agree_with_the_worlds_true_risks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(estimator_check, "PATIENTS", 2_000)
    asked, vocabulary = estimator_check.histories(tmp_path, 150, seed=3)
    questions = [estimator_check.risks.Question(task.outcome, task.horizon_days) for task in TASKS]
    parts = estimator_check.risks.true_risks_by_part(asked, vocabulary, questions, parts=2, draws=800, seed=99)
    found = estimator_check.estimate(Reader(vocabulary), asked, 128, 0, progress=False)
    chosen = (parts[0] > 0.05) & (parts[0] < 0.95)
    for line in estimator_check.compare(found, parts[1], chosen, draws=400, samples=128, seed=0):
        assert abs(line["z_mean"]) < 4 / np.sqrt(line["prompts"]) + 0.1, line
        # The spread of n standard normal numbers has a standard error of 1 / sqrt(2 n); some outcomes have 37 prompts.
        assert abs(line["z_sd"] - 1) < 4 / np.sqrt(2 * line["prompts"]), line
