import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax.microbatches import value_and_gradient

ROWS, LENGTH = 12, 5


def sums_of(params, batch, weight):
    """Squared error of a linear model, and the tokens counted."""
    predicted_BxL = batch["tokens_BxL"] * params["slope"] + params["offset"]
    errors_BxL = jnp.square(predicted_BxL - batch["targets_BxL"]) * batch["loss_weights_BxL"]
    return jnp.sum(errors_BxL) / weight, jnp.sum(batch["loss_weights_BxL"] > 0, dtype=jnp.int32)


@pytest.fixture
def batch():
    """Rows of very different weight: 0 to 1 of the tokens count, and the rows of one microbatch none at all."""
    random = np.random.default_rng(0)
    weights = random.random((ROWS, LENGTH)) < np.linspace(0, 1, ROWS)[:, None]
    weights[::3] = False
    return {
        "tokens_BxL": random.normal(size=(ROWS, LENGTH)).astype(np.float32),
        "targets_BxL": random.normal(size=(ROWS, LENGTH)).astype(np.float32),
        "loss_weights_BxL": weights.astype(np.float32) * 1.5,
    }


@pytest.mark.parametrize("microbatches", [2, 3, 4, 12])
def test_microbatches_of_unequal_weight_give_loss_gradient_and_sums_of_the_large_batch(batch, microbatches):
    params = {"slope": jnp.float32(0.3), "offset": jnp.float32(-0.7)}
    (loss, counted), gradient = value_and_gradient(sums_of, params, batch, 1)
    (loss_of_parts, counted_in_parts), of_parts = value_and_gradient(sums_of, params, batch, microbatches)
    assert float(loss_of_parts) == pytest.approx(float(loss), abs=1e-6)
    assert int(counted_in_parts) == int(counted) == (batch["loss_weights_BxL"] > 0).sum()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), of_parts, gradient)


def test_a_batch_without_any_target_has_loss_and_gradient_zero(batch):
    empty = batch | {"loss_weights_BxL": np.zeros((ROWS, LENGTH), np.float32)}
    (loss, _), gradient = value_and_gradient(sums_of, {"slope": jnp.ones(()), "offset": jnp.zeros(())}, empty, 3)
    assert float(loss) == 0 and float(gradient["slope"]) == 0


def test_sums_of_small_gradients_do_not_round_away_in_bfloat16():
    rows = 512
    ones = np.ones((rows, 1), np.float32)
    batch = {"tokens_BxL": ones, "loss_weights_BxL": ones}

    def linear(params, part, weight):
        return jnp.sum(part["tokens_BxL"] * params.astype(jnp.float32)) / weight, None

    _, gradient = value_and_gradient(linear, jnp.bfloat16(1), batch, rows)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient) == pytest.approx(1, rel=1e-2)
