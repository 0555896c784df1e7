import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax import step_guard
from cometjax.step_guard import CAUSES, GRADIENT_SPIKE, LOSS_SPIKE, NONFINITE, WINDOW, init_guard, judge

THRESHOLD = 10.0
judged = jax.jit(judge, static_argnames="threshold")


def after(losses, norms, *, threshold=THRESHOLD, guard=None):
    """(guard, cause of each step) after these steps."""
    guard, causes = guard or init_guard(), []
    for loss, norm in zip(losses, norms, strict=True):
        guard, verdict = judged(guard, jnp.float32(loss), jnp.float32(norm), threshold=threshold)
        causes.append(int(verdict.skipped))
    return guard, causes


def calm(steps, seed=0):
    """Losses around 2 nats, gradient norms around 0.5."""
    random = np.random.default_rng(seed)
    return random.normal(2.0, 0.05, steps), np.exp(random.normal(np.log(0.5), 0.2, steps))


@pytest.fixture(scope="module")
def full():
    guard, causes = after(*calm(WINDOW))
    assert not any(causes)
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "cause"),
    [
        (2.1, 0.6, 0),
        (1.0, 0.01, 0),  # lower is never a spike
        (3.0, 0.5, LOSS_SPIKE),
        (2.0, 500.0, GRADIENT_SPIKE),
        (9.0, 500.0, LOSS_SPIKE),
        (np.nan, 0.5, NONFINITE),
        (2.0, np.nan, NONFINITE),
        (np.inf, np.inf, NONFINITE),
        (2.0, 0.0, 0),
    ],
)
def test_a_step_is_judged_by_the_steps_before_it(full, loss, norm, cause):
    guard, causes = after([loss], [norm], guard=full)
    assert causes == [cause]
    assert int(guard.applied) == WINDOW + (cause == 0)
    assert int(guard.nonfinite_total) == (cause == NONFINITE)
    assert int(guard.spike_total) == (cause in (LOSS_SPIKE, GRADIENT_SPIKE))
    assert CAUSES[cause] == {0: "", 1: "loss or gradient not finite", 2: "loss spike", 3: "gradient spike"}[cause]


def test_the_deviations_are_those_of_median_and_median_absolute_deviation(full):
    losses, norms = calm(WINDOW)
    _, verdict = judged(full, jnp.float32(2.5), jnp.float32(3.0), threshold=THRESHOLD)
    for value, window, found in (
        (2.5, losses, verdict.loss_deviations),
        (np.log(3.0), np.log(norms), verdict.gradient_deviations),
    ):
        mad = 1.4826 * np.median(np.abs(window - np.median(window)))
        assert float(found) == pytest.approx((value - np.median(window)) / mad, rel=1e-3)


def test_nothing_is_a_spike_before_the_window_is_full_or_with_a_threshold_of_zero(full):
    _, causes = after([2.0] * (WINDOW - 1) + [100.0], [0.5] * (WINDOW - 1) + [1e6])
    assert not any(causes)
    _, causes = after([100.0, np.nan], [1e6, 1.0], threshold=0.0, guard=full)
    assert causes == [0, NONFINITE]


def test_a_calm_run_bears_a_rise_of_a_tenth_and_a_doubled_norm():
    guard, _ = after([2.0] * WINDOW, [0.5] * WINDOW)  # no spread at all
    _, causes = after([2.2, 2.0, 2.6], [0.5, 1.0, 0.5], guard=guard)
    assert causes == [0, 0, LOSS_SPIKE]


def test_skipped_steps_are_counted_in_a_row_and_never_enter_the_window(full):
    guard, causes = after([8.0, np.nan, 8.0], [0.5] * 3, guard=full)
    assert causes == [LOSS_SPIKE, NONFINITE, LOSS_SPIKE]
    assert (int(guard.skipped_in_a_row), int(guard.nonfinite_total), int(guard.spike_total)) == (3, 1, 2)
    np.testing.assert_array_equal(guard.losses_W, full.losses_W)
    np.testing.assert_array_equal(guard.log_norms_W, full.log_norms_W)
    guard, _ = after([2.0], [0.5], guard=guard)
    assert int(guard.skipped_in_a_row) == 0 and int(guard.spike_total) == 2


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.lists(st.floats(0.5, 4.0), min_size=WINDOW + 1, max_size=2 * WINDOW))
def test_the_window_holds_exactly_the_last_applied_steps(losses):
    guard, causes = after(losses, np.ones(len(losses)))
    kept = [np.float32(loss) for loss, cause in zip(losses, causes, strict=True) if not cause][-WINDOW:]
    np.testing.assert_array_equal(np.sort(guard.losses_W), np.sort(kept))


def test_the_guard_is_a_tree_of_small_arrays():
    guard = init_guard()
    assert len(jax.tree.leaves(guard)) == len(dataclasses.fields(guard))
    assert sum(leaf.size for leaf in jax.tree.leaves(guard)) == 2 * step_guard.WINDOW + 4
