"""One subject's story: what is past, what was recorded, and each future's outcomes within the tasks' horizons."""

import datetime

import pytest

from cometjax import estimators, report_story
from cometjax.tasks import Task, read_events
from data_pipeline import code_maps, meds
from data_pipeline.corpus import Corpus
from tests.cometjax.estimators_test import future

VISIT = Task(name="visit", index="X", horizon_days=5, outcome=r"ENCOUNTER//ENCOUNTER_START//OUTPATIENT.*")
DEATH = Task(name="death", index="X", horizon_days=60, outcome="DEATH")
# The prediction time of `future`.
NOW = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=10**15)


def test_outcomes_count_within_their_tasks_horizon_and_what_is_later_is_not_shown(world_corpus, write_meds) -> None:
    vocabulary = Corpus.open(world_corpus).vocabulary
    visit = min(estimators.outcome_concepts(vocabulary, VISIT))
    recorded = [(7, None, "GENDER//F", None)]
    for days, code in ((-9, "MEDS_BIRTH"), (-8, visit), (0, visit), (6, visit), (50, "MEDS_DEATH"), (70, visit)):
        recorded.append((7, NOW + datetime.timedelta(days=days), code.removeprefix("ENCOUNTER//"), None))
    dataset = meds.open_dataset(write_meds({"train/0": recorded}, {7: "train"}))
    events = read_events(dataset, [7], code_maps.named("world"))
    futures = [
        future(vocabulary, ["1d-3d", visit, "1d-3d", "DEATH"], 0, stop="death", subject=7),
        future(vocabulary, ["1w-2w", visit, "6mt+", "DEATH"], 1, stop="death", subject=7),
    ]
    times = estimators.outcome_times(futures, vocabulary, [VISIT, DEATH])
    risks = {"visit": 0.4, "death": 0.3}
    story = report_story.tell(events, 7, 10**15, [VISIT, DEATH], risks, times, futures, vocabulary)
    assert story.tasks == {"visit": 5, "death": 60} and story.risks == risks and story.horizon_days == 60
    assert [event.days for event in story.history] == [-8, 0]
    assert [event.days for event in story.recorded.events] == [6, 50]
    assert story.recorded.outcomes == {"death": 50} and story.recorded.days == 60
    soon, late = story.futures
    assert soon.outcomes.keys() == {"visit", "death"} and 1 <= soon.outcomes["visit"] <= 3
    # Both happen, too late for their tasks: the visit is within the time that is shown.
    assert late.outcomes == {} and [event.lane for event in late.events] == ["ENCOUNTER"] and late.days == 60
    assert soon.days == pytest.approx(soon.outcomes["death"])
