"""A future that ends once all is answered tells what the longer one tells, and ends no later than it must."""

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cometjax import estimators, risks
from cometjax.amounts import estimate as estimate_amount
from cometjax.futures import Future, token_seconds
from cometjax.tasks import Task
from data_pipeline import grammar
from tests.cometjax.anticipation_test import CONFIG, HORIZON, PROMPTS, VOCABULARY, model
from tests.cometjax.grammar_states_test import ids

DAYS = HORIZON / 86_400
TASKS = [
    Task(name="a_until_lab", index="X", horizon_days=DAYS, outcome="A", until="LAB"),
    Task(name="b_early", index="X", horizon_days=DAYS / 3, outcome=r"B\..*"),
    Task(name="death_until_c", index="X", horizon_days=DAYS, outcome="DEATH", until="C"),
    Task(name="labs_until_c", index="X", horizon_days=DAYS / 2, outcome="LAB", until="C", kind="count"),
    Task(name="days_to_a", index="X", horizon_days=DAYS, outcome=r"A|A\.2.*", kind="duration"),
    Task(name="all_labs", index="X", horizon_days=DAYS, outcome="LAB", kind="count"),
]
SECONDS_V = token_seconds(VOCABULARY)
QUESTIONS = estimators.questions(VOCABULARY, TASKS)
DRAWN = [token.grammar in ("first", "part", "value", "interval") for token in VOCABULARY.tokens]
SHORT = ids("INTERVAL//1d-3d", "INTERVAL//1w-2w", "INTERVAL//5m-15m")


def tokens_of(seed: int) -> np.ndarray:
    """Any tokens, also such as spell nothing; intervals of days."""
    random = np.random.default_rng(seed)
    tokens_T = random.choice(np.flatnonzero(DRAWN), 120)
    is_interval_T = np.isin(tokens_T, VOCABULARY.interval_ids)
    return np.where(is_interval_T, random.choice(SHORT, 120), tokens_T).astype(np.int32)


def answers(tokens_T: np.ndarray, asks_K: np.ndarray) -> list:
    """What the estimators make of a future, for those who ask."""
    times = estimators.outcome_times([Future(1, 0, 0, tokens_T, "answered")], VOCABULARY, TASKS)
    told = []
    for task in itertools.compress(TASKS, asks_K):
        binary = estimators.monte_carlo(times, task) if task.kind == "binary" else estimate_amount(times, task)
        told.append(binary.row(0))
    return told


@pytest.mark.parametrize("seed", range(60))
def test_all_is_answered_with_the_entry_after_the_last_answer_and_not_before(seed) -> None:
    tokens_T = tokens_of(seed)
    asks_K = np.random.default_rng(seed).random(len(TASKS)) < 0.5
    asks_K[seed % len(TASKS)] = True
    clock_T = np.cumsum(SECONDS_V[tokens_T])
    enough = len(tokens_T) - QUESTIONS.watch(asks_K).read(tokens_T, clock_T)
    whole = answers(tokens_T, asks_K)
    assert answers(tokens_T[:enough], asks_K) == whole
    # In chunks of any size the same.
    for size in (1, 7, 50):
        watch = QUESTIONS.watch(asks_K)
        read = itertools.accumulate(size for _ in range(120))
        told = ((upto, watch.read(tokens_T[upto - size : upto], clock_T[upto - size : upto])) for upto in read)
        assert next(min(upto, 120) - since for upto, since in told if since is not None) == enough
    # Whatever else might have come instead of the last two entries leaves something open.
    entries = [event.start for event in grammar.parse(tokens_T.tolist(), VOCABULARY)]
    starts = sorted({*entries, *np.flatnonzero(np.isin(tokens_T, VOCABULARY.interval_ids)).tolist()})
    before = [start for start in starts if start < enough][-2:]
    assert QUESTIONS.watch(asks_K).read(tokens_T[: before[0]], clock_T[: before[0]]) is None


def test_the_clock_starts_where_the_gap_began() -> None:
    (two_weeks,) = ids("INTERVAL//2w-30d")
    asks_K = np.array([task.name == "b_early" for task in TASKS])
    tokens_T = np.array([two_weeks, *ids("C")], np.int32)
    clock_T = np.cumsum(SECONDS_V[tokens_T])
    assert QUESTIONS.watch(asks_K).read(tokens_T, clock_T) == 1  # of 2 tokens: 14 days are past a horizon of 13
    assert QUESTIONS.watch(asks_K).read(tokens_T, clock_T - 5 * 86_400) is None


def test_what_happens_at_once_or_with_the_event_that_closes_the_window_is_an_answer() -> None:
    asks_K = np.array([task.name == "a_until_lab" for task in TASKS])
    day, a, c, lab, value = ids("INTERVAL//1d-3d", "A", "C", "LAB", "VALUE//3")
    watch = lambda *tokens: QUESTIONS.watch(asks_K).read(np.array(tokens), np.cumsum(SECONDS_V[list(tokens)]))  # noqa: E731
    assert watch(a, day) == 0
    assert watch(day, lab, value, a, c, c) == 1  # with the first C: A is at the LAB's time


@pytest.mark.parametrize("estimator", risks.ESTIMATORS)
def test_shorter_futures_give_the_same_estimates(estimator, monkeypatch) -> None:
    tasks, prompts = TASKS[:5], PROMPTS[:24]
    asks_PxK = np.random.default_rng(0).random((len(prompts), len(tasks))) < 0.5
    asks_PxK[np.arange(len(prompts)), np.arange(len(prompts)) % len(tasks)] = True
    sampler = risks.Sampler(model(), VOCABULARY, dataclasses.replace(CONFIG, samples=8, max_new_tokens=48), estimator)
    ended = sampler.simulate(prompts, [DAYS] * len(prompts), tasks, asks_PxK, progress=False)
    monkeypatch.setattr(estimators, "questions", lambda *_: None)
    whole = sampler.simulate(prompts, [DAYS] * len(prompts), tasks, asks_PxK, progress=False)
    assert ended.tokens < 0.9 * whole.tokens
    for future, longer in zip(ended.futures, whole.futures, strict=True):
        assert future.stop in ("answered", longer.stop)
        assert future.tokens_T.tolist() == longer.tokens_T[: len(future.tokens_T)].tolist()
    for k, task in enumerate(tasks):
        asking = [prompt.subject_id for prompt in itertools.compress(prompts, asks_PxK[:, k])]
        tables = [
            simulation.estimate(task).filter(pl.col("subject_id").is_in(asking)).sort("subject_id")
            for simulation in (ended, whole)
        ]
        assert len(tables[0]) == len(asking)
        assert_frame_equal(*tables, abs_tol=1e-12)


def test_a_code_that_others_begin_with_is_certain_with_the_token_after_it() -> None:
    asks_K = np.array([task.name == "a_until_lab" for task in TASKS])
    day, a, two = ids("INTERVAL//1d-3d", "A", ".2")
    watch = lambda *tokens: QUESTIONS.watch(asks_K).read(np.array(tokens), np.cumsum(SECONDS_V[list(tokens)]))  # noqa: E731
    assert watch(day, a) is None
    assert watch(day, a, day) == 0
    assert watch(day, a, two, day) is None  # A.2, which is not asked for
    assert watch(day, a, a) is None and watch(day, a, a, day) == 1
