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

LEVEL = 0.05


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


def summarize(tasks: Mapping[str, Mapping[str, Any]], rival: str, *, level: float = LEVEL) -> dict[str, Any]:
    """How the model's AUROC stands to that of a baseline over the tasks.

    `tasks`: results.json's; of each the baseline's `auroc_gain_of_model` (value, standard_error) is read.

    Returns better, worse, not_told_apart: names of tasks, by Holm's procedure at `level`; untested: names of those
    where there is no difference or no interval; level; adjusted_p by task.
    """
    gains = {name: task["baselines"][rival].get("auroc_gain_of_model") for name, task in tasks.items()}
    tested = {name: gain for name, gain in gains.items() if gain and gain["standard_error"] is not None}
    p_values_T = np.array([p_value(gain["value"], gain["standard_error"]) for gain in tested.values()])
    adjusted = dict(zip(tested, holm(p_values_T).tolist(), strict=True))
    told = {name: gain["value"] for name, gain in tested.items() if adjusted[name] <= level}
    return {
        "better": [name for name, value in told.items() if value > 0],
        "worse": [name for name, value in told.items() if value < 0],
        "not_told_apart": [name for name in tested if name not in told],
        "untested": [name for name in gains if name not in tested],
        "level": level,
        "adjusted_p": adjusted,
    }


def sentence(summary: Mapping[str, Any]) -> str:
    """The summary in words: `better on 3 of 78 tasks, worse on 1, not told apart on 70, untested 4`."""
    counts = {name: len(summary[name]) for name in ("better", "worse", "not_told_apart", "untested")}
    text = f"better on {counts['better']} of {sum(counts.values())} tasks, worse on {counts['worse']}"
    text += f", not told apart on {counts['not_told_apart']}"
    return text + (f", untested {counts['untested']}" if counts["untested"] else "")
