import jax
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


@pytest.mark.parametrize(("decay", "halfway"), [("cosine", 1.1), ("linear", 1.1), ("sqrt", 2 - 1.8 * 0.5**0.5)])
def test_learning_rate_rises_to_the_peak_and_falls_to_the_final_fraction_on_the_last_step(decay, halfway):
    config = config_of(learning_rate=2.0, warmup_steps=10, final_fraction=0.1, decay=decay)
    schedule = learning_rate_schedule(config)
    rates = np.array([float(schedule(step)) for step in range(100)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.argmax() == 9 and (np.diff(rates[9:]) < 0).all()
    np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-5)
    np.testing.assert_allclose(rates[54], halfway, rtol=1e-5)


@pytest.mark.parametrize("decay", ["cosine", "linear", "sqrt"])
def test_stable_steps_are_at_the_peak_to_the_bit_and_the_decay_after_them_ends_on_the_last_step(decay):
    def rates(stable_steps, steps=100):
        config = config_of(learning_rate=1e-3, warmup_steps=10, decay=decay, stable_steps=stable_steps)
        config.train.steps = steps
        return np.array(jax.jit(jax.vmap(learning_rate_schedule(config)))(jnp.arange(steps)))

    trunk, early, late = rates(90), rates(20, steps=40), rates(70)
    np.testing.assert_array_equal(trunk[9:], np.float32(1e-3))
    np.testing.assert_array_equal(early[:30], trunk[:30])
    np.testing.assert_array_equal(late[:80], trunk[:80])
    np.testing.assert_allclose([early[-1], late[-1]], 1e-4, rtol=1e-5)
    # Ten steps of decay are those of a run that has no others, and twice as steep as twenty.
    alone = rates(0, steps=20)
    np.testing.assert_allclose(early[30:], alone[10:], rtol=1e-5)
    np.testing.assert_allclose(late[80:][1::2], early[30:], rtol=1e-5)


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


MODEL = ModelConfig(vocab_size=40, layers=2, width=16, heads=2, kv_heads=1, head_dim=6, mlp_width=32)


def muon_and_adam_directions():
    params = nnx.to_pure_dict(nnx.state(Decoder(MODEL, rngs=nnx.Rngs(0)), nnx.Param))
    key = iter(jax.random.split(jax.random.key(1), 100))
    gradients = jax.tree.map(lambda leaf: jax.random.normal(next(key), leaf.shape), params)
    found = {}
    for name in ("muon", "adamw"):
        optimizer = make_optimizer(config_of(name=name, weight_decay=0.0))
        found[name] = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]
    return found["muon"], found["adamw"]


@pytest.mark.usefixtures("hurried_compiler")
def test_muon_steps_each_layers_matrix_by_equal_singular_values_of_adams_size_and_leaves_the_rest_to_adam():
    muon, adam = muon_and_adam_directions()
    inputs = {"query": 16, "key": 16, "value": 16, "attention_out": 12, "mlp_gate": 16, "mlp_up": 16, "mlp_down": 32}
    for name, direction in muon["layers"].items():
        if name not in inputs:
            np.testing.assert_array_equal(direction, adam["layers"][name], err_msg=name)
            continue
        matrices = np.asarray(direction).reshape(MODEL.layers, inputs[name], -1)
        # Of the layers each alone; five Newton-Schulz steps bring singular values to 0.7 to 1.2 (Muon's post).
        values = np.linalg.svd(matrices, compute_uv=False) / (0.2 * np.sqrt(max(matrices.shape[1:])))
        assert 0.5 < values.min() <= values.max() < 1.3, (name, values)
        rms = np.sqrt(np.mean(matrices**2, axis=(1, 2)))
        np.testing.assert_allclose(rms, 0.2, rtol=0.25, err_msg=name)
    for name in ("embedding", "final_norm"):
        np.testing.assert_array_equal(muon[name], adam[name])


@pytest.mark.usefixtures("hurried_compiler")
def test_muon_gives_a_layer_the_step_that_it_would_have_alone():
    gradient = jax.random.normal(jax.random.key(3), (2, 16, 32))
    optimizer = make_optimizer(config_of(name="muon", weight_decay=0.0, clip_norm=1e9))

    def step(gradient):
        tree = {"layers": {"mlp_up": gradient}}
        return optimizer.update(tree, optimizer.init(tree), tree)[0]["layers"]["mlp_up"]

    np.testing.assert_allclose(step(gradient)[1], step(gradient[1:])[0], rtol=1e-4, atol=1e-6)
