"""Monte-Carlo, SCOPE and REACH are unbiased, with honest standard errors, where the risk is known exactly."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from benchmarks.decode import RandomPrompt
from cometjax import anticipation, engine, estimators
from cometjax.futures import Future, token_seconds
from cometjax.model import ModelConfig
from cometjax.tasks import Task
from tests.cometjax.grammar_states_test import VOCABULARY, ids

HORIZON = 40 * 86_400
# Codes that are certain at once, only with what follows, and in parts; and the end of all.
OUTCOMES = (
    frozenset({"LAB"}),
    frozenset({"A"}),
    frozenset({"A.2", "B.2", "A.2.21"}),
    frozenset({"DEATH"}),
)
TASKS = [
    Task(
        name=f"k{k}",
        index="X",
        horizon_days=HORIZON / 86_400,
        outcome="|".join(o.replace(".", r"\.") for o in concepts),
    )
    for k, concepts in enumerate(map(sorted, OUTCOMES))
]
CONFIG = engine.SimulationConfig(
    samples=32, horizon_seconds=HORIZON, max_new_tokens=96, batch_rows=512, chunk_steps=16, grammar=True
)
SECONDS_V = token_seconds(VOCABULARY)


class MarkovDecoder(nnx.Module):
    """Stands in for the decoder: the next token's logits depend on the last token alone."""

    def __init__(self, table_VxV: np.ndarray) -> None:
        self.config = ModelConfig(len(table_VxV), 1, 2, 1, 1, 2, 2)
        self.table = nnx.Param(jnp.asarray(table_VxV, jnp.float32))

    def layer_weights(self):
        return []

    def hidden(self, tokens_BxL, positions_BxL, attend, caches=None, layers=None):
        nothing = jnp.zeros((*tokens_BxL.shape, 1, 2))
        _, cache = attend(nothing, nothing, nothing, caches[0])
        return self.table[...][tokens_BxL], [cache]

    def logits(self, x):
        return x


@functools.cache
def model() -> MarkovDecoder:
    random = np.random.default_rng(5)
    table_VxV = random.normal(size=(len(VOCABULARY), len(VOCABULARY)))
    # Three intervals alone, so that all that can happen is enumerated soon; deaths are rare.
    table_VxV[:, list(VOCABULARY.interval_ids)] -= 60.0
    table_VxV[:, [VOCABULARY.ids[f"INTERVAL//{name}"] for name in ("1w-2w", "2w-30d", "30d-6mt")]] += 60.0
    table_VxV[:, ids("DEATH", "LAB", "A", "B")] -= np.array([1.0, 1.0, 0.5, 0.5])
    return MarkovDecoder(table_VxV)


# What came last decides: a prompt's risk is that of its last token.
LAST = [("C",), ("A",), (".1",), (".2",), (".21",), ("DEATH",), ("VALUE//1",), ("VALUE//7",)]
PROMPTS = [
    RandomPrompt(subject, np.array([1, 2, 3, 4, *ids(*LAST[subject % len(LAST)])], np.int32)) for subject in range(500)
]


def allowed(spelt: tuple[int, ...]) -> np.ndarray:
    """bool [V]: what the grammar lets follow, from the vocabulary's readings alone. `spelt`: tokens since an event's
    first; (-1,) after an interval, (-2,) after the longest, () between events."""
    longest = VOCABULARY.interval_ids[-1]
    possible = np.zeros(len(VOCABULARY), bool)
    possible[[r[len(spelt)] for r in VOCABULARY.readings if len(r) > len(spelt) and r[: len(spelt)] == spelt]] = True
    if spelt in VOCABULARY.readings or spelt == () or spelt[0] < 0:
        possible[[reading[0] for reading in VOCABULARY.readings]] = True
        if not spelt or spelt[0] >= 0:
            possible[list(VOCABULARY.interval_ids)] = True
        elif spelt == (-2,):
            possible[longest] = True
    return possible


def after(spelt: tuple[int, ...], token: int) -> tuple[int, ...]:
    kind = VOCABULARY.tokens[token].grammar
    if kind == "interval":
        return (-2,) if token == VOCABULARY.interval_ids[-1] else (-1,)
    return (token,) if kind == "first" else (*spelt, token)


def exact_risk(concepts: frozenset[str], closing: frozenset[str] = frozenset()) -> np.ndarray:
    """For each of LAST, by enumeration of what can happen: mass by (last token, tokens of the event, clock, closed).
    An event of `closing` closes the window with the end of its instant.
    """
    table_VxV = np.asarray(model().table[...], np.float64)
    running = {(ids(*texts)[-1], (), 0, False): row for texts, row in zip(LAST, np.eye(len(LAST)), strict=True)}
    risk = np.zeros(len(LAST))
    for _ in range(CONFIG.max_new_tokens):
        following: dict[tuple, np.ndarray] = {}
        for (token, spelt, clock, closed), mass in running.items():
            probability_V = np.where(allowed(spelt), np.exp(table_VxV[token]), 0)
            probability_V = probability_V / probability_V.sum()
            event = VOCABULARY.readings.get(spelt)
            concept = None if event is None else VOCABULARY.events[event[0]].concept
            for to in np.flatnonzero(probability_V > 1e-15).tolist():
                goes_on = VOCABULARY.tokens[to].grammar in ("part", "value")
                later = clock + int(SECONDS_V[to])
                closes = closed or (concept in closing and not goes_on)
                if concept in concepts and not goes_on:
                    risk += mass * probability_V[to]
                elif to == VOCABULARY.ids["DEATH"]:
                    risk += mass * probability_V[to] * ("DEATH" in concepts)
                elif later <= HORIZON and not (closes and VOCABULARY.tokens[to].grammar == "interval"):
                    key = (to, after(spelt, to), later, closes)
                    following[key] = following.get(key, 0.0) + mass * probability_V[to]
        running = {key: mass for key, mass in following.items() if mass.max() > 1e-9}
    assert sum(mass.max() for mass in running.values()) < 1e-4  # next to none runs out of tokens
    return risk


@functools.cache
def exact() -> np.ndarray:
    by_last = np.stack([exact_risk(concepts) for concepts in OUTCOMES], 1)
    return by_last[np.arange(len(PROMPTS)) % len(LAST)]


@functools.cache
def estimates() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By estimator: (risk, standard error), each [prompts, outcomes]; Monte-Carlo and SCOPE share their futures."""
    horizon_K = np.full(len(OUTCOMES), HORIZON)
    shares = np.zeros((len(PROMPTS), CONFIG.samples, len(OUTCOMES)))
    futures: list[Future] = []
    for index, of_prompt in engine.iter_futures(model(), VOCABULARY, PROMPTS, CONFIG, outcomes=OUTCOMES):
        shares[index], cut = anticipation.contributions(of_prompt, horizon_K, suppressed=False)
        assert not cut.any()
        futures += of_prompt
    result = {"scope": spread(shares)}
    times = estimators.outcome_times(futures, VOCABULARY, TASKS)
    by_task = [estimators.monte_carlo(times, task).sort("subject_id") for task in TASKS]
    result["monte_carlo"] = tuple(
        np.stack([table.get_column(name).to_numpy() for table in by_task], 1) for name in ("risk", "standard_error")
    )
    for k, concepts in enumerate(OUTCOMES):
        for index, of_prompt in engine.iter_futures(
            model(), VOCABULARY, PROMPTS, CONFIG, outcomes=[concepts], suppress=True
        ):
            of_outcome, _ = anticipation.contributions(of_prompt, horizon_K[:1], suppressed=True)
            shares[index, :, k] = of_outcome[:, 0]
    return result | {"reach": spread(shares)}


def spread(shares_PxSxK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return shares_PxSxK.mean(1), shares_PxSxK.std(1, ddof=1) / np.sqrt(shares_PxSxK.shape[1])


@pytest.mark.parametrize("estimator", ["monte_carlo", "scope", "reach"])
def test_z_scores_over_500_prompts_are_standard_normal(estimator) -> None:
    risk, error = estimates()[estimator]
    for k in range(len(OUTCOMES)):
        z = (risk - exact())[:, k] / np.maximum(error[:, k], 1e-12)
        # Mean and spread of 500 z-scores; the sample's error is itself known to some 1/8, and of few events skewed.
        assert abs(((risk - exact())[:, k] / error[:, k].mean()).mean()) < 4 / np.sqrt(len(z))
        assert 0.85 < ((risk - exact())[:, k].std() / np.sqrt((error[:, k] ** 2).mean())) < 1.15
        assert np.mean(np.abs(z) < 1.96) > 0.88


def test_reach_never_varies_more_than_monte_carlo_and_scope_does_less_here() -> None:
    error_2 = {name: (error**2).mean(0) for name, (_, error) in estimates().items()}
    assert (error_2["reach"] < error_2["monte_carlo"]).all()
    assert (error_2["scope"][[0, 3]] < error_2["monte_carlo"][[0, 3]]).all()
    assert (exact().min(0) > 0.02).all() and (exact().max(0) < 0.9).all()


def of(tokens: list[int], hazard: list[float], decided: list[bool], sample: int, stop: str = "horizon") -> Future:
    columns = np.array(hazard, np.float32)[:, None], np.array(decided)[:, None]
    return Future(
        1, 0, sample, np.array(tokens, np.int32), stop, 0, *columns, np.cumsum(SECONDS_V[tokens], dtype=np.int64)
    )


def test_cut_futures_of_zeros_and_ones_give_kaplan_and_meiers_estimate() -> None:
    """Where a hazard is 1 at what happens and 0 elsewhere, SCOPE is Monte-Carlo, censored futures and all."""
    random, day = np.random.default_rng(0), VOCABULARY.ids["INTERVAL//1d-3d"]
    for trial in range(20):
        futures = []
        for sample in range(9):
            spelt = [token for _ in range(random.integers(1, 12)) for token in (day, VOCABULARY.ids["C"])]
            happens = random.random() < 0.5
            tokens = spelt + [VOCABULARY.ids["LAB"], VOCABULARY.ids["VALUE//1"]] * happens
            decided = [token == VOCABULARY.ids["LAB"] for token in tokens]
            stop = "length" if random.random() < 0.7 else "timeline_end"
            futures.append(of(tokens, [float(value) for value in decided], decided, sample, stop))
        times = estimators.outcome_times(futures, VOCABULARY, TASKS[:1])
        wanted = estimators.monte_carlo(times, TASKS[0])
        share, cut = anticipation.contributions(futures, np.array([HORIZON]), suppressed=False)
        assert share.mean() == pytest.approx(wanted["risk"][0], abs=1e-12), trial
        assert cut.mean() == pytest.approx(wanted["truncated"][0])


def test_hazards_count_up_to_the_first_outcome_and_the_horizon() -> None:
    day, c, lab = (VOCABULARY.ids[text] for text in ("INTERVAL//1d-3d", "C", "LAB"))
    future = of([c, day, lab, c, lab], [0.1, 0.2, 0.3, 0.4, 0.5], [False, False, True, False, True], 0)
    for horizon, scope in ((HORIZON, 0.6), (0, 0.3)):
        share, _ = anticipation.contributions([future], np.array([horizon]), suppressed=False)
        assert share[0, 0] == pytest.approx(scope)
    share, _ = anticipation.contributions([future], np.array([0]), suppressed=True)
    assert share[0, 0] == pytest.approx(1 - 0.9 * 0.8)
    twice = [future, dataclasses.replace(future, sample=1, hazard_TxK=future.hazard_TxK * 0)]
    table = anticipation.Contributions(
        pl.DataFrame({"subject_id": [1, 1], "prediction_time": [0, 0], "sample": [0, 1]}),
        *anticipation.contributions(twice, np.array([HORIZON]), suppressed=False),
        ("lab",),
    )
    row = table.estimate("lab").row(0, named=True)
    assert row["risk"] == pytest.approx(0.3) and row["standard_error"] == pytest.approx(0.3)
    assert table.estimate("lab", [1])["risk"].to_list() == [0]
