"""Risks by every estimator, with as many samples as a target for the standard error needs, and by fewer samples."""

import dataclasses
import functools
import re

import numpy as np
import polars as pl
import pytest

from cometjax import engine, report_samples, risks, test_time_scaling
from cometjax.futures import Future, token_seconds
from cometjax.job_folder import Part
from cometjax.tasks import Task
from data_pipeline.errors import UserError
from tests.cometjax.anticipation_test import (
    CONFIG,
    HORIZON,
    OUTCOMES,
    PROMPTS,
    TASKS,
    VOCABULARY,
    exact,
    exact_risk,
    model,
)

DAYS = HORIZON / 86_400
FEW = PROMPTS[:60]
CONCEPTS = sorted({event.concept for event in VOCABULARY.events})


@functools.cache
def simulated(estimator: str, target_se: float = 0.0, prompts: int = len(FEW), seed: int = 0) -> risks.Simulation:
    config = dataclasses.replace(CONFIG, grammar=estimator == "monte_carlo", seed=seed)
    sampler = risks.Sampler(model(), VOCABULARY, config, estimator, target_se)
    return sampler.simulate(PROMPTS[:prompts], [DAYS] * prompts, TASKS, progress=False)


@pytest.mark.parametrize("estimator", risks.ESTIMATORS)
def test_every_estimator_gives_the_known_risk_of_every_task(estimator) -> None:
    simulation = simulated(estimator)
    sets = len(TASKS) if estimator == "reach" else 1  # of futures: each without one outcome
    assert len(simulation.futures) == sets * len(FEW) * CONFIG.samples < simulation.tokens
    for k, task in enumerate(TASKS):
        table = simulation.estimate(task).sort("subject_id")
        assert table.columns == ["subject_id", "prediction_time", "risk", "standard_error", "samples", "truncated"]
        assert table["subject_id"].to_list() == [prompt.subject_id for prompt in FEW]
        assert set(table["samples"]) == {CONFIG.samples} and set(table["truncated"]) == {0.0}
        z = (table["risk"].to_numpy() - exact()[: len(FEW), k]).mean() / table["standard_error"].mean()
        assert abs(z) < 4 / np.sqrt(len(FEW))


CLOSED = [
    Task(name="a_until_lab", index="X", horizon_days=DAYS, outcome="A", until="LAB"),
    Task(name="b_2_until_a", index="X", horizon_days=DAYS, outcome=r"B\.2", until=r"A|A\.2.*"),
    Task(name="death_until_c", index="X", horizon_days=DAYS, outcome="DEATH", until="C"),
]


@pytest.mark.parametrize("estimator", risks.ESTIMATORS)
def test_an_event_that_closes_the_window_is_heeded_by_every_estimator(estimator) -> None:
    known = [
        exact_risk(*(frozenset(c for c in CONCEPTS if re.fullmatch(pattern, c)) for pattern in (t.outcome, t.until)))
        for t in CLOSED
    ]
    config = dataclasses.replace(CONFIG, grammar=True)
    sampler = risks.Sampler(model(), VOCABULARY, config, estimator)
    simulation = sampler.simulate(FEW, [DAYS] * len(FEW), CLOSED, progress=False)
    for task, known_L in zip(CLOSED, known, strict=True):
        open_L = exact_risk(frozenset(c for c in CONCEPTS if re.fullmatch(task.outcome, c)))
        assert (open_L - known_L > 0.05).any()  # else it could be ignored
        table = simulation.estimate(task).sort("subject_id")
        error = table["risk"].to_numpy() - known_L[np.arange(len(FEW)) % len(known_L)]
        assert abs(error.mean() / table["standard_error"].mean()) < 4 / np.sqrt(len(FEW)), task.name


def test_some_of_the_samples_give_a_risk_of_their_own() -> None:
    for estimator in ("monte_carlo", "scope"):
        simulation = simulated(estimator)
        halves = [simulation.estimate(TASKS[0], range(at, at + 16))["risk"] for at in (0, 16)]
        assert not halves[0].equals(halves[1])
        np.testing.assert_allclose((halves[0] + halves[1]) / 2, simulation.estimate(TASKS[0])["risk"], atol=1e-9)


@pytest.mark.parametrize(
    "estimator, target",
    [
        ("monte_carlo", 0.12),
        pytest.param("scope", 0.07, marks=pytest.mark.slow),
        pytest.param("reach", 0.05, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_is_sampled_until_its_errors_are_small_enough(estimator, target) -> None:
    stopped, whole = simulated(estimator, target), simulated(estimator)
    kept = {(future.subject_id, future.sample): future.tokens_T.tolist() for future in whole.futures}
    if estimator != "reach":  # which has futures of each task
        assert all(kept[future.subject_id, future.sample] == future.tokens_T.tolist() for future in stopped.futures)
    samples = stopped.estimate(TASKS[-1])["samples"]
    assert 8 <= samples.min() < samples.max() <= CONFIG.samples and set(samples % 8) == {0}
    assert stopped.tokens < whole.tokens
    errors = [stopped.estimate(task).filter(pl.col("samples") < CONFIG.samples)["standard_error"] for task in TASKS]
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) < 1.15 * target


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """Puts futures made by hand in the engine's place, of which most are cut short, and whose hazards are the larger
    the later the outcome stands in OUTCOMES. By call, the prompts' subjects."""
    calls: list[list[int]] = []
    day, code = (VOCABULARY.ids[text] for text in ("INTERVAL//1d-3d", "C"))

    def futures_of(prompt, config, places):
        for sample in range(config.first_sample, config.first_sample + config.samples):
            random = np.random.default_rng([prompt.subject_id, sample])
            stop = "length" if random.random() < 0.7 else "timeline_end"
            tokens_T = np.array([day, code] * random.integers(1, 12), np.int32)
            hazard_TxK = random.random((len(tokens_T), len(OUTCOMES))) * 0.02 * 2.0 ** np.arange(len(OUTCOMES))
            decided_TxK = np.zeros((len(tokens_T), len(places)), bool)
            clock_T = np.cumsum(token_seconds(VOCABULARY)[tokens_T], dtype=np.int64)
            yield Future(prompt.subject_id, 0, sample, tokens_T, stop, 0, hazard_TxK[:, places], decided_TxK, clock_T)

    def iter_futures(model, vocabulary, prompts, config, *, outcomes, **_):
        calls.append([prompt.subject_id for prompt in prompts])
        places = [OUTCOMES.index(outcome) for outcome in outcomes]
        for index, prompt in enumerate(prompts):
            yield index, list(futures_of(prompt, config, places))

    monkeypatch.setattr(engine, "iter_futures", iter_futures)
    return calls


def test_reach_draws_of_each_task_the_prompts_that_it_asks_and_no_others(drawn) -> None:
    visits = dataclasses.replace(TASKS[0], name="count", kind="count")
    asked = {TASKS[0]: [0, 1, 2], visits: [1, 5], TASKS[1]: [3], TASKS[2]: [2, 4]}
    asks_PxK = np.array([[prompt in own for own in asked.values()] for prompt in range(6)])
    sampler = risks.Sampler(model(), VOCABULARY, dataclasses.replace(CONFIG, samples=2), "reach")
    simulation = sampler.simulate(PROMPTS[:6], [DAYS] * 6, list(asked), asks_PxK, progress=False)
    assert drawn == [[0, 1, 2], [3], [2, 4], [1, 5]] and len(simulation.futures) == 2 * 8
    for task, own in asked.items():
        assert simulation.estimate(task)["subject_id"].to_list() == own


def test_tasks_that_do_not_ask_a_prompt_do_not_decide_how_often_it_is_sampled(drawn) -> None:
    sampler = risks.Sampler(model(), VOCABULARY, CONFIG, "scope", 0.02)
    alone = sampler.simulate(PROMPTS[:8], [DAYS] * 8, TASKS[:1], progress=False)
    asks_PxK = np.tile([task == TASKS[0] for task in TASKS], (8, 1))
    asks_PxK[2] = True
    among_all = sampler.simulate(PROMPTS[:8], [DAYS] * 8, TASKS, asks_PxK, progress=False)
    samples, wanted = (simulation.estimate(TASKS[0])["samples"].to_list() for simulation in (among_all, alone))
    assert samples.pop(2) == CONFIG.samples > wanted.pop(2) and samples == wanted


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_samples_of_several_rounds_are_weighed_as_one_set(estimator, drawn, tmp_path) -> None:
    results = []
    for target, kept_in in ((0.0, None), (1e-3, tmp_path), (1e-3, tmp_path)):
        sampler = risks.Sampler(model(), VOCABULARY, CONFIG, estimator, target, kept_in)
        results.append(sampler.simulate(PROMPTS[:4], [DAYS] * 4, TASKS[:1], progress=False))
    whole, in_rounds, from_disk = results
    assert (whole.estimate(TASKS[0])["truncated"] > 0.3).all()
    assert in_rounds.estimate(TASKS[0]).equals(whole.estimate(TASKS[0]))
    assert from_disk.estimate(TASKS[0]).equals(whole.estimate(TASKS[0]))
    assert from_disk.new_tokens == 0 < in_rounds.new_tokens == whole.tokens


def test_futures_of_another_checkpoint_are_not_taken_for_ones_own(tmp_path) -> None:
    other = type(model())(1.01 * np.asarray(model().table[...]))
    samplers = [risks.Sampler(which, VOCABULARY, CONFIG, kept_in=tmp_path) for which in (model(), other, model())]
    drawn = [sampler.simulate(PROMPTS[:1], [DAYS], TASKS[:1], progress=False) for sampler in samplers]
    assert [simulation.new_tokens for simulation in drawn] == [drawn[0].tokens, drawn[1].tokens, 0]
    assert drawn[1].tokens


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_parts_draw_the_rounds_that_one_process_draws(estimator, drawn, tmp_path) -> None:
    """Some prompts have more rounds than others."""
    asked = PROMPTS[:12], [DAYS] * 12, TASKS[:1]
    alone = risks.Sampler(model(), VOCABULARY, CONFIG, estimator, 0.03).simulate(*asked, progress=False)
    sampler = risks.Sampler(model(), VOCABULARY, CONFIG, estimator, 0.03, tmp_path)
    tokens = [sampler.draw(*asked, part=Part(index, 2), progress=False) for index in (1, 0)]
    together = sampler.simulate(*asked, progress=False)
    assert together.new_tokens == 0 < min(tokens) and sum(tokens) == alone.tokens == together.tokens
    assert together.estimate(TASKS[0]).equals(alone.estimate(TASKS[0]))
    assert len(set(together.estimate(TASKS[0])["samples"])) == 3


@pytest.mark.slow
def test_stopping_by_a_pilot_leaves_no_bias_to_see() -> None:
    stopped = simulated("monte_carlo", 0.12, prompts=len(PROMPTS), seed=1)
    for k, task in enumerate(TASKS):
        table = stopped.estimate(task).sort("subject_id")
        bias = (table["risk"].to_numpy() - exact()[:, k]).mean()
        assert abs(bias) < 4 * np.sqrt((table["standard_error"] ** 2).mean() / len(PROMPTS))


def test_an_unknown_estimator_and_a_negative_target_are_refused() -> None:
    with pytest.raises(UserError, match="estimator"):
        risks.Sampler(model(), VOCABULARY, CONFIG, "bootstrap")
    with pytest.raises(UserError, match="target_se"):
        risks.Sampler(model(), VOCABULARY, CONFIG, "scope", -0.1)


def test_no_prompts_have_no_risks() -> None:
    assert simulated("monte_carlo", prompts=0).estimate(TASKS[0]).is_empty()


def test_scores_by_samples_are_those_of_disjoint_sets_and_rise_with_their_size() -> None:
    random = np.random.default_rng(0)
    risk_N = random.random(400)
    labels_N = (random.random(400) < risk_N).astype(float)
    drawn_NxS = random.random((400, 12)) < risk_N[:, None]
    asked: list[list[int]] = []

    def estimate(samples) -> pl.Series:
        asked.append(list(samples))
        return pl.Series(drawn_NxS[:, list(samples)].mean(1))

    table = test_time_scaling.scores_by_samples(labels_N, 12, estimate)
    assert [(row["samples"], row["sets"]) for row in table] == [(1, 8), (2, 6), (4, 3), (8, 1), (12, 1)]
    assert [chosen for chosen in asked if len(chosen) == 4] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert table[0]["auroc"] < table[2]["auroc"] < table[4]["auroc"] and table[0]["brier"] > table[4]["brier"]
    assert all(row["auroc_low"] <= row["auroc"] <= row["auroc_high"] for row in table)
    one_class = test_time_scaling.scores_by_samples(np.ones(400), 2, estimate)
    assert [row["auroc"] for row in one_class] == [None, None]
    assert test_time_scaling.scores_by_samples(np.ones(0), 2, estimate) == []


def test_the_figure_names_few_tasks_and_shows_the_median_of_many() -> None:
    table = [{"samples": m, "auroc": 0.6, "auroc_low": 0.5, "auroc_high": 0.7, "brier": 0.2} for m in (1, 2)]
    few = report_samples.by_samples({"death": {"by_samples": table}}, "few")
    many = report_samples.by_samples({f"task{i}": {"by_samples": table} for i in range(40)}, "many")
    assert few is not None and many is not None and few.startswith("<svg")
    assert report_samples.by_samples({"death": {"by_samples": table[:1]}, "other": {}}, "none") is None


def test_a_prompts_own_horizon_bounds_its_future() -> None:
    days = [DAYS if index % 2 else 1.0 for index in range(8)]
    config = dataclasses.replace(CONFIG, samples=2)
    simulation = risks.Sampler(model(), VOCABULARY, config, "reach").simulate(
        PROMPTS[:8], days, TASKS[:1], progress=False
    )
    spent = {True: 0, False: 0}
    for future in simulation.futures:
        spent[bool(future.subject_id % 2)] += len(future.tokens_T)
    assert spent[False] < spent[True]
    assert isinstance(simulation.futures[0], engine.Future)
