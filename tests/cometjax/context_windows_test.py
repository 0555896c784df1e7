"""Futures of several context windows: what a window begins with, the same futures as before, and unbiased risks."""

import dataclasses
import functools

import numpy as np
import pytest

from benchmarks import decode
from cometjax import batches, context_windows, engine, estimators, futures, risks
from cometjax.futures import token_seconds
from data_pipeline import grammar
from tests.cometjax.anticipation_test import CONFIG as MARKOV_CONFIG
from tests.cometjax.anticipation_test import HORIZON, PROMPTS, TASKS, exact, model
from tests.cometjax.grammar_states_test import MODEL, VOCABULARY, ids

DAYS = HORIZON / 86_400
CONFIG = engine.SimulationConfig(
    samples=3,
    horizon_seconds=2.0**29,
    max_new_tokens=10,
    max_windows=4,
    max_prompt_tokens=14,
    batch_rows=8,
    chunk_steps=4,
    grammar=True,
)


@dataclasses.dataclass(frozen=True)
class Prompt(decode.RandomPrompt):
    """Tells in its prefix how far before or after the end of the history a window begins."""

    def prefix_before(self, tokens: int) -> np.ndarray:
        return np.array([1, 2, 3, 100 + tokens])

    def prefix_after(self, seconds: int, vocabulary) -> np.ndarray:
        return np.array([1, 2, 3, 10_000 + seconds])


def seconds_of(*texts: str) -> int:
    return int(token_seconds(VOCABULARY)[ids(*texts)].sum())


def window_after(history: list[str], drawn: list[str], most: int, *, gap: int = 0, start: int = 0) -> futures.Start:
    prompt = Prompt(1, np.array([1, 2, 3, 4, *ids(*history)], np.int32))
    begun = batches.Request(prompt, futures.Start(prompt.prompt_T, 0, -1, gap=gap), 0, np.zeros((2, 2), np.uint32))
    future = futures.Future(1, 0, 0, np.array(ids(*drawn), np.int32), "length", start)
    last = batches.Drawn(begun, [future, future], np.array([0, 7]), np.array([0, 3600]))
    return context_windows.next_request(begun, future, last, 1, VOCABULARY, most).start


WEEK, DAY, LONGEST = "INTERVAL//1w-2w", "INTERVAL//1d-3d", VOCABULARY.tokens[VOCABULARY.interval_ids[-1]].text


@pytest.mark.parametrize(
    "history, drawn, most, begins, kept",
    [
        # The whole of it, where it fits; else whole entries, an event with the interval that leads it.
        (["C", DAY, "A"], ["C", WEEK], 12, 100 + 3, ["C", DAY, "A", "C", WEEK]),
        (["C", DAY, "A"], ["C", WEEK], 8, 100 + 2, [DAY, "A", "C", WEEK]),
        (["C", DAY, "A"], ["C", WEEK], 7, 10_000, ["C", WEEK]),
        # Later windows have the prefix of their first event's time, not of the interval before it.
        (["C"], ["A", ".2", WEEK, "C", DAY, "B", ".1"], 10, 10_000 + seconds_of(WEEK), [WEEK, "C", DAY, "B", ".1"]),
        (["C"], ["A", ".2", WEEK, "C", DAY, "B", ".1"], 8, 10_000 + seconds_of(WEEK, DAY), [DAY, "B", ".1"]),
        # An event that is not finished goes on; after an interval alone its end is the time.
        (["C"], ["C", WEEK, "A"], 6, 10_000 + seconds_of(WEEK), [WEEK, "A"]),
        (["C"], ["C", WEEK], 5, 10_000 + seconds_of(WEEK), [WEEK]),
    ],
)
def test_a_window_begins_with_whole_entries_and_the_prefix_of_their_time(history, drawn, most, begins, kept) -> None:
    start = window_after(history, drawn, most)
    assert start.tokens_T.tolist() == [1, 2, 3, begins, *ids(*kept)]
    assert (start.clock, start.first_interval, start.state, start.excess) == (seconds_of(*drawn), -1, 7, 3600)


def test_the_gap_before_the_prediction_time_is_no_history() -> None:
    start = window_after(["C", LONGEST, LONGEST], ["A", WEEK], 8, gap=2)
    assert start.tokens_T.tolist() == [1, 2, 3, 10_000, *ids(LONGEST, LONGEST, "A", WEEK)]
    later = window_after(["C"], [WEEK, "A"], 6, start=-5)
    assert later.tokens_T.tolist() == [1, 2, 3, 10_000 + seconds_of(WEEK) - 5, *ids(WEEK, "A")]


def told_of(length: int, stop: str, seed: int) -> futures.Future:
    random = np.random.default_rng(seed)
    by_outcome_TxK = random.random((length, 2))
    tokens_T, clock_T = random.integers(99, size=(2, length))
    return futures.Future(1, 0, 0, tokens_T, stop, -seed, by_outcome_TxK, by_outcome_TxK < 0.5, clock_T)


def test_a_future_is_joined_and_cut_in_all_that_is_told_of_its_tokens() -> None:
    earlier, later = told_of(5, "length", 1), told_of(3, "horizon", 2)
    whole = context_windows.joined(earlier, later)
    assert (whole.stop, whole.start_seconds) == ("horizon", -1)
    for name in ("tokens_T", "hazard_TxK", "decided_TxK", "drawn_clock_T"):
        parts = [getattr(part, name).tolist() for part in (earlier, later)]
        assert getattr(whole, name).tolist() == parts[0] + parts[1]
        assert getattr(context_windows.first_tokens(whole, 5), name).tolist() == parts[0]


FEW = [
    decode.RandomPrompt(i, np.array([1, 2, 3, 4, *ids("C", DAY, "A", "C")][: 6 + i % 3], np.int32)) for i in range(9)
]


def simulate(prompts=FEW, **changes):
    return engine.simulate_futures(MODEL, VOCABULARY, prompts, dataclasses.replace(CONFIG, **changes))


@functools.cache
def in_windows():
    return simulate()


def test_futures_go_on_where_one_window_ends_and_those_that_fit_are_as_they_were() -> None:
    whole, one_window = in_windows(), simulate(max_windows=1)
    longer = 0
    for future, first in zip(whole, one_window, strict=True):
        assert future.tokens_T[: len(first.tokens_T)].tolist() == first.tokens_T.tolist()
        if first.stop != "length":
            assert (future.stop, len(future.tokens_T)) == (first.stop, len(first.tokens_T))
        longer += len(future.tokens_T) > 2 * CONFIG.max_new_tokens
        # The grammar is kept across windows, also inside of an event.
        assert all(event.event != grammar.INVALID for event in grammar.parse(future.tokens_T.tolist(), VOCABULARY))
    assert longer > 3 and {future.stop for future in whole} == {"death", "length"}


def test_a_future_of_several_windows_depends_on_nothing_beside_it() -> None:
    key = lambda future: (future.subject_id, future.sample, future.stop, tuple(future.tokens_T.tolist()))  # noqa: E731
    every = set(map(key, in_windows()))
    assert set(map(key, simulate(FEW[4:2:-1], batch_rows=32, chunk_steps=3))) <= every


@pytest.mark.usefixtures("hurried_compiler")
def test_each_window_is_drawn_as_full_recomputation_draws_it() -> None:
    """With next to no temperature each token is the most probable one, whatever the random numbers."""
    config = dataclasses.replace(CONFIG, samples=1, temperature=1e-5, grammar=False, max_windows=3)
    few = FEW[:4]
    for prompt, future in zip(few, engine.simulate_futures(MODEL, VOCABULARY, few, config), strict=True):
        prompt_T, drawn_T = prompt.prompt_T, future.tokens_T
        for at in range(0, len(drawn_T), config.max_new_tokens):
            whole_T = np.concatenate([prompt_T, drawn_T[:at]])
            starts = np.flatnonzero(grammar.entry_starts(whole_T, VOCABULARY))
            earliest = max(4, len(whole_T) - config.max_prompt_tokens + 4)
            begin = min(starts[starts >= earliest], default=earliest)
            window_T = np.concatenate([prompt_T[:4], whole_T[begin:]]) if at else prompt_T
            again = decode.RandomPrompt(prompt.subject_id, window_T)
            (full_T,) = decode.recompute(MODEL, VOCABULARY, [again], config, config.max_new_tokens)
            part_T = drawn_T[at : at + config.max_new_tokens]
            assert part_T.tolist() == full_T[: len(part_T)].tolist()
        assert future.stop != "length" or len(drawn_T) == 3 * config.max_new_tokens


@pytest.mark.usefixtures("hurried_compiler")
def test_risks_of_futures_in_windows_are_the_known_ones_and_nothing_is_cut() -> None:
    few = PROMPTS[:24]
    config = dataclasses.replace(MARKOV_CONFIG, max_new_tokens=8, max_windows=12, max_prompt_tokens=10, chunk_steps=4)
    sampler = risks.Sampler(model(), VOCABULARY, config, "scope")
    simulation = sampler.simulate(few, [DAYS] * len(few), TASKS[1:3], progress=False)
    assert max(len(future.tokens_T) for future in simulation.futures) > 3 * config.max_new_tokens
    for k, task in enumerate(TASKS[1:3], 1):
        table = simulation.estimate(task).sort("subject_id")
        assert set(table["truncated"]) == {0.0}
        z = (table["risk"].to_numpy() - exact()[: len(few), k]).mean() / table["standard_error"].mean()
        assert abs(z) < 4 / np.sqrt(len(few))


def test_what_was_asked_in_one_window_is_answered_in_another() -> None:
    # Of two questions one window may answer the first, and a later one the other.
    questions = estimators.questions(VOCABULARY, [TASKS[0], dataclasses.replace(TASKS[0], name="c", outcome="C")])
    asks_PxK = np.ones((len(FEW), 2), bool)
    told = engine.iter_futures(MODEL, VOCABULARY, FEW, CONFIG, questions=questions, asks_PxK=asks_PxK)
    ended, whole = [future for _, own in sorted(told) for future in own], in_windows()
    (lab,) = ids("LAB")
    later = 0
    answered = lambda future: questions.watch(np.ones(2, bool)).read(future.tokens_T, future.drawn_clock_T)  # noqa: E731
    for future, longer in zip(ended, whole, strict=True):
        assert future.tokens_T.tolist() == longer.tokens_T[: len(future.tokens_T)].tolist()
        assert len(future.tokens_T) == len(longer.tokens_T) - (answered(longer) or 0)
        later += future.stop == "answered" and lab not in longer.tokens_T[: CONFIG.max_new_tokens]
    assert later > 1
