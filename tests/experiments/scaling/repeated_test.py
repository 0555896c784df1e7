"""The data-constrained form is the plain one for a single pass, and recovers what its runs were made with."""

import dataclasses

import numpy as np
import pytest

from experiments.scaling import repeated
from tests.experiments.scaling.made_up_study import REPEATS, TRUE


def runs(noise=0.0) -> repeated.Repeated:
    n, epochs, unique = (part.ravel() for part in np.meshgrid([2e3, 2e4], [2.0, 4.0, 16.0, 48.0], [1e5, 4e5]))
    loss = REPEATS.loss(n, epochs * unique, unique)
    return repeated.Repeated(
        n, epochs * unique, unique, loss * np.exp(noise * np.random.default_rng(0).normal(size=len(n)))
    )


def test_a_single_pass_is_the_plain_surface_for_a_size_that_the_data_can_feed() -> None:
    d = np.array([1e5, 1e6])
    n = repeated.optimal_size(TRUE, d) / 2
    np.testing.assert_allclose(REPEATS.loss(n, d, d), TRUE.loss(n, d))
    np.testing.assert_allclose(REPEATS.effective_tokens(d, d), d)


def test_the_optimal_size_is_that_of_the_surface() -> None:
    n, d = TRUE.optimum(np.array([1e12, 1e15]))
    np.testing.assert_allclose(repeated.optimal_size(TRUE, d), n)


def test_passes_are_worth_less_and_less_and_never_more_than_their_bound() -> None:
    worth = REPEATS.effective_tokens(np.array([1.0, 2.0, 4.0, 16.0, 1e6]), np.array(1.0))
    assert np.all(np.diff(worth) > 0) and worth[1] < 2 and worth[-1] == pytest.approx(1 + REPEATS.r_d)


def test_both_constants_are_recovered() -> None:
    found = repeated.fit(TRUE, runs())
    assert (found.r_d, found.r_n) == (pytest.approx(6.0, rel=1e-2), pytest.approx(5.0, rel=1e-2))


def test_noise_leaves_an_interval_and_the_advice_follows_from_the_fit() -> None:
    result = repeated.analyse(TRUE, runs(noise=1e-3), replicates=40)
    assert result["r_d"] == pytest.approx(6.0, rel=0.05)
    assert result["r_d_interval"][0] < result["r_d"] < result["r_d_interval"][1]
    assert result["mean_error"] < 2e-3 < result["mean_error_as_if_fresh"]
    half = 1 + result["r_d"] * np.log(2)
    assert f"{half:.1f} passes" in result["advice"][0] and "more patients" in result["advice"][0]


def test_runs_whose_passes_are_all_worth_fresh_data_get_no_upper_bound_as_advice() -> None:
    as_fresh, fresh = runs(), dataclasses.replace(REPEATS, r_d=9e9)
    result = repeated.analyse(
        TRUE, dataclasses.replace(as_fresh, loss_R=fresh.loss(as_fresh.n_R, as_fresh.d_R, as_fresh.unique_R))
    )
    assert result["bounded"]["r_d"]
    least = result["r_d_interval"][0]
    assert f"above {least:.3g}" in result["advice"][0] and not any(
        "never worth more" in line for line in result["advice"]
    )


def test_an_interval_without_an_upper_end_is_no_upper_bound_either() -> None:
    best = repeated.DataConstrained(TRUE, 60.0, 5.0, 0.0)
    assert "above 10 (95%)" in repeated.advice(best, (10.0, 1e4))[0]
    assert "never worth more than 61.0" in repeated.advice(best, (10.0, 90.0))[1]


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="4 are needed"):
        repeated.fit(TRUE, runs().take(np.arange(3)))
