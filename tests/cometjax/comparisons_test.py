"""Claims over many tasks are few where nothing differs, and found where something does."""

import numpy as np
import pytest

from cometjax import comparisons


def test_holms_adjusted_p_values_of_his_procedure() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, none below the one before.
    adjusted_T = comparisons.holm(np.array([0.03, 0.01, 0.04, 0.02]))
    np.testing.assert_allclose(adjusted_T, [0.06, 0.04, 0.06, 0.06])
    assert comparisons.holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert comparisons.holm(np.zeros(0)).tolist() == []


def task(value: float | None, error: float | None) -> dict:
    return {"baselines": {"rival": {"auroc_gain_of_model": {"value": value, "standard_error": error}}}}


def summarize(tasks: dict, events: dict | None = None) -> dict:
    enough = dict.fromkeys(tasks, comparisons.MIN_EVENTS)
    return comparisons.summarize(comparisons.gains_over(tasks, "rival"), enough | (events or {}))


def test_a_summary_names_each_task_once() -> None:
    tasks = {
        "much better": task(0.2, 0.02),
        "much worse": task(-0.2, 0.02),
        "unclear": task(0.05, 0.03),
        "no interval": task(0.3, None),
        "no rival": {"baselines": {"rival": {"reason": "no rows"}}},
        "rare": task(0.4, 0.02),
    }
    summary = summarize(tasks, {"rare": comparisons.MIN_EVENTS - 1})
    assert (summary["better"], summary["worse"], summary["not_told_apart"]) == (
        ["much better"],
        ["much worse"],
        ["unclear"],
    )
    assert summary["untested"] == ["no interval", "no rival"]
    assert summary["adjusted_p"]["unclear"] == pytest.approx(0.0956, abs=1e-4)
    assert summary["few_events"] == ["rare"]  # however large the difference
    said = "better on 1 of 3 tasks, worse on 1, not told apart on 1; 1 of fewer than 100 events left out"
    assert comparisons.sentence(summary) == said + "; 2 cannot be compared"
    few = summarize(tasks, dict.fromkeys(tasks, comparisons.MIN_EVENTS - 1))
    assert comparisons.sentence(few) == f"compared on no task; {len(tasks)} of fewer than 100 events left out"
    assert comparisons.sentence(summarize({"one": task(0.3, 0.01)})).startswith("better on 1 of 1 task, worse on 0")


def test_an_amount_is_compared_with_the_best_constant_alone() -> None:
    gain = {"value": 0.3, "standard_error": 0.01}
    amounts = {"stay": {"kind": "duration", "constant": {"gain_of_model": gain}, "baselines": {}}}
    assert comparisons.gains_over(amounts, "prevalence") == {"stay": gain}
    assert comparisons.gains_over(amounts, "xgboost") == {"stay": None}


def test_between_equals_a_family_has_a_false_claim_one_time_in_twenty() -> None:
    rng, false_claims = np.random.default_rng(0), 0
    for _ in range(400):
        tasks = {str(index): task(float(rng.normal(0, 0.03)), 0.03) for index in range(78)}
        summary = summarize(tasks)
        false_claims += bool(summary["better"] or summary["worse"])
    assert 0.02 < false_claims / 400 < 0.085


def test_identical_predictions_are_not_told_apart() -> None:
    assert comparisons.p_value(0.0, 0.0) == 1.0
    assert comparisons.p_value(1.96 * 0.1, 0.1) == pytest.approx(0.05, abs=1e-3)
