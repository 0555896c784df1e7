"""What a label means: borders of the horizon, who is out and why, and which of a subject's rows is asked."""

import dataclasses
import datetime

import polars as pl
import pytest

from cometjax import labels as label_module
from cometjax import tasks
from cometjax.labels import Labels
from cometjax.tasks import Task
from data_pipeline import code_maps, meds
from data_pipeline.errors import UserError
from experiments.configs import tasks_mimic, tasks_world
from experiments.tasks import suite

START, END = "ENCOUNTER_START//INPATIENT", "ENCOUNTER_END//INPATIENT//HOME"
DAY0 = datetime.datetime(2020, 1, 1, 12)
DISCHARGE = r"ENCOUNTER//ENCOUNTER_END//INPATIENT.*"
ADMISSION = r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*"
READMISSION = Task(name="readmission", index=DISCHARGE, horizon_days=30, outcome=ADMISSION)
DIABETES = Task(
    name="onset", index=DISCHARGE, horizon_days=365, outcome=r"DIAGNOSIS//ICD10CM//E11.*", exclude_prior=True
)
FAR = (99, DAY0 + datetime.timedelta(days=5000), START, None)


def day(days: float, *, us: int = 0) -> datetime.datetime:
    return DAY0 + datetime.timedelta(days=days, microseconds=us)


def row(subject: int, when: datetime.datetime | None, code: str) -> tuple:
    return (subject, when, code, None)


@pytest.fixture
def label(write_meds):
    """label(rows, task) -> Labels of subject 1 to 98; subject 99 makes the data end late."""

    def run(rows: list[tuple], task: Task, *, far: bool = True, **options) -> Labels:
        everyone = sorted({subject for subject, *_ in rows})
        rows = sorted(rows, key=lambda r: (r[0], r[1] is not None, r[1] or DAY0)) + ([FAR] if far else [])
        splits = dict.fromkeys([*everyone, 99], "train")
        dataset = meds.open_dataset(write_meds({"train/0": rows}, splits))
        return label_module.labels(dataset, everyone, task, code_maps.named("world"), **options)

    return run


def values(labels: Labels) -> list[bool]:
    return labels.frame["boolean_value"].to_list()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (day(30), True),
        (day(30, us=1), False),
        (day(0, us=1), True),
        (day(0), False),
        (day(-1), False),
    ],
)
def test_the_outcome_counts_after_the_prediction_time_up_to_and_including_the_horizon(label, when, expected) -> None:
    labels = label([row(1, day(0), END), row(1, when, START)], READMISSION)
    assert values(labels) == [expected]
    assert labels.frame["prediction_time"].to_list() == [DAY0]
    assert labels.frame.schema == {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean,
        "prior_outcome": pl.Boolean,
    }


def test_a_later_outcome_does_not_hide_an_earlier_one_and_subjects_do_not_mix(label) -> None:
    rows = [
        row(1, day(0), END),
        row(1, day(10), START),
        row(1, day(400), START),
        row(2, day(0), END),
        row(3, day(5), START),
    ]
    labels = label(rows, READMISSION)
    assert labels.frame.select("subject_id", "boolean_value").rows() == [(1, True), (2, False)]


@pytest.mark.parametrize(
    ("diagnosed", "rows_left"), [(day(-500), 0), (day(0), 0), (None, 0), (day(0, us=1), 1), (day(100), 1)]
)
def test_incident_disease_leaves_out_subjects_who_have_it_by_the_prediction_time(label, diagnosed, rows_left) -> None:
    labels = label([row(1, day(0), END), row(1, diagnosed, "ICD10CM//E11.65")], DIABETES)
    assert len(labels.frame) == rows_left and labels.excluded["prior_outcome"] == 1 - rows_left


def test_without_exclude_prior_a_repeat_is_a_positive(label) -> None:
    rows = [row(1, day(-9), START), row(1, day(0), END), row(1, day(20), START)]
    assert values(label(rows, READMISSION)) == [True]


@pytest.mark.parametrize("outcome", [True, False])
def test_rows_whose_horizon_passes_the_datas_end_are_out_whatever_their_outcome(label, outcome) -> None:
    last = row(2, day(29), START)
    rows = [row(1, day(0), END), *([row(1, day(5), START)] if outcome else []), last]
    labels = label(rows, READMISSION, far=False)
    assert len(labels.frame) == 0 and labels.excluded["horizon_past_data"] == 1
    on_the_border = label([*rows[:-1], row(2, day(30), START)], READMISSION, far=False)
    assert values(on_the_border) == [outcome]


def test_assume_complete_takes_the_unrecorded_for_not_happened(label) -> None:
    task = Task(name="t", index=DISCHARGE, horizon_days=30, outcome=ADMISSION, censoring="assume_complete")
    labels = label([row(1, day(0), END)], task, far=False)
    assert values(labels) == [False] and "horizon_past_data" not in labels.excluded


UNSEEN = "OBSERVATION_END"


def test_by_a_date_rows_are_out_whose_horizon_passes_the_end_of_that_day(label) -> None:
    """And by no stray event: of date-stamped data, a window that ends with the next midnight holds the next day."""
    midnight = datetime.datetime(2020, 1, 1)
    ends = [midnight - datetime.timedelta(microseconds=1), midnight]
    rows = [row(subject, end - datetime.timedelta(days=30), END) for subject, end in enumerate(ends, 1)]
    labels = label([*rows, row(2, midnight - datetime.timedelta(days=9), START)], changed(censoring="2019-12-31"))
    assert labels.frame["subject_id"].to_list() == [1] and labels.excluded["horizon_past_data"] == 1


@pytest.mark.parametrize("outcome", [True, False])
@pytest.mark.parametrize(
    ("ends", "asked", "reason"),
    [
        ([30], 1, ""),
        ([30 - 1e-9], 0, "horizon_past_observation"),
        ([-5], 0, "horizon_past_observation"),  # before the prediction time
        ([-5, 400, 9], 1, ""),  # the last of several
        ([None], 1, ""),  # without a time: unknown, as are those without any
        ([], 1, ""),
    ],
)
def test_rows_past_the_end_of_observation_are_out_whatever_their_outcome(label, outcome, ends, asked, reason) -> None:
    rows = [row(1, day(0), END), *([row(1, day(-9), START), row(1, day(5), START)] if outcome else [])]
    rows += [row(1, None if end is None else day(end), UNSEEN) for end in ends] + [row(2, day(40), UNSEEN)]
    labels = label(rows, changed(censoring="observation_end"))
    assert values(labels) == [outcome] * asked
    out = {"horizon_past_observation": 0, "horizon_past_data": 0, **({reason: 1} if reason else {})}
    assert {name: labels.excluded[name] for name in out} == out
    assert len(label(rows, VISIT).frame) == 1


def test_by_observation_the_dead_and_those_of_whom_it_is_unknown_are_out_where_the_data_end(label) -> None:
    rows = [row(2, day(100), UNSEEN), row(2, day(0), END)]
    died = [row(1, day(0), END), row(1, day(4), "MEDS_DEATH"), row(1, day(5), UNSEEN)]
    unknown = [row(3, day(0), END)]
    asked = changed(censoring="observation_end", outcome="DEATH")
    whole = label([*rows, *died, *unknown], asked)
    assert whole.frame.select("subject_id", "boolean_value").rows() == [(1, True), (2, False), (3, False)]
    short = label([*rows, *died, *unknown], asked, far=False)
    assert short.frame["subject_id"].to_list() == [2] and short.excluded["horizon_past_data"] == 2


def test_observation_is_asked_of_data_that_tell_it_only(label) -> None:
    for rows in ([row(1, day(0), END)], [row(1, None, UNSEEN), row(1, day(0), END)]):
        with pytest.raises(UserError, match=r"^task 'visit', censoring observation_end: the data say of nobody"):
            label(rows, changed(censoring="observation_end"))


@pytest.mark.parametrize(
    ("end", "outcome", "change", "expected"),
    [
        (29, None, {}, 1),
        (30, None, {}, 0),
        (-3, None, {}, 1),
        (9, 5, {}, 0),
        (9, 20, {}, 0),  # recorded all the same
        (9, 31, {}, 1),
        (9, 5, {"kind": "count"}, 1),
        (9, None, {"kind": "duration"}, 1),
        (9, None, {"until": r"DIAGNOSIS//ICD10CM//I10"}, 0),  # the window closes on day 8
        (7, None, {"until": r"DIAGNOSIS//ICD10CM//I10"}, 1),
        (9, None, {"censoring": "assume_complete"}, 1),
        (9, None, {"censoring": "2030-01-01"}, 1),
        (9, None, {"censoring": "observation_end"}, 0),  # out
    ],
)
def test_rows_of_which_nobody_looked_are_counted(label, tmp_path, end, outcome, change, expected) -> None:
    rows = [row(1, day(0), END), row(1, day(8), HYPERTENSION), row(1, day(end), UNSEEN), row(2, day(0), END)]
    rows += [row(3, day(0), END), row(3, day(2), "MEDS_DEATH"), row(3, day(1), UNSEEN)]
    rows += [] if outcome is None else [row(1, day(outcome), START)]
    task = changed(**change)
    frame = label(rows, task).frame
    events = tasks.read_events(meds.open_dataset(tmp_path / "meds"), [1, 2, 3], code_maps.named("world"))
    assert label_module.observed_in_part(frame, events, task) == expected
    assert label_module.observed_in_part(frame, dataclasses.replace(events, observed=None), task) == 0


def test_the_dead_are_not_asked(label) -> None:
    rows = [row(1, day(0), "MEDS_DEATH"), row(1, day(0), END), row(2, day(0), END), row(2, day(3), "MEDS_DEATH")]
    labels = label(rows, Task(name="death", index=DISCHARGE, horizon_days=30, outcome="DEATH"))
    assert labels.frame.select("subject_id", "boolean_value").rows() == [(2, True)]
    assert labels.excluded["dead_at_index"] == 1


def test_every_candidate_is_a_row_or_is_counted_out(label) -> None:
    rows = []
    for subject in range(1, 30):
        rows += [row(subject, day(90 * visit + subject), END) for visit in range(subject % 5)]
        if subject % 3 == 0:
            rows.append(row(subject, day(100), "MEDS_DEATH"))
        if subject % 4 == 0:
            rows.append(row(subject, day(150), "ICD10CM//E11.9"))
    for choice in tasks.INDEX_CHOICES:
        task = Task(**{**DIABETES.__dict__, "index_choice": choice, "censoring": "dataset_end"})
        labels = label(rows, task, far=False)
        assert labels.candidates == len(labels.frame) + sum(labels.excluded.values())
        assert (
            min(
                labels.excluded["dead_at_index"], labels.excluded["prior_outcome"], labels.excluded["horizon_past_data"]
            )
            > 0
        )
        if choice != "all":
            assert labels.frame["subject_id"].is_unique().all()


def test_one_row_a_subject_depends_on_the_seed_and_not_on_the_outcome(label) -> None:
    visits = [row(subject, day(100 * visit), END) for subject in range(1, 60) for visit in range(5)]
    task = Task(**{**READMISSION.__dict__, "index_choice": "one"})
    first = label(visits, task, seed=1).frame
    assert len(first) == 59 and first["prediction_time"].n_unique() > 1
    with_outcomes = label(
        [*visits, *[row(s, day(100 * v + 3), START) for s in range(1, 60) for v in (1, 3)]], task, seed=1
    ).frame
    asked = ["subject_id", "prediction_time"]
    assert with_outcomes.select(asked).equals(first.select(asked))
    assert with_outcomes["boolean_value"].any()
    assert not label(visits, task, seed=2).frame.equals(first)


def test_subjects_with_many_candidates_are_drawn_no_more_often_than_those_with_one(label) -> None:
    visits = [row(s, day(50 * visit + s), END) for s in range(1000, 1600) for visit in range(20 if s % 2 else 1)]
    chosen = label(visits, Task(**{**READMISSION.__dict__, "index_choice": "one", "censoring": "assume_complete"}))
    drawn = label_module.draw_rows(chosen.frame, 200, seed=0)
    assert len(chosen.frame) == 600 and 0.4 < (drawn["subject_id"] % 2).mean() < 0.6


def test_last_is_the_last_row(label) -> None:
    task = Task(**{**READMISSION.__dict__, "index_choice": "last"})
    labels = label([row(1, day(100 * visit), END) for visit in range(4)], task)
    assert labels.frame["prediction_time"].to_list() == [day(300)]


def test_events_of_one_instant_are_one_candidate(label) -> None:
    labels = label([row(1, day(0), END), row(1, day(0), "ENCOUNTER_END//INPATIENT//REHAB")], READMISSION)
    assert labels.candidates == 1 and len(labels.frame) == 1


def test_drawn_rows_are_shared_by_tasks_that_share_prompts() -> None:
    times = [day(i) for i in range(400)]
    frame = pl.DataFrame({"subject_id": range(400), "prediction_time": times}).cast(
        {"prediction_time": pl.Datetime("us")}
    )
    drawn = label_module.draw_rows(frame, 100, seed=3)
    of_half = label_module.draw_rows(frame.sample(200, seed=0), 100, seed=3)
    assert len(drawn) == len(of_half) == 100
    assert len(drawn.join(of_half, on=["subject_id", "prediction_time"])) > 40
    assert label_module.draw_rows(frame, 400, seed=3).equals(frame)


def test_the_hash_is_fixed_and_uniform() -> None:
    ids, times = pl.Series(range(4000)), pl.Series([7] * 4000)
    keys = label_module.row_hash(ids, times, seed=0)
    assert keys[:2].tolist() == label_module.row_hash(ids[:2], times[:2], seed=0).tolist()
    assert len(set(keys.tolist())) == 4000
    assert 0.45 < (keys >> 63).mean() < 0.55
    assert (keys != label_module.row_hash(ids, times, seed=1)).all() and (
        keys != label_module.row_hash(ids, times + 1, seed=0)
    ).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"index": "("}, "regular expression"),
        ({"horizon_days": 0}, "horizon_days"),
        ({"horizon_days": float("inf")}, "horizon_days"),
        ({"horizon_days": float("nan")}, "horizon_days"),
        ({"washout_days": 1e12}, "washout_days"),
        ({"censoring": "none"}, r"unknown censoring 'none'; use dataset_end, observation_end, .*YYYY-MM-DD"),
        ({"censoring": "20201231"}, "unknown censoring"),
        ({"censoring": "2020-02-30"}, "'2020-02-30' is not a date"),
        ({"index_choice": "some"}, "index_choice"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_a_wrong_task_is_refused_by_field(change, says) -> None:
    with pytest.raises(UserError, match=says):
        Task(**{**READMISSION.__dict__, **change})


def test_a_description_is_true_of_overridden_fields() -> None:
    config = suite.get_config()
    config.tasks.readmission_30d.horizon_days = 90
    config.tasks.heart_failure_acute.washout_days = 365
    (acute, readmission) = tasks.tasks_from_config(config, ["readmission_30d", "heart_failure_acute"])
    assert "within 90 days of" in readmission.description and "30 days" not in readmission.description
    assert "within a year of" in acute.description and acute.description.endswith("had it within a year before")
    described = {task.name: task.description for task in tasks.tasks_from_config(tasks_world.get_config())}
    assert described["diabetes_onset_2y"] == (
        "First type 2 diabetes diagnosis within 2 years of the end of an encounter"
    )


def test_a_wrong_task_file_is_refused_by_key() -> None:
    good = {"index": "A", "horizon_days": 1.0, "outcome": "B"}
    for content, says in (
        ({}, "no tasks"),
        ({"a": {**good, "horizon": 3}}, "horizon"),
        ({"a": {"index": "A"}}, "missing"),
    ):
        with pytest.raises(UserError, match=says):
            tasks.tasks_from_config({"tasks": content})
    with pytest.raises(UserError, match=r"^mine\.py: no tasks"):
        tasks.tasks_from_config({}, where="mine.py")
    assert tasks.tasks_from_config({"tasks": {"a": good}})[0].horizon_days == 1.0
    several = {"tasks": {name: good for name in "abc"}}
    assert [task.name for task in tasks.tasks_from_config(several, ["c", "a"])] == ["a", "c"]
    with pytest.raises(UserError, match=r"no task 'd'.*a, b, c"):
        tasks.tasks_from_config(several, ["a", "d"])


def test_the_worlds_tasks_all_have_both_outcomes(world_meds) -> None:
    dataset = meds.open_dataset(world_meds)
    subjects = dataset.splits["subject_id"].to_list()
    events = tasks.read_events(dataset, subjects, code_maps.named("world"))
    for task in tasks.tasks_from_config(tasks_world.get_config()):
        labels = label_module.label(events, subjects, task)
        assert len(labels.frame) >= 30 and 0 < labels.frame["boolean_value"].mean() < 1, task.name


def test_mimics_tasks_have_rows_and_no_one_is_asked_at_the_discharge_they_died_in(mimic_demo) -> None:
    dataset = meds.open_dataset(mimic_demo)
    subjects = dataset.splits["subject_id"].to_list()
    events = tasks.read_events(dataset, subjects, code_maps.named("mimic"))
    for task in tasks.tasks_from_config(tasks_mimic.get_config()):
        labels = label_module.label(events, subjects, task)
        assert labels.candidates == 275 - 15
        assert len(labels.frame) >= 100 and 10 <= labels.frame["boolean_value"].sum() < len(labels.frame), task.name


DIABETES_CODE, HYPERTENSION, FEMALE = "ICD10CM//E11.9", "ICD10CM//I10", "SEX//F"
VISIT = Task(name="visit", index=DISCHARGE, horizon_days=30, outcome=ADMISSION)


def changed(**fields) -> Task:
    return Task(**{**VISIT.__dict__, **fields})


@pytest.mark.parametrize(
    ("when", "cohort_days", "asked"),
    [
        (day(-500), None, True),
        (day(0), None, True),
        (day(0, us=1), None, False),
        (None, None, True),  # static
        (day(-10), 10, True),
        (day(-10, us=-1), 10, False),
        (None, 10, False),
        (day(0), 0, True),
        (day(0, us=-1), 0, False),
    ],
)
def test_a_cohort_has_had_its_event_by_the_index_and_not_too_long_before(label, when, cohort_days, asked) -> None:
    task = changed(cohort=r"DIAGNOSIS//ICD10CM//E11.*", cohort_days=cohort_days)
    labels = label([row(1, day(0), END), row(1, when, DIABETES_CODE)], task)
    assert len(labels.frame) == asked and labels.excluded["not_in_cohort"] == 1 - asked


def test_subjects_without_any_event_of_the_cohort_are_not_of_it(label) -> None:
    rows = [row(1, day(0), END), row(2, None, FEMALE), row(2, day(0), END)]
    labels = label(rows, changed(cohort=r"DEMOGRAPHIC//SEX//F"))
    assert labels.frame["subject_id"].to_list() == [2]


@pytest.mark.parametrize(("when", "asked"), [(day(-900), False), (day(0), False), (None, False), (day(1), True)])
def test_whoever_has_had_what_is_excluded_is_out(label, when, asked) -> None:
    labels = label([row(1, day(0), END), row(1, when, HYPERTENSION)], changed(exclude=r"DIAGNOSIS//ICD10CM//I10"))
    assert len(labels.frame) == asked and labels.excluded["excluded"] == 1 - asked


@pytest.mark.parametrize(
    ("admissions", "discharges", "asked"),
    [
        ([], [], True),
        ([-9], [], False),  # an emergency visit's end, in mid-stay
        ([-9], [3], False),
        ([-9], [-5], True),
        ([-9], [0], True),  # the stay ends with it
        ([0], [5], False),  # it ends in a stay
        ([1], [5], True),
        ([-9, -2], [-5], False),
        ([-4], [-9], False),  # of a stay before
    ],
)
def test_who_is_in_a_stay_is_not_asked_where_the_index_is_outside_of_stays(
    label, admissions, discharges, asked
) -> None:
    task = changed(
        index=r"ENCOUNTER//ENCOUNTER_END//EMERGENCY.*", outside_start=ADMISSION, outside_end=DISCHARGE, outcome="DEATH"
    )
    rows = [row(1, day(0), "ENCOUNTER_END//EMERGENCY//HOME"), *(row(1, day(when), START) for when in admissions)]
    labels = label([*rows, *(row(1, day(when), END) for when in discharges)], task)
    assert len(labels.frame) == asked and labels.excluded["inside"] == 1 - asked


@pytest.mark.parametrize(("when", "asked"), [(day(0), False), (day(-90), False), (day(-90, us=-1), True), (None, True)])
def test_a_washout_leaves_out_those_who_had_the_outcome_of_late(label, when, asked) -> None:
    task = changed(outcome=r"DIAGNOSIS//ICD10CM//E11.*", washout_days=90)
    labels = label([row(1, day(0), END), row(1, when, DIABETES_CODE), row(1, day(9), DIABETES_CODE)], task)
    assert values(labels) == [True] * asked and labels.excluded["washout"] == 1 - asked
    assert labels.frame["prior_outcome"].to_list() == [True] * asked  # long ago: a repeat


@pytest.mark.parametrize(("first", "asked"), [(day(-365), True), (day(-365, us=1), False)])
def test_a_history_is_long_enough_from_the_first_event_that_is_not_birth(label, first, asked) -> None:
    rows = [row(1, day(-9000), "MEDS_BIRTH"), row(1, None, FEMALE), row(1, first, HYPERTENSION), row(1, day(0), END)]
    labels = label(rows, changed(history_days=365))
    assert len(labels.frame) == asked and labels.excluded["short_history"] == 1 - asked


def test_counts_are_of_events_in_the_window(label) -> None:
    starts = [-1, 0, 5, 5, 30, 30.5, 70]
    rows = [row(1, day(0), END), *[row(1, day(when), START) for when in starts], row(2, day(0), END)]
    labels = label(rows, changed(kind="count"))
    assert labels.frame.select("subject_id", "integer_value", "boolean_value").rows() == [(1, 3, True), (2, 0, False)]


def test_durations_are_days_to_the_first_outcome_or_the_windows_length(label) -> None:
    ends = [row(1, day(2.5), END), row(1, day(9), END), row(2, day(31), END)]
    rows = [row(1, day(0), START), row(2, day(0), START), *ends]
    labels = label(rows, changed(index=ADMISSION, outcome=DISCHARGE, kind="duration"))
    assert labels.frame.select("float_value", "boolean_value").rows() == [(2.5, True), (30.0, False)]


@pytest.mark.parametrize(("end", "value", "count"), [(day(1), False, 0), (day(3), True, 2), (day(3, us=-1), False, 0)])
def test_until_closes_the_window_after_its_instant(label, end, value, count) -> None:
    coded = [row(1, day(3), DIABETES_CODE), row(1, day(3), DIABETES_CODE), row(1, day(8), DIABETES_CODE)]
    rows = [row(1, day(0), START), row(1, day(0), END), row(1, end, END), *coded]
    task = changed(index=ADMISSION, outcome=r"DIAGNOSIS//ICD10CM//E11.*", until=DISCHARGE)
    assert values(label(rows, task)) == [value]
    counted = label(rows, changed(**{**task.__dict__, "kind": "count"}))
    assert counted.frame["integer_value"].to_list() == [count]


def test_new_onset_and_repeat_are_told_apart(label) -> None:
    rows = [row(1, day(-400), START), row(1, day(0), END), row(1, day(3), START), row(2, day(0), END)]
    labels = label([*rows, row(2, day(3), START)], VISIT)
    assert labels.frame.select("boolean_value", "prior_outcome").rows() == [(True, True), (True, False)]


def test_who_is_asked_depends_on_nothing_after_the_index(label) -> None:
    task = changed(cohort=r"DIAGNOSIS//ICD10CM//E11.*", cohort_days=50, exclude=r"DIAGNOSIS//ICD10CM//I10",
                   washout_days=20, history_days=10, index_choice="one")  # fmt: skip
    past = []
    for subject in range(1, 40):
        past += [row(subject, day(-subject), DIABETES_CODE), row(subject, day(0), END)]
        past += [row(subject, day(-200), HYPERTENSION)] if subject % 3 == 0 else []
        past += [row(subject, day(-5 * subject), START)] if subject % 2 == 0 else []
    later = [
        row(subject, day(1 + subject), code)
        for subject in range(1, 40)
        for code in (HYPERTENSION, DIABETES_CODE, START, "MEDS_DEATH")
    ]
    before, after = label(past, task), label([*past, *later], task)
    asked = ["subject_id", "prediction_time", "prior_outcome"]
    assert 10 < len(before.frame) < 30 and before.frame.select(asked).equals(after.frame.select(asked))
    assert before.excluded == after.excluded and not before.frame["boolean_value"].equals(after.frame["boolean_value"])


def test_what_is_recorded_after_a_death_answers_nothing(label) -> None:
    died = [row(1, day(0), START), row(1, day(1), "MEDS_DEATH"), row(1, day(1), DIABETES_CODE)]
    late = [row(1, day(2), END), row(1, day(3), DIABETES_CODE)]
    stay = changed(index=ADMISSION, outcome=DISCHARGE, kind="duration")
    assert label([*died, *late], stay).frame["float_value"].to_list() == [stay.horizon_days]
    over = changed(index=ADMISSION, outcome=f"{DISCHARGE}|DEATH", kind="duration")
    assert label([*died, *late], over).frame["float_value"].to_list() == [1.0]
    counted = changed(index=ADMISSION, outcome=r"DIAGNOSIS//ICD10CM//E11.*", kind="count")
    assert label([*died, *late], counted).frame["integer_value"].to_list() == [1]


def test_labels_of_files_are_read_by_task_and_completed(label, tmp_path) -> None:
    rows = [row(1, day(-3), START), row(1, day(0), END), row(2, day(0), END)]
    label(rows, VISIT)  # writes the data set
    dataset = meds.open_dataset(tmp_path / "meds")
    own = pl.DataFrame({"subject_id": [2, 1], "prediction_time": [day(1), day(2)], "boolean_value": [True, False]})
    own.write_parquet(tmp_path / "visit.parquet")
    (tmp_path / "count").mkdir()
    own.with_columns(integer_value=pl.Series([4, 0])).write_parquet(tmp_path / "count" / "held_out.parquet")
    counted = changed(name="count", kind="count")
    files = label_module.label_files(tmp_path, [VISIT, counted], dataset)
    events = tasks.read_events(dataset, [1, 2], code_maps.named("world"))
    assert label_module.complete(files["visit"], events, VISIT).rows() == [
        (1, day(2), False, True),
        (2, day(1), True, False),
    ]
    assert label_module.complete(files["count"], events, counted)["integer_value"].to_list() == [0, 4]
    for task, says in ((changed(name="other"), "no labels of task"), (changed(kind="duration"), "float_value")):
        with pytest.raises(UserError, match=says):
            label_module.label_files(tmp_path, [task], dataset)
    pl.concat([own, own]).write_parquet(tmp_path / "visit.parquet")
    with pytest.raises(UserError, match="twice"):
        label_module.label_files(tmp_path, [VISIT], dataset)
    own.with_columns(prediction_time=pl.Series([day(1), day(-4)])).write_parquet(tmp_path / "visit.parquet")
    with pytest.raises(UserError, match=r"visit\.parquet, row 1, column prediction_time: the subject has no data"):
        label_module.label_files(tmp_path, [VISIT], dataset)


def test_durations_of_files_end_with_the_outcome_or_the_window_as_recorded(label, tmp_path) -> None:
    """A window may close before the horizon, and an outcome be at its very end."""
    rows = [row(1, day(0), START), row(1, day(2), END), row(1, day(9), DIABETES_CODE)]
    rows += [
        row(2, day(0), START),
        row(2, day(30), DIABETES_CODE),
        row(3, day(0), START),
        row(3, day(1), DIABETES_CODE),
    ]
    rows += [row(4, day(0), START)]
    stay = changed(index=ADMISSION, outcome=r"DIAGNOSIS//ICD10CM//E11.*", until=DISCHARGE, kind="duration")
    own = label(rows, stay).frame
    wanted = [(1, False, 2.0), (2, True, 30.0), (3, True, 1.0), (4, False, 30.0)]
    assert own.select("subject_id", "boolean_value", "float_value").rows() == wanted
    own.drop("boolean_value", "prior_outcome").write_parquet(tmp_path / "visit.parquet")
    dataset = meds.open_dataset(tmp_path / "meds")
    events = tasks.read_events(dataset, [1, 2, 3, 4], code_maps.named("world"))
    files = label_module.label_files(tmp_path, [stay], dataset)
    assert label_module.complete(files["visit"], events, stay).equals(own)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "rate"}, "kind"),
        ({"cohort": "("}, "cohort"),
        ({"washout_days": -1}, "washout_days"),
        ({"cohort_days": 3}, "without a cohort"),
        ({"washout_days": 3, "exclude_prior": True}, "exclude_prior"),
        ({"outside_start": "A"}, "outside_start and outside_end"),
    ],
)
def test_a_wrong_refinement_is_refused_by_field(change, says) -> None:
    with pytest.raises(UserError, match=says):
        changed(**change)
