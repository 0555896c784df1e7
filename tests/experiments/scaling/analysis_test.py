"""What an analysis adds to the fits: other ways to count, intervals of single runs, bands, hold-outs."""

import numpy as np
import pytest

from experiments.scaling import analysis, study_config, surface, uncertainty
from experiments.scaling.analysis import Analysis
from experiments.scaling.plan import PlannedTrial
from experiments.scaling.recipe import Shape
from experiments.scaling.trials import Outcome
from tests.experiments.scaling.made_up_study import TRUE

BUDGETS, FACTORS = (1e11, 2e11, 4e11, 8e11), (0.3, 0.5, 0.8, 1.3, 2.0, 3.3)
NOISE = 0.005


def body(n: float) -> int:
    """Parameters without embeddings, which are most of a small model."""
    return round(0.02 * n**1.3)


def grid(noise: float, *, without_embeddings: bool = False) -> list[Outcome]:
    """A grid whose losses obey the known law, in N or in N without embeddings; exact FLOPs grow as (6 N D)^1.1."""
    random, made = np.random.default_rng(0), []
    for budget in BUDGETS:
        for factor in FACTORS:
            n = round(factor * float(TRUE.optimum(np.array(budget))[0]))
            tokens = round(budget / (6 * n))
            true = float(TRUE.loss(np.array(body(n) if without_embeddings else n), np.array(tokens)))
            trial = PlannedTrial(
                name=f"grid-{budget:g}-{n}", stage="grid", budget=budget, shape=Shape(1, 8, 1, 1, 8, 16), n=n,
                n_without_embeddings=body(n), steps=100, tokens=tokens, unique_tokens=tokens, epochs=1.0,
                flops=budget**1.1, flops_6nd=budget, seconds=None, device_hours=None, overrides={},
            )  # fmt: skip
            loss = true * float(np.exp(noise * random.normal()))
            made.append(Outcome(trial, loss, tokens, budget**1.1, 1.0, 1.0, 0, (), {}))
    return made


@pytest.fixture(scope="module")
def noisy() -> Analysis:
    settings = study_config.default_config().fit
    settings.bootstrap = 100
    return analysis.analyse(grid(NOISE), settings)


def test_each_way_to_count_is_a_fit_of_numbers_counted_so() -> None:
    def rows(runs):
        return {(row["n"], row["c"]): row for row in analysis.conventions(runs, surface.DELTA)}

    counted, bodies = rows(grid(0.0)), rows(grid(0.0, without_embeddings=True))
    for runs, n_name, other in ((counted, "with embeddings", "without"), (bodies, "without", "with embeddings")):
        assert runs[n_name, "6 N D"]["alpha"] == pytest.approx(TRUE.alpha, rel=1e-3)
        assert runs[other, "6 N D"]["alpha"] != pytest.approx(TRUE.alpha, rel=0.1)
    # The same minima against a compute that grows as the 1.1th power of the other.
    by_6nd, exact = (counted["with embeddings", name]["approach2"] for name in ("6 N D", "exact"))
    assert exact == pytest.approx(by_6nd / 1.1, rel=1e-3)


def test_an_interval_is_of_single_runs_not_only_of_the_curve(noisy) -> None:
    inside, width = [], []
    for one in noisy.outcomes:
        told = noisy.predict(one.trial.n, one.tokens)
        inside.append(told.low <= one.loss <= told.high)
        width.append(np.log(told.high / told.low))
    assert np.mean(inside) > 0.9
    # 95% of normal noise are four standard deviations wide; two dozen residuals have no such tails.
    assert 2.5 * NOISE < np.median(width) < 6 * NOISE


def test_a_band_holds_the_share_of_replicates_that_it_says(noisy) -> None:
    bands = {name: np.array(values) for name, values in noisy.result["bands"].items()}
    for index, name in enumerate(("n", "d", "loss")):
        assert np.all(bands[f"{name}_low"] < bands[name]) and np.all(bands[name] < bands[f"{name}_high"])
        drawn = np.array(
            [(*one.optimum(bands["c"]), one.loss(*one.optimum(bands["c"])))[index] for one in noisy.surfaces]
        )
        within = (bands[f"{name}_low"] <= drawn) & (drawn <= bands[f"{name}_high"])
        np.testing.assert_allclose(within.mean(axis=0), 0.95, atol=0.02)


def test_a_budget_is_held_out_whole(noisy) -> None:
    held_out = noisy.result["holdout"]["by_budget"]
    counts = [(one["held_out"], one["fitted_runs"], one["held_out_runs"]) for one in held_out]
    assert counts == [(f"C = {budget:.3g}", 18, 6) for budget in BUDGETS]


def test_what_is_dropped_is_what_has_the_highest_loss(noisy) -> None:
    points = noisy.points
    dropped = uncertainty.by_dropped(points, 3)
    assert list(dropped) == ["0", "1", "2"]
    rest = np.flatnonzero(points.loss_P < np.sort(points.loss_P)[-2])
    assert len(rest) == len(points) - 2 and dropped["2"] == surface.fit_huber(points.take(rest))
