"""Cohorts: which events and subjects stay, and that every row and subject that does not is counted once."""

import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import build_config, code_maps
from data_pipeline.cohort import Cohort, select
from data_pipeline.columns import NO_TIME, Columns, to_columns
from data_pipeline.errors import UserError

BIRTH = datetime.datetime(1980, 1, 1)
VISIT = "ENCOUNTER_START//OUTPATIENT"
FACE_TO_FACE = build_config.get_config().cohort.face_to_face


def columns_of(*subjects, birth=BIRTH) -> Columns:
    """Subjects 0, 1, ..., each from its (date, code) rows, with sex and birth before them."""
    rows = []
    for number, own in enumerate(subjects):
        rows.append((number, None, "SEX//F", None))
        if birth is not None:
            rows.append((number, birth, "MEDS_BIRTH", None))
        rows += [(number, datetime.datetime.fromisoformat(date), code, None) for date, code in sorted(own)]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    return to_columns(pl.DataFrame(rows, schema=schema, orient="row"), code_maps.named("world"))


def days(columns: Columns) -> list[str]:
    return [
        str(time) for time in columns.time_E[columns.makes_event()].astype("datetime64[us]").astype("datetime64[D]")
    ]


def test_a_cohort_that_asks_for_nothing_leaves_all_rows_as_they_are() -> None:
    columns = columns_of([("2000-01-01", "CPT//1")], [])
    selection = select(columns, build_config.cohort(build_config.get_config()))
    assert selection.columns is columns and not selection.rows_left_out and not selection.subjects_left_out


def test_age_is_in_whole_years_and_both_bounds_are_included() -> None:
    dates = ["1997-12-31", "1998-01-02", "2020-12-31", "2021-01-02"]
    selection = select(columns_of([(date, "CPT//1") for date in dates]), Cohort(min_age=18, max_age=40))
    assert days(selection.columns) == ["1998-01-02", "2020-12-31"]
    assert selection.rows_left_out["filtered_age"] == 2
    # Who the subject is does not depend on the events that are left.
    assert selection.columns.has_role("sex", "birth").sum() == 2


def test_events_at_an_unknown_age_are_left_out_and_counted_apart() -> None:
    columns = columns_of([("2000-01-01", "CPT//1")], birth=None)
    selection = select(columns, Cohort(min_age=18))
    assert selection.rows_left_out == {
        "filtered_age_unknown": 1,
        "filtered_age": 0,
        "filtered_period": 0,
        "filtered_subject": 1,
    }
    assert {reason for reason, count in selection.subjects_left_out.items() if count} == {"age_unknown"}
    assert len(select(columns, Cohort(first_date="1999-01-01")).columns) == 2


@pytest.mark.parametrize(
    ("dates", "reason"),
    [
        ([], "no_event"),
        (["1990-01-01", "1991-01-01"], "age"),
        (["2030-01-01"], "period"),
        (["1990-01-01", "2030-01-01"], "period"),  # by age alone an event would be left
        (["1990-01-01", "2020-01-01"], "too_few_encounters"),
        (["2020-01-01", "2020-02-01"], None),
    ],
)
def test_a_subject_is_counted_under_the_filter_that_took_its_last_event(dates, reason) -> None:
    cohort = Cohort(min_age=18, last_date="2025-12-31", min_encounters=2)
    stays = [("2020-01-01", VISIT), ("2020-02-01", VISIT)]
    left_out = select(columns_of([(date, VISIT) for date in dates], stays), cohort).subjects_left_out
    assert list(left_out) == ["no_event", "age_unknown", "age", "period", "too_few_encounters"]
    assert {name for name, count in left_out.items() if count} == ({reason} if reason else set())
    assert sum(left_out.values()) == (reason is not None)


def test_both_days_of_a_period_are_in_it() -> None:
    dates = ["2011-12-31T23:59:59", "2012-01-01", "2025-12-31T23:59:59", "2026-01-01"]
    cohort = Cohort(first_date="2012-01-01", last_date="2025-12-31")
    selection = select(columns_of([(date, "CPT//1") for date in dates]), cohort)
    assert days(selection.columns) == ["2012-01-01", "2025-12-31"] and selection.rows_left_out["filtered_period"] == 2


@pytest.mark.parametrize(
    ("visits", "stays"),
    [
        ([("2020-01-01", VISIT), ("2021-12-31", VISIT)], True),
        ([("2020-01-01", VISIT), ("2022-01-01", VISIT)], False),
        ([("2020-01-01", VISIT), ("2020-01-01T12:00", VISIT)], False),
        ([("2020-01-01", VISIT), ("2020-02-01", "ENCOUNTER_START//TELEHEALTH")], False),
        ([("2020-01-01", VISIT), ("2020-02-01", "ENCOUNTER_START//OUTPATIENT//TELEPHONE")], False),
        ([("2020-01-01", VISIT), ("2020-02-01", "ENCOUNTER_START//OUTPATIENT//TELEMETRY")], True),
        ([("2020-01-01", VISIT), ("2020-02-01", "ENCOUNTER_START//INPATIENT//4 WEST TELE")], True),
        ([("2020-01-01", VISIT), ("2020-02-01", "ENCOUNTER_START//INPATIENT//VIDEO EEG")], True),
        ([("2020-01-01", VISIT), ("2020-01-02", "ENCOUNTER_START//ICU")], False),
        ([("2020-01-01", VISIT), ("2020-01-02", "ENCOUNTER_END//OUTPATIENT")], False),
        ([("2010-01-01", VISIT), ("2020-01-01", VISIT), ("2021-01-01", "ENCOUNTER_START//INPATIENT//URGENT")], True),
    ],
)
def test_two_face_to_face_encounters_within_two_years(visits, stays) -> None:
    other = [("2020-01-01", VISIT), ("2020-06-01", VISIT)]
    cohort = Cohort(min_encounters=2, within_days=730, face_to_face=FACE_TO_FACE)
    selection = select(columns_of(visits, other), cohort)
    assert selection.columns.subject_ids_S.tolist() == ([0, 1] if stays else [1])
    assert selection.subjects_left_out["too_few_encounters"] == (not stays)
    assert selection.rows_left_out["filtered_subject"] == (0 if stays else 2 + len(visits))


def test_encounters_outside_the_period_do_not_count() -> None:
    visits = [("2011-06-01", VISIT), ("2012-06-01", VISIT)]
    cohort = Cohort(first_date="2012-01-01", min_encounters=2, face_to_face=FACE_TO_FACE)
    assert not len(select(columns_of(visits), cohort).columns)


event = st.tuples(
    st.dates(datetime.date(1970, 1, 1), datetime.date(2030, 1, 1)).map(str),
    st.sampled_from([VISIT, "CPT//1", "ENCOUNTER_START//EMERGENCY", "ENCOUNTER_START//TELEHEALTH"]),
)
ages = st.none() | st.integers(0, 50)
dates = st.none() | st.dates(datetime.date(1970, 1, 1), datetime.date(2030, 1, 1)).map(str)


@settings(deadline=None)
@given(st.lists(st.lists(event, max_size=6), min_size=1, max_size=5), ages, dates, st.integers(0, 3))
def test_every_row_and_subject_is_in_or_counted_and_shards_do_not_matter(subjects, min_age, first, least) -> None:
    cohort = Cohort(min_age=min_age, first_date=first, min_encounters=least, face_to_face=FACE_TO_FACE)
    columns = columns_of(*subjects)
    selection = select(columns, cohort)
    assert len(selection.columns) + sum(selection.rows_left_out.values()) == len(columns)
    kept = selection.columns.subject_ids_S.tolist()
    assert len(kept) + sum(selection.subjects_left_out.values()) == len(subjects)
    for number, own in enumerate(subjects):
        alone = select(columns_of(own), cohort)
        assert len(alone.columns.subject_ids_S) == (number in kept)
        if number in kept:
            rows = selection.columns.subject_E == kept.index(number)
            assert np.array_equal(alone.columns.time_E, selection.columns.time_E[rows])
    assert (selection.columns.time_E != NO_TIME).sum() >= len(kept)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"min_age": 40, "max_age": 18}, "min_age"),
        ({"first_date": "2020-13-01"}, "first_date"),
        ({"first_date": "2021-01-01", "last_date": "2020-01-01"}, "first_date"),
        ({"min_encounters": -1}, "min_encounters"),
        ({"face_to_face": "("}, "face_to_face"),
    ],
)
def test_a_cohort_that_makes_no_sense_is_refused_by_its_key(changes, key) -> None:
    config = build_config.get_config()
    config.cohort.update(changes)
    with pytest.raises(UserError, match=rf"config\.cohort\.{key}"):
        build_config.check(config)
