"""Strata hold every row once, are scored as a subset is, and are silent where subjects are few."""

import datetime

import numpy as np
import polars as pl
import pytest

from cometjax import scores, strata, tasks
from data_pipeline import code_maps, meds

BORN = {1: 1990, 2: 1960, 3: 1930}
NOW = datetime.datetime(2020, 1, 1)


@pytest.fixture
def events(write_meds) -> tasks.Events:
    """60 subjects: two in three women, of three ages; subject s has s % 10 events in the year before 2020."""
    rows = []
    for subject in range(60):
        if subject:
            rows.append((subject, datetime.datetime(BORN[1 + subject % 3], 6, 1), "MEDS_BIRTH", None))
        if subject != 1:
            rows.append((subject, None, "GENDER//F" if subject % 3 else "GENDER//M", None))
        rows += [(subject, NOW - datetime.timedelta(days=30 * k + 5), "X", None) for k in range(subject % 10)]
        rows += [(subject, NOW - datetime.timedelta(days=1000 + k), "X", None) for k in range(3)]
    order = [row for row in rows if row[1] is None] + [row for row in rows if row[1] is not None]
    order.sort(key=lambda row: (row[0], row[1] or datetime.datetime(1900, 1, 1)))
    root = write_meds({"held_out/0": order}, dict.fromkeys(range(60), "held_out"))
    return tasks.read_events(meds.open_dataset(root), list(range(60)), code_maps.named("generic"))


def scored(events: tasks.Events) -> tuple[dict, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"subject_id": np.arange(60), "boolean_value": rng.random(60) < 0.4}).with_columns(
        prediction_time=pl.lit(NOW).cast(pl.Datetime("us"))
    )
    risks_N = rng.random(60)
    drawn = scores.resample_subjects(np.arange(60), 100, 0)
    return strata.score(events, rows, risks_N, drawn), rows["boolean_value"].to_numpy().astype(float), risks_N


def test_every_row_is_in_one_stratum_of_each_kind(events) -> None:
    found, _, _ = scored(events)
    for parts in found.values():
        assert sum(own["n"] for own in parts.values()) == 60
    assert {name: own["n"] for name, own in found["sex"].items()} == {"F": 39, "M": 20, "not recorded": 1}
    assert {name: own["n"] for name, own in found["age"].items()} == {
        "under 45": 19,
        "45 to 64": 20,
        "80 and over": 20,
        "not recorded": 1,
    }
    # Of ten counts a third each, ties together; what is older than a year does not count.
    assert {name: own["n"] for name, own in found["events_in_last_year"].items()} == {
        "0 to 3": 24,
        "4 to 6": 18,
        "7 to 9": 18,
    }


def test_a_stratum_is_scored_as_its_rows_are_and_a_small_one_is_not(events) -> None:
    found, labels_N, risks_N = scored(events)
    women_N = np.array([subject % 3 > 0 and subject != 1 for subject in range(60)])
    women = found["sex"]["F"]
    assert women["positives"] == labels_N[women_N].sum() and women["mean_risk"] == pytest.approx(
        risks_N[women_N].mean()
    )
    expected = scores.auroc_weighted(labels_N[women_N], risks_N[women_N], np.ones((1, 39)))[0]
    assert women["auroc"] == pytest.approx(expected) and women["low"] < expected < women["high"]
    for small in (found["age"]["under 45"], found["sex"]["not recorded"]):
        assert small["positives"] is None and small["auroc"] is None and small["reason"] == "fewer than 20 subjects"


def test_few_subjects_are_few_however_many_rows_they_have(events) -> None:
    of_row_N = np.repeat(np.arange(5), 12)
    rows = pl.DataFrame({"subject_id": of_row_N, "boolean_value": np.arange(60) % 2 == 0}).with_columns(
        prediction_time=pl.lit(NOW).cast(pl.Datetime("us"))
    )
    found = strata.score(events, rows, np.linspace(0, 1, 60), scores.resample_subjects(of_row_N, 20, 0))
    assert any(own["n"] >= strata.MIN_SUBJECTS for parts in found.values() for own in parts.values())
    for parts in found.values():
        for own in parts.values():
            assert own["positives"] is None and own["mean_risk"] is None and own["reason"] == "fewer than 20 subjects"
