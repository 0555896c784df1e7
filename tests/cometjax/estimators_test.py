"""Risk is the share of futures with the outcome in time; futures cut short are censored, and told."""

import numpy as np
import polars as pl
import pytest

from cometjax import amounts, estimators, task_results, tasks
from cometjax.engine import Future
from cometjax.futures import token_seconds
from cometjax.tasks import Task
from data_pipeline import code_maps, meds
from data_pipeline.corpus import Corpus
from data_pipeline.vocabulary import Vocabulary

DEATH = Task(name="death", index="X", horizon_days=365, outcome="DEATH")
VISIT = Task(name="visit", index="X", horizon_days=30, outcome=r"ENCOUNTER//ENCOUNTER_START//OUTPATIENT.*")


@pytest.fixture(scope="module")
def vocabulary(world_corpus) -> Vocabulary:
    return Corpus.open(world_corpus).vocabulary


def future(
    vocabulary: Vocabulary, texts: list[str], sample: int = 0, *, stop: str = "horizon", subject: int = 1
) -> Future:
    """A future from events' concepts and intervals' names."""
    tokens: list[int] = []
    for text in texts:
        if text in vocabulary.event_of_concept:
            tokens += vocabulary.events[vocabulary.event_of_concept[text]].tokens
        else:
            tokens.append(vocabulary.ids[f"INTERVAL//{text}"])
    return Future(subject, 10**15, sample, np.array(tokens, np.int32), stop)


def risk(vocabulary: Vocabulary, futures: list[Future], task: Task) -> dict:
    table = estimators.monte_carlo(estimators.outcome_times(futures, vocabulary, [DEATH, VISIT]), task)
    assert len(table) == 1
    return table.row(0, named=True)


def _outpatient(vocabulary: Vocabulary) -> str:
    return min(estimators.outcome_concepts(vocabulary, VISIT))


def test_risk_is_the_share_of_samples_with_the_outcome_within_the_horizon(vocabulary) -> None:
    visit = _outpatient(vocabulary)
    futures = [
        future(vocabulary, ["3d-1w", visit], 0),
        future(vocabulary, ["30d-6mt", visit], 1),  # beyond 30 days
        future(vocabulary, ["1d-3d", "DEATH"], 2, stop="death"),
        future(vocabulary, ["1w-2w", visit, "6mt+", visit, "6mt+"], 3),
    ]
    visited = risk(vocabulary, futures, VISIT)
    assert (visited["risk"], visited["samples"]) == (0.5, 4)
    assert visited["standard_error"] == pytest.approx(np.sqrt(0.25 / 4))
    died = risk(vocabulary, futures, DEATH)
    assert (died["risk"], died["truncated"]) == (0.25, 0.0)


def test_the_horizons_border_counts_and_a_second_more_does_not(vocabulary) -> None:
    visit = _outpatient(vocabulary)
    seconds = int(token_seconds(vocabulary)[vocabulary.ids["INTERVAL//3d-1w"]])
    for horizon_seconds, expected in ((seconds, 1.0), (seconds - 1, 0.0)):
        task = Task(**{**VISIT.__dict__, "horizon_days": horizon_seconds / 86_400})
        times = estimators.outcome_times([future(vocabulary, ["3d-1w", visit])], vocabulary, [task])
        assert estimators.monte_carlo(times, task)["risk"].to_list() == [expected]


def test_an_outcome_without_an_interval_before_it_is_after_the_prediction_time(vocabulary) -> None:
    assert risk(vocabulary, [future(vocabulary, ["DEATH"], stop="death")], DEATH)["risk"] == 1.0


def test_samples_cut_short_before_the_horizon_are_told_and_only_those(vocabulary) -> None:
    visit = _outpatient(vocabulary)
    futures = [
        future(vocabulary, ["1d-3d"], 0, stop="length"),  # cut short
        future(vocabulary, ["1d-3d", visit], 1, stop="length"),  # answered before
        future(vocabulary, ["30d-6mt"], 2, stop="length"),  # past the visit's horizon, not past death's
        future(vocabulary, ["1d-3d"], 3, stop="timeline_end"),
    ]
    assert risk(vocabulary, futures, VISIT)["truncated"] == 0.25
    assert risk(vocabulary, futures, DEATH)["truncated"] == 0.75


def test_samples_cut_short_are_censored_as_kaplan_and_meier_do(vocabulary) -> None:
    futures = [
        future(vocabulary, ["1d-3d", "DEATH"], 0, stop="death"),
        future(vocabulary, ["1w-2w"], 1, stop="length"),
        future(vocabulary, ["2w-30d", "DEATH"], 2, stop="death"),
        future(vocabulary, ["6mt+", "6mt+", "6mt+"], 3),
    ]
    died = risk(vocabulary, futures, DEATH)
    # One of four dies, one leaves, one of the remaining two dies: survival 3/4 x 1/2.
    assert died["risk"] == pytest.approx(1 - 3 / 4 * 1 / 2)
    assert died["standard_error"] == pytest.approx(3 / 8 * np.sqrt(1 / 12 + 1 / 2))
    assert died["truncated"] == 0.25


def test_at_one_instant_the_outcome_comes_before_a_sample_that_is_cut_short_there(vocabulary) -> None:
    futures = [future(vocabulary, ["1d-3d"], 0, stop="length"), future(vocabulary, ["1d-3d", "DEATH"], 1, stop="death")]
    assert risk(vocabulary, futures, DEATH)["risk"] == 0.5


def test_a_prompt_whose_samples_all_have_the_outcome_has_risk_one(vocabulary) -> None:
    futures = [future(vocabulary, ["1d-3d", "DEATH"], sample, stop="death") for sample in range(3)]
    died = risk(vocabulary, futures, DEATH)
    assert (died["risk"], died["standard_error"]) == (1.0, 0.0)


def test_a_rare_code_is_an_event_of_its_kind_and_of_no_part_of_it(vocabulary) -> None:
    known = next(event.concept for event in vocabulary.events if event.concept.startswith("DIAGNOSIS//ICD10CM//E11"))
    simulated = future(vocabulary, ["1d-3d", known, "UNKNOWN//DIAGNOSIS", "UNKNOWN//DIAGNOSIS", "UNKNOWN//LAB", "6mt+"])
    for pattern, count in (("DIAGNOSIS//.*", 3), (r"DIAGNOSIS//ICD10CM//E11.*", 1), ("OTHER//.*", 0)):
        task = Task(name="count", index="X", horizon_days=30, outcome=pattern, kind="count")
        times = estimators.outcome_times([simulated], vocabulary, [task])
        assert times["count//times"].list.len().to_list() == [count]


def test_every_recorded_diagnosis_can_be_told_as_one(world_meds, vocabulary) -> None:
    dataset = meds.open_dataset(world_meds)
    events = tasks.read_events(dataset, dataset.splits["subject_id"].to_list(), code_maps.named("world"))
    every = Task(name="count", index="X", horizon_days=30, outcome="DIAGNOSIS//.*", kind="count")
    assert task_results.outcome_coverage(every, events, vocabulary) == 1.0
    # Some are told as UNKNOWN, and an UNKNOWN diagnosis is none of a chapter.
    chapter = Task(name="chapter", index="X", horizon_days=30, outcome="DIAGNOSIS//ICD10CM//[D-Z].*")
    assert 0 < task_results.outcome_coverage(chapter, events, vocabulary) < 1


def test_one_future_tells_no_standard_error(vocabulary) -> None:
    visits = Task(**{**VISIT.__dict__, "name": "visits", "kind": "count"})
    stay = Task(**{**VISIT.__dict__, "name": "stay", "kind": "duration"})
    one, two = (
        [future(vocabulary, ["3d-1w", _outpatient(vocabulary), "6mt+"], sample) for sample in range(n)] for n in (1, 2)
    )
    for futures, expected in ((one, None), (two, 0.0)):
        times = estimators.outcome_times(futures, vocabulary, [VISIT, visits, stay])
        tables = [estimators.monte_carlo(times, VISIT), *(amounts.estimate(times, task) for task in (visits, stay))]
        assert [table["standard_error"].to_list() for table in tables] == [[expected]] * 3


def test_prompts_are_told_apart(vocabulary) -> None:
    futures = [future(vocabulary, ["DEATH"], stop="death", subject=2), future(vocabulary, ["6mt+"], subject=1)]
    table = estimators.monte_carlo(estimators.outcome_times(futures, vocabulary, [DEATH]), DEATH)
    assert table.select("subject_id", "risk", "samples").rows() == [(2, 1.0, 1), (1, 0.0, 1)]
    assert table.schema["prediction_time"] == pl.Datetime("us")


def test_an_event_closes_the_window_and_what_is_at_its_instant_still_counts(vocabulary) -> None:
    end = "ENCOUNTER//ENCOUNTER_END//OUTPATIENT"
    visit = _outpatient(vocabulary)
    task = Task(**{**VISIT.__dict__, "until": r"ENCOUNTER//ENCOUNTER_END//.*"})
    counted = Task(**{**task.__dict__, "name": "count", "kind": "count"})
    futures = [
        future(vocabulary, ["1d-3d", visit, end, "3d-1w", visit], 0),
        future(vocabulary, ["1d-3d", end, "3d-1w", visit], 1, stop="length"),  # closed: not cut short
        future(vocabulary, ["1d-3d"], 2, stop="length"),
    ]
    times = estimators.outcome_times(futures, vocabulary, [task, counted])
    assert times["visit"].is_null().to_list() == [False, True, True]
    assert times["count//times"].list.len().to_list() == [1, 0, 0]
    table = estimators.monte_carlo(times, task)
    assert table["truncated"].to_list() == [pytest.approx(1 / 3)]
    assert table["risk"].to_list() == [pytest.approx(1 / 3)]
