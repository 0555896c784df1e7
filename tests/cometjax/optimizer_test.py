import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cometjax.config import default_config
from cometjax.model import Decoder, ModelConfig
from cometjax.optimizer import decayed, learning_rate_schedule, make_optimizer
from data_pipeline.errors import UserError


def config_of(**optimizer):
    config = default_config()
    config.train.steps = 100
    config.optimizer.update(optimizer)
    return config


def test_learning_rate_rises_to_the_peak_and_falls_to_the_final_fraction_on_the_last_step():
    config = config_of(learning_rate=2.0, warmup_steps=10, final_fraction=0.1)
    schedule = learning_rate_schedule(config)
    rates = np.array([float(schedule(step)) for step in range(100)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.argmax() == 9 and (np.diff(rates[9:]) < 0).all()
    np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-5)
    np.testing.assert_allclose(rates[54], 1.1, rtol=1e-5)  # halfway down the cosine


def test_without_warmup_the_decay_starts_at_the_peak():
    schedule = learning_rate_schedule(config_of(learning_rate=1.0, warmup_steps=0))
    assert 0.999 < float(schedule(0)) <= 1.0


def test_a_warmup_that_leaves_no_step_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps.*100 training steps"):
        learning_rate_schedule(config_of(warmup_steps=100))


def test_decay_spares_norms_biases_and_embeddings_of_the_real_model():
    model = ModelConfig(
        vocab_size=8, layers=2, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8, tied_embeddings=False
    )
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param))
    mask = decayed(params)
    kept_whole = {name for name, applies in (mask["layers"] | mask).items() if applies is False}
    assert kept_whole == {
        "attention_norm", "mlp_norm", "final_norm", "query_bias", "key_bias", "value_bias", "embedding",
    }  # fmt: skip
    assert mask["lm_head"] and mask["layers"]["mlp_down"]


def test_update_is_clipped_adam_with_decoupled_decay():
    config = config_of(weight_decay=0.5, clip_norm=1.0, b1=0.9, b2=0.95, eps=1e-8)
    optimizer = make_optimizer(config)
    params = {"query": jnp.array([2.0]), "query_bias": jnp.array([2.0])}
    gradients = {"query": jnp.array([300.0]), "query_bias": jnp.array([400.0])}
    directions, state = optimizer.update(gradients, optimizer.init(params), params)
    # Adam's first step is the gradient's sign; then 0.5 x the weight where decay applies.
    np.testing.assert_allclose(directions["query"], [1.0 + 0.5 * 2.0], rtol=1e-5)
    np.testing.assert_allclose(directions["query_bias"], [1.0], rtol=1e-5)
    (adam,) = [part for part in state if isinstance(part, optax.ScaleByAdamState)]
    np.testing.assert_allclose(adam.mu["query"], [0.1 * 0.6], rtol=1e-5)  # the gradient clipped to norm 1
