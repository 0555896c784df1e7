"""On how many tasks is the model better, worse, or not told apart from a rival, when many are compared at once?

Of 78 comparisons between equals four come out "significant" at 5%. Holm's step-down procedure ("A simple sequentially
rejective multiple test procedure", Scand. J. Statistics 6, 1979) keeps the probability of a single false claim below
the level, whatever the tasks have to do with each other; and they have much, for they share subjects.

T tasks
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.plurals import counted

LEVEL = 0.05
# With fewer rows that have the outcome, an AUROC's interval is too wide, and its law too far from normal, to claim by.
MIN_EVENTS = 100
VERDICTS = ("better", "not_told_apart", "worse")


def holm(p_values_T: np.ndarray) -> np.ndarray:
    """Adjusted p-values, float64 [T]: a claim holds at level a for the whole family where its own is at most a."""
    order_T = np.argsort(p_values_T, kind="stable")
    left_T = len(p_values_T) - np.arange(len(p_values_T))
    adjusted_T = np.empty(len(p_values_T))
    adjusted_T[order_T] = np.minimum(1.0, np.maximum.accumulate(left_T * p_values_T[order_T]))
    return adjusted_T


def p_value(difference: float, standard_error: float) -> float:
    """Two-sided, of no difference, by the normal distribution; 1 where difference and error are both 0.

    The standard error is that of paired bootstrap resamples. Their own tail would not do: of a thousand resamples none
    can tell a p-value of 0.0006, which the first of 78 comparisons needs.
    """
    if standard_error == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference / standard_error) / math.sqrt(2))


def gains_over(tasks: Mapping[str, Mapping[str, Any]], rival: str) -> dict[str, Mapping[str, Any] | None]:
    """By task of results.json's `tasks` or `amounts` what the model gains over a baseline in its main metric.

    None where there is nothing to compare.

    "prevalence" of an amount is the best constant (`cometjax.amount_results`).
    """
    gains = {}
    for name, task in tasks.items():
        if task.get("kind", "binary") == "binary":
            gains[name] = task["baselines"].get(rival, {}).get("auroc_gain_of_model")
        else:
            gains[name] = task["constant"]["gain_of_model"] if rival == "prevalence" else None
    return gains


def summarize(
    gains: Mapping[str, Mapping[str, Any] | None],
    events: Mapping[str, int],
    *,
    level: float = LEVEL,
    min_events: int = MIN_EVENTS,
) -> dict[str, Any]:
    """On which tasks one predictor is better than another.

    Args:
        gains: by task the difference in its metric, positive where the first is better (value, standard_error); None
            where there is none.
        events: by task its rows with the outcome. Tasks with fewer than `min_events` are not compared.
        level: of the whole family.

    Returns better, worse, not_told_apart: names of tasks, by Holm's procedure at `level`; few_events: names of those
    with fewer than min_events; untested: names of the others where there is no difference or no interval; level,
    min_events; adjusted_p by task.
    """
    enough = {name: gain for name, gain in gains.items() if events[name] >= min_events}
    tested = {name: gain for name, gain in enough.items() if gain and gain["standard_error"] is not None}
    p_values_T = np.array([p_value(gain["value"], gain["standard_error"]) for gain in tested.values()])
    adjusted = dict(zip(tested, holm(p_values_T).tolist(), strict=True))
    told = {name: gain["value"] for name, gain in tested.items() if adjusted[name] <= level}
    return {
        "better": [name for name, value in told.items() if value > 0],
        "worse": [name for name, value in told.items() if value < 0],
        "not_told_apart": [name for name in tested if name not in told],
        "few_events": [name for name in gains if name not in enough],
        "untested": [name for name in enough if name not in tested],
        "level": level,
        "min_events": min_events,
        "adjusted_p": adjusted,
    }


def sentence(summary: Mapping[str, Any]) -> str:
    """In words: `better on 3 of 60 tasks, worse on 1, not told apart on 56; 18 of fewer than 100 events left out`.

    Where no task is counted: `compared on no task; 3 of fewer than 100 events left out`.
    """
    counts = {name: len(summary[name]) for name in (*VERDICTS, "few_events", "untested")}
    compared = sum(counts[name] for name in VERDICTS)
    text = "compared on no task"
    if compared:
        text = f"better on {counts['better']} of {counted(compared, 'task')}, worse on {counts['worse']}"
        text += f", not told apart on {counts['not_told_apart']}"
    if counts["few_events"]:
        text += f"; {counts['few_events']} of fewer than {summary['min_events']} events left out"
    return text + (f"; {counts['untested']} cannot be compared" if counts["untested"] else "")
