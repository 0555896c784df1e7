"""The lower envelope, isoFLOP parabolas, and each reason to refuse them."""

import numpy as np
import pytest

from experiments.scaling import fit, frontier, gates, points, surface, uncertainty

SYMMETRIC = surface.Surface(A=400.0, B=400.0, E=1.7, alpha=0.34, beta=0.34, objective=0.0)


def grid(truth=SYMMETRIC, *, budgets=4, factors=(0.25, 0.5, 1, 2, 4), centre=1.0) -> points.Points:
    """IsoFLOP runs around `centre` times the true optimum, noise-free."""
    c = np.repeat(1e18 * 10.0 ** np.arange(budgets), len(factors))
    n = truth.optimum(c)[0] * np.tile(factors, budgets) * centre
    d = c / (6 * n)
    return points.make_points(n, d, truth.loss(n, d))


def closed(runs: points.Points, hold_out=None) -> set[str]:
    good = uncertainty.HoldOut("C >= 1e+21", 15, 5, 0.001)
    return {gate.name for gate in gates.check(frontier.isoflops(runs), hold_out or good) if not gate.passed}


def test_a_centred_grid_gives_the_true_power_law() -> None:
    iso = frontier.isoflops(grid())
    assert iso.law.exponent == pytest.approx(SYMMETRIC.n_exponent, abs=1e-3)
    true_n = SYMMETRIC.optimum(np.array([p.c for p in iso.parabolas]))[0]
    np.testing.assert_allclose([p.n_star for p in iso.parabolas], true_n, rtol=0.02)


def test_an_off_centre_grid_biases_the_parabolas_and_the_bias_is_foretold() -> None:
    truth = surface.Surface(A=300.0, B=4000.0, E=1.5, alpha=0.32, beta=0.45, objective=0.0)
    drifting = grid(truth, factors=(0.5, 1, 2, 4, 8, 16))
    # The grid's centre drifts against the optimum, as that of a fixed ladder of sizes does.
    n = drifting.n_P * (drifting.c_P / 1e18) ** 0.05
    d = drifting.c_P / (6 * n)
    runs = points.make_points(n, d, truth.loss(n, d))
    bias = frontier.isoflops(runs).law.exponent - truth.n_exponent
    assert abs(bias) > 0.005
    assert fit.exponent_bias(runs, surface.fit_huber(runs), 1) == pytest.approx(bias, abs=1e-3)


def test_the_envelope_holds_the_runs_that_no_cheaper_run_beats() -> None:
    runs = points.Points(
        n_P=np.array([1e6, 2e6, 4e6, 8e6, 2e6]),
        d_P=np.ones(5),
        c_P=np.array([1e15, 2e15, 4e15, 8e15, 4e15]),
        loss_P=np.array([3.0, 3.1, 2.5, 2.0, 2.6]),
        weight_P=np.ones(5),
    )
    envelope = frontier.lower_envelope(runs)
    assert envelope.runs == 3
    assert envelope.law.exponent == pytest.approx(1.0)


def test_budgets_are_compute_rounded_to_digits() -> None:
    runs = points.Points(np.ones(4), np.ones(4), np.array([0.97e18, 1.04e18, 1.2e18, 3e18]), np.ones(4), np.ones(4))
    assert [len(index) for _, index in frontier.budgets(runs, 1)] == [3, 1]
    assert [len(index) for _, index in frontier.budgets(runs, 2)] == [1, 1, 1, 1]


def test_a_good_grid_passes_every_gate() -> None:
    assert closed(grid()) == set()


def test_fewer_than_five_sizes_close_a_gate() -> None:
    assert "sizes" in closed(grid(factors=(0.5, 1, 2, 4)))


@pytest.mark.parametrize(("budget", "refused"), [(0, set()), (-1, {"sizes"})])
def test_the_largest_budget_may_not_be_left_out(budget, refused) -> None:
    """Of five, a smaller one may lack a size. Beyond a largest one that does, smaller ones would foretell."""
    runs = grid(budgets=5)
    taken = runs.c_P.reshape(5, 5)[budget, 2]
    lacking = runs.take(np.flatnonzero((runs.c_P != taken) | (np.arange(len(runs)) % 5 != 2)))
    assert closed(lacking) == refused
    (gate,) = [gate for gate in gates.check(frontier.isoflops(lacking), None) if gate.name == "sizes"]
    assert "4 budgets have 5 sizes or more, 1 have fewer and are left out" in gate.reason
    assert ("the largest, C = 1e+22, among them" in gate.reason) == bool(refused)


def test_fewer_than_three_budgets_close_a_gate() -> None:
    assert closed(grid(budgets=2)) == {"budgets"}


def test_a_minimum_beyond_the_sizes_tried_closes_a_gate() -> None:
    assert closed(grid(centre=20.0)) == {"interior minimum"}
    (gate,) = [g for g in gates.check(frontier.isoflops(grid(centre=20.0)), None) if g.name == "interior minimum"]
    assert "1e+18" in gate.reason and "widen the grid" in gate.reason


def test_a_parabola_that_opens_downwards_closes_a_gate() -> None:
    runs = grid()
    loss_P = runs.loss_P.copy()
    loss_P[:5] = 2 * loss_P[:5].mean() - loss_P[:5]
    assert closed(runs.with_loss(loss_P)) == {"curvature"}


def test_a_bad_hold_out_closes_a_gate() -> None:
    assert closed(grid(), uncertainty.HoldOut("C >= 1e+21", 15, 5, 0.011)) == {"hold-out"}
    assert not gates.check(frontier.isoflops(grid()), None)[-1].passed
