"""What is said of a task's parts."""

import numpy as np
import polars as pl
import pytest

from cometjax import scores, task_results


def test_first_outcomes_and_repeated_ones_are_scored_apart() -> None:
    is_repeat_N = np.array([True] * 4 + [False] * 8)
    labels_N = np.array([1, 1, 1, 0] + [1, 0] * 4, float)
    # Repeats are foretold well, first outcomes the wrong way round.
    risks_N = np.array([0.9, 0.8, 0.9, 0.1] + [0.2, 0.6] * 4)
    drawn = scores.resample_subjects(np.arange(12), 50, 0)
    parts = task_results._by_history(pl.Series(is_repeat_N), labels_N, risks_N, drawn)
    told = {name: (own["n"], own["positives"], own["auroc"]) for name, own in parts.items()}
    assert told == {"new_onset": (8, 4, 0.0), "repeat": (4, 3, 1.0)}
    assert parts["repeat"]["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.1**2 + 0.1**2) / 4)
    assert parts["new_onset"]["low"] is not None and parts["repeat"]["low"] is None  # one subject without
    for alike in (np.ones(12, bool), np.zeros(12, bool)):
        assert task_results._by_history(pl.Series(alike), labels_N, risks_N, drawn) == {}
