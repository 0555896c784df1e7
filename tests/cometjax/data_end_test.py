"""A data set's end that one stray date makes, and ends of observation that are none, are told in a line."""

import datetime

import pytest

from cometjax import data_end, tasks
from cometjax.tasks import Task
from data_pipeline import code_maps, meds

START = datetime.datetime(2020, 1, 1, 12)
VISIT, UNSEEN = "CPT//99213", "OBSERVATION_END"


@pytest.fixture
def told(write_meds):
    """told(last, censoring, ...): the lines about subjects whose last events are on these days, in two shards."""

    def run(last: list[float], censoring: str, seen: list[float] = (), *, read: list[int] | None = None) -> list[str]:
        shards: dict[str, list[tuple]] = {}
        for subject, days in enumerate(last):
            rows = shards.setdefault(f"train/{subject % 2}", [])
            dated = [(-900, VISIT), (days, VISIT), *([(seen[subject], UNSEEN)] if seen else [])]
            rows.append((subject, None, "SEX//F", None))
            rows += [(subject, START + datetime.timedelta(when), code, None) for when, code in sorted(dated)]
        dataset = meds.open_dataset(write_meds(shards, dict.fromkeys(range(len(last)), "train")))
        subjects = list(range(len(last))) if read is None else read
        events = tasks.read_events(dataset, subjects, code_maps.named("world"))
        return data_end.warnings(events, [Task("a", VISIT, 30, VISIT, censoring=censoring)])

    return run


@pytest.mark.parametrize("censoring", tasks.CENSORINGS)
def test_a_last_event_far_beyond_the_others_is_told_with_both_dates(told, censoring) -> None:
    lines = told([0, 1, 2, 29_000, 3], censoring, read=[1])
    if censoring == "assume_complete":
        assert not lines
    else:
        (line,) = lines
        assert "2099-05-26" in line and "2020-01-04" in line and "assume_complete" in line and "\n" not in line


@pytest.mark.parametrize(
    ("last", "is_told"),
    [([0, 90], False), ([0, 91], True), ([500], False), ([0, 300, 300], False), ([0, 9, 300], True)],
)
def test_two_subjects_who_end_together_are_the_datas_end(told, last, is_told) -> None:
    assert len(told(last, "dataset_end")) == is_told


def test_of_many_subjects_the_last_thousandth_may_be_stray(told) -> None:
    last = [subject % 50 for subject in range(2001)]
    assert len(told([*last[:-2], 900, 900], "dataset_end")) == 1  # 3 of 2,001 would be the end
    assert not told([*last[:-3], 900, 900, 900], "dataset_end")


@pytest.mark.parametrize(("date", "is_told"), [("2020-01-03", False), ("2020-03-31", False), ("2030-01-01", True)])
def test_a_date_that_lies_long_after_all_data_is_told(told, date, is_told) -> None:
    lines = told([0, 1, 2], date)
    assert len(lines) == is_told and all("2020-01-03" in line and date in line for line in lines)


def test_ends_of_observation_that_are_none_are_told(told) -> None:
    assert not told([0, 1, 2], "observation_end", [40, 50, 60])
    (line,) = told([0, 1, 2], "observation_end", [40, 50, 29_000])
    assert "of 1 of 3 subjects ends long after" in line
    (line,) = told([0, 1, 2], "observation_end", [-0.5, 2.4, 60])  # at midnight before it, and the day after
    assert "67% of 3 subjects ends with their last event" in line
    assert not told([0, 1, 2], "dataset_end", [0, 1, 29_000])
