"""Which updates are not applied: those that are not finite, and spikes of the loss or the gradient norm.

A spike is judged against the last W steps that were applied: a value is too high when it lies more than `threshold`
robust standard deviations above their median. The deviation is 1.4826 times the median absolute deviation (equal to the
standard deviation where values are normal), which a few outliers in the window do not move. The gradient norm is judged
by its logarithm, for it spreads by factors. Below MIN_*_DEVIATION a deviation counts as that much: where training is
calm, a harmless step would otherwise stand out.

Nothing is judged a spike before the window is full. What was skipped does not enter the window, so a run whose loss has
truly risen is not accepted after a while: it stops, after `config.train.max_skipped_steps` in a row.

W steps in the window
"""

import dataclasses

import jax
import jax.numpy as jnp

WINDOW = 128
MIN_LOSS_DEVIATION = 0.02  # of the median: at the default threshold of 10, a fifth above it is never a spike
MIN_LOG_NORM_DEVIATION = 0.1  # at the default threshold, a norm of less than e times the median is never a spike
_NORMAL_CONSISTENCY = 1.4826  # 1 / (the normal distribution's 0.75 quantile)

# What a step's `skipped` says, as an index.
CAUSES = ("", "loss or gradient not finite", "loss spike", "gradient spike")
NONFINITE, LOSS_SPIKE, GRADIENT_SPIKE = 1, 2, 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuardState:
    """What judging the next step needs: part of the train state, and so of every checkpoint.

    `losses_W` and `log_norms_W` (float32) hold the last applied steps, NaN where there was none yet; `applied` counts
    them all. `skipped_in_a_row`, `nonfinite_total` and `spike_total` count skipped steps.
    """

    losses_W: jax.Array
    log_norms_W: jax.Array
    applied: jax.Array
    skipped_in_a_row: jax.Array
    nonfinite_total: jax.Array
    spike_total: jax.Array


def init_guard() -> GuardState:
    """The state before the first step."""
    # Arrays of their own, each: a train step donates its state, and one buffer cannot be donated twice.
    windows_W = [jnp.full(WINDOW, jnp.nan, jnp.float32) for _ in range(2)]
    return GuardState(*windows_W, *(jnp.zeros((), jnp.int32) for _ in range(4)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """`skipped` indexes CAUSES (0: apply the update); the deviations are NaN until the window is full."""

    skipped: jax.Array
    loss_deviations: jax.Array
    gradient_deviations: jax.Array


def judge(guard: GuardState, loss: jax.Array, gradient_norm: jax.Array, threshold: float) -> tuple[GuardState, Verdict]:
    """Whether to apply a step of this loss and global gradient norm, and the guard after it.

    `threshold` is in robust standard deviations; 0 judges no spikes, only what is not finite.
    """
    log_norm = jnp.log(jnp.maximum(gradient_norm, jnp.finfo(jnp.float32).tiny))
    loss_median = jnp.abs(jnp.median(guard.losses_W))
    loss_deviations = _deviations(loss, guard.losses_W, MIN_LOSS_DEVIATION * loss_median)
    gradient_deviations = _deviations(log_norm, guard.log_norms_W, MIN_LOG_NORM_DEVIATION)
    skipped = jnp.where(jnp.isfinite(loss) & jnp.isfinite(gradient_norm), 0, NONFINITE)
    if threshold:
        # A comparison with NaN is false: no spike before the window is full.
        skipped = jnp.where((skipped == 0) & (gradient_deviations > threshold), GRADIENT_SPIKE, skipped)
        skipped = jnp.where((skipped != NONFINITE) & (loss_deviations > threshold), LOSS_SPIKE, skipped)
    applied = skipped == 0
    place = guard.applied % WINDOW
    after = GuardState(
        losses_W=guard.losses_W.at[place].set(jnp.where(applied, loss, guard.losses_W[place])),
        log_norms_W=guard.log_norms_W.at[place].set(jnp.where(applied, log_norm, guard.log_norms_W[place])),
        applied=guard.applied + applied,
        skipped_in_a_row=jnp.where(applied, 0, guard.skipped_in_a_row + 1),
        nonfinite_total=guard.nonfinite_total + (skipped == NONFINITE),
        spike_total=guard.spike_total + (skipped > NONFINITE),
    )
    return after, Verdict(skipped, loss_deviations, gradient_deviations)


def _deviations(value: jax.Array, window_W: jax.Array, least: jax.Array | float) -> jax.Array:
    """How many robust standard deviations `value` lies above the window's median."""
    median = jnp.median(window_W)
    deviation = _NORMAL_CONSISTENCY * jnp.median(jnp.abs(window_W - median))
    return (value - median) / jnp.maximum(deviation, least)
