"""Futures whose observation ends are censored, so that a risk does not depend on how long subjects were followed."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from cometjax import amounts, anticipation, estimators, futures, grammar_states, report_fan
from cometjax.futures import Future
from cometjax.report_story import Strip
from cometjax.tasks import Task
from data_pipeline import code_maps, intervals, statistics, vocabulary_builder
from data_pipeline.columns import to_columns
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import tokenize
from tests.cometjax import grammar_states_test
from tests.cometjax.engine_test import CONFIG, VOCABULARY

KNOWING = dataclasses.replace(VOCABULARY, knows_follow_up=True)
VISIT = Task(name="visit", index="X", horizon_days=182.0, outcome=r".*CPT.*")
SUBJECTS = 20_000
WEEKS = intervals.custom(",".join(f"{weeks}w" for weeks in range(1, 110)))


def test_a_risk_is_the_truth_whatever_the_follow_up() -> None:
    """Visits once a year by chance, subjects that enter over four years, and one end of all data."""
    random = np.random.default_rng(0)
    entry_S, end = random.uniform(0, 4 * 365.0, SUBJECTS), 4 * 365.0
    rows = []
    for subject, entry in enumerate(entry_S):
        days = entry + np.cumsum(np.append(0, random.exponential(365.0, 30)))
        rows += [(subject, day, "CPT//99213") for day in days[days < end]] + [(subject, end, "OBSERVATION_END")]
    table = pl.DataFrame(rows, schema=["subject_id", "day", "code"], orient="row").select(
        "subject_id",
        time=pl.datetime(2020, 1, 1) + pl.duration(seconds=(pl.col("day") * 86_400).round()),
        code="code",
        numeric_value=pl.lit(None, pl.Float32),
    )
    events = table.with_columns(pl.col("time").cast(pl.Datetime("us")))
    world = code_maps.named("world")
    truth = 1 - np.exp(-VISIT.horizon_days / 365)
    told = {}
    for observed_until in ("auto", "last_event"):
        policy = vocabulary_builder.VocabularyPolicy(WEEKS, observed_until=observed_until)
        vocabulary = vocabulary_builder.build_vocabulary(statistics.count(to_columns(events, world)), world, {}, policy)
        # A perfect model of these records, asked after a first visit, draws what they go on with.
        drawn = []
        for sample, record in enumerate(tokenize(events, vocabulary).records()):
            tokens_T = record.tokens_T[5:].astype(np.int32)
            if vocabulary.knows_follow_up or len(tokens_T) > 1:  # where the end is never drawn, there is another visit
                drawn.append(Future(1, 10**15, sample, tokens_T, "unobserved"))
        times = estimators.outcome_times(drawn, vocabulary, [VISIT])
        told[observed_until] = estimators.monte_carlo(times, VISIT)["risk"].item()
        if vocabulary.knows_follow_up:
            counted = dataclasses.replace(VISIT, kind="count")
            mean = amounts.estimate(estimators.outcome_times(drawn, vocabulary, [counted]), counted)["mean"].item()
            assert mean == pytest.approx(VISIT.horizon_days / 365, abs=0.015)
    assert told["auto"] == pytest.approx(truth, abs=0.012)
    assert told["last_event"] > truth + 0.1


def test_observation_may_end_after_an_interval_where_it_is_known_and_nowhere_else() -> None:
    for knows in (False, True):
        vocabulary = dataclasses.replace(grammar_states_test.VOCABULARY, knows_follow_up=knows)
        states = grammar_states.build_states(vocabulary)
        end = vocabulary.ids["TIMELINE_END"]
        after = [grammar_states.AFTER_INTERVAL, grammar_states.AFTER_LONGEST]
        assert np.asarray(states.possible(np.array(after)))[:, end].tolist() == [knows, knows]


def test_what_the_end_of_a_record_is_follows_from_the_corpus() -> None:
    assert futures.timeline_end_of(CONFIG, VOCABULARY) == "never"
    assert futures.timeline_end_of(CONFIG, KNOWING) == "censor"
    stop = dataclasses.replace(CONFIG, timeline_end="stop")
    assert {futures.timeline_end_of(stop, which) for which in (VOCABULARY, KNOWING)} == {"stop"}
    for wrong, which in (("never", KNOWING), ("censor", VOCABULARY)):
        with pytest.raises(UserError, match=f"timeline_end {wrong}"):
            futures.timeline_end_of(dataclasses.replace(CONFIG, timeline_end=wrong), which)
    with pytest.raises(UserError, match="'sometimes' is not known"):
        dataclasses.replace(CONFIG, timeline_end="sometimes")


def test_an_end_of_observation_weighs_like_the_end_of_tokens() -> None:
    def futures_that(stop: str) -> list[Future]:
        drawn = []
        for sample in range(30):
            clock_T = np.cumsum(np.random.default_rng(sample).integers(0, 90, 8)) * 86_400
            hazard_TxK = np.random.default_rng(sample).uniform(0, 0.2, (8, 1)).astype(np.float32)
            how = {"hazard_TxK": hazard_TxK, "decided_TxK": np.zeros((8, 1), bool), "drawn_clock_T": clock_T}
            drawn.append(Future(1, 0, sample, np.zeros(8, np.int32), stop if sample % 3 else "horizon", **how))
        return drawn

    horizon_K = np.array([400.0 * 86_400])
    shares = {
        stop: anticipation.contributions(futures_that(stop), horizon_K, suppressed=False)
        for stop in ("length", "unobserved", "timeline_end")
    }
    np.testing.assert_array_equal(shares["unobserved"], shares["length"])
    assert shares["unobserved"][1].any() and not shares["timeline_end"][1].any()


def test_the_curve_of_a_subject_is_kaplan_and_meiers() -> None:
    def strip(stop: str, days: float, outcome: float | None) -> Strip:
        return Strip((), {"visit": outcome} if outcome is not None else {}, stop, days)

    strips = [
        strip("horizon", 9, 1.0),
        strip("unobserved", 2, None),
        strip("horizon", 9, 3.0),
        strip("horizon", 9, None),
    ]
    share, error = report_fan._incidence(strips, "visit", np.array([1.0, 3.0]))
    np.testing.assert_allclose(share, [0, 1 / 4, 1 - 3 / 4 * 1 / 2])
    np.testing.assert_allclose(error[2], 3 / 8 * np.sqrt(1 / 12 + 1 / 2))
