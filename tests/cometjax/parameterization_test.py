import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cometjax import model as models
from cometjax.config import default_config
from cometjax.elementwise import rms_norm
from cometjax.huggingface import from_hf_state, to_hf_state
from cometjax.model import Decoder, ModelConfig
from cometjax.optimizer import make_optimizer
from cometjax.parameterization import initial_scale, learning_rate_scale
from cometjax.train_step import TokenTables, init_state, make_train_step

V, B, L = 32, 4, 16
WIDTHS = (64, 128, 256, 512, 1024)
STEPS = 5
LEARNING_RATE = 2e-3
BASE = ModelConfig(vocab_size=V, layers=1, width=64, heads=2, kv_heads=2, head_dim=32, mlp_width=128, mup_base_width=64)


def wider(width, parameterization, **changes):
    """BASE with everything that grows with the width grown; head_dim stays."""
    times = width // BASE.width
    return dataclasses.replace(
        BASE, width=width, heads=BASE.heads * times, kv_heads=BASE.kv_heads * times, mlp_width=BASE.mlp_width * times,
        parameterization=parameterization, **changes,
    )  # fmt: skip


def batch_of(seed):
    random = np.random.default_rng(seed)
    tokens = random.integers(1, V, (B, L + 1)).astype(np.int32)
    ones = np.ones((B, L), np.int32)
    return {
        "tokens_BxL": tokens[:, :-1], "targets_BxL": tokens[:, 1:], "segment_ids_BxL": ones,
        "positions_BxL": ones * np.arange(L, dtype=np.int32), "loss_weights_BxL": ones.astype(np.float32),
    }  # fmt: skip


def config_of(model, **optimizer):
    config = default_config()
    config.model.update(width=model.width, parameterization=model.parameterization, mup_base_width=model.mup_base_width)
    config.optimizer.update(optimizer)
    return config


def activations(model, params, batch):
    """Every kind of activation, by name; those of layers stacked or summed along axis 0."""
    decoder = nnx.merge(nnx.split(Decoder(model, rngs=nnx.Rngs(0)), nnx.Param)[0], params)
    x = decoder.embedding[...][batch["tokens_BxL"]]
    found = {"embedding": x}
    rotation = models._rotation(batch["positions_BxL"], model)

    def attend(q, k, v, cache):
        out = models.attention.attention(
            q, k, v, segment_ids_BxL=batch["segment_ids_BxL"], implementation=model.attention
        )
        return out, {"query": q, "key": k, "value": v, "attended": out}

    for i in range(model.layers):
        weights = {name: stacked[i] for name, stacked in params["layers"].items()}
        halfway, seen = models._layer(
            model, weights | {"mlp_down": jnp.zeros_like(weights["mlp_down"])}, x, rotation, attend, None
        )
        after, _ = models._layer(model, weights, x, rotation, attend, None)
        seen |= {"attention_out": halfway - x, "mlp_out": after - halfway, "residual": after}
        found |= {f"{name}_{i}": value for name, value in seen.items()}
        x = after
    return found | {"logits": decoder.logits(rms_norm(x, decoder.final_norm[...], model.norm_eps))}


def coordinates(parameterization, width):
    """Mean |x| of each activation after STEPS steps, and of its change since the start."""
    model = wider(width, parameterization)
    optimizer = make_optimizer(config_of(model, weight_decay=0.0))
    tables = TokenTables(np.zeros(V, np.int32), np.ones(V, bool))
    step = make_train_step(model, tables, optimizer, lambda _: LEARNING_RATE)

    @jax.jit
    def measure(batch):
        state = init_state(model, optimizer, 0)
        before = activations(model, state.params, batch)
        state = jax.lax.fori_loop(0, STEPS, lambda _, state: step(state, batch)[0], state)
        after = activations(model, state.params, batch)
        sizes = {name: jnp.abs(value).mean() for name, value in after.items()}
        return sizes | {f"change of {name}": jnp.abs(after[name] - before[name]).mean() for name in after}

    return {name: float(value) for name, value in measure(batch_of(0)).items()}


def growth_exponents(parameterization, widths):
    """Slope of log mean |x| over log width, by activation."""
    found = [coordinates(parameterization, width) for width in widths]
    return {name: float(np.polyfit(np.log(widths), np.log([one[name] for one in found]), 1)[0]) for name in found[0]}


def check_coordinates(widths):
    mup, standard = (growth_exponents(parameterization, widths) for parameterization in ("mup", "standard"))
    assert all(abs(exponent) < 0.15 for exponent in mup.values()), mup
    growing = {name: exponent for name, exponent in standard.items() if not name.endswith("embedding")}
    assert all(exponent > 0.3 for exponent in growing.values()), growing


@pytest.mark.usefixtures("hurried_compiler")
def test_activations_and_their_changes_keep_their_size_over_widths_with_mup_and_grow_without():
    check_coordinates((WIDTHS[0], WIDTHS[2]))


@pytest.mark.slow
def test_activations_keep_their_size_up_to_a_width_of_1024_with_mup_and_grow_without():
    check_coordinates(WIDTHS)


@pytest.mark.parametrize(
    ("name", "initial", "learning_rate"),
    [
        ("embedding", 1, 1),
        ("lm_head", 1, 1),
        ("final_norm", 1 / 4, 1 / 4),
        *(
            (f"layers/{name}", 1 / 2, 1 / 4)
            for name in ("query", "key", "value", "attention_out", "mlp_gate", "mlp_up")
        ),
        ("layers/mlp_down", 1 / 2, 1 / 4),
        *((f"layers/{name}", 1, 1) for name in ("attention_norm", "mlp_norm", "query_bias", "key_bias", "value_bias")),
    ],
)
def test_mup_scales_each_parameter_by_its_kind(name, initial, learning_rate):
    wide = wider(256, "mup")  # four times the base
    assert (initial_scale(name, wide), learning_rate_scale(name, wide)) == (initial, learning_rate)
    standard = wider(256, "standard")
    assert (initial_scale(name, standard), learning_rate_scale(name, standard)) == (1, 1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_starts_as_the_scales_say(tied):
    params = init_state(wider(256, "mup", tied_embeddings=tied), make_optimizer(default_config()), 0).params
    for name, array in (params["layers"] | {k: v for k, v in params.items() if k != "layers"}).items():
        path = f"layers/{name}" if name in params["layers"] else name
        scale = initial_scale(path, wider(256, "mup"))
        if name.endswith("_norm"):
            assert (array == scale).all()
        elif name.endswith("_bias"):
            assert not array.any()
        else:
            assert float(array.std()) == pytest.approx(0.02 * scale, rel=0.05)


def steps_of(model, **optimizer):
    config = config_of(model, **optimizer)
    transformation = make_optimizer(config)
    tables = TokenTables(np.zeros(V, np.int32), np.ones(V, bool))
    step = jax.jit(make_train_step(model, tables, transformation, lambda _: LEARNING_RATE))
    state = init_state(model, transformation, 0)
    for seed in range(3):
        state, _ = step(state, batch_of(seed))
    return state.params


def test_at_the_base_width_both_parameterizations_train_the_same_bits():
    jax.tree.map(
        np.testing.assert_array_equal, steps_of(BASE), steps_of(dataclasses.replace(BASE, parameterization="mup"))
    )


def test_weight_decay_does_not_shrink_with_a_parameters_learning_rate():
    params = {"layers": {"query": jnp.full(3, 2.0)}, "embedding": jnp.full(3, 2.0)}
    optimizer = make_optimizer(config_of(wider(256, "mup"), weight_decay=0.5))
    zero = jax.tree.map(jnp.zeros_like, params)
    directions, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(directions["layers"]["query"], 0.5 * 2.0)  # Adam's part is nothing here
    np.testing.assert_allclose(directions["embedding"], 0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_mup_model_is_its_weights_alone_so_that_exports_need_no_multiplier(tied):
    """What reads the weights as any Qwen2 (simulation, evaluation, Hugging Face) computes the same logits."""
    model = wider(128, "mup", tied_embeddings=tied)
    trained = Decoder(model, rngs=nnx.Rngs(0))
    nnx.update(trained, steps_of(model))
    plain = from_hf_state(to_hf_state(trained), dataclasses.replace(model, parameterization="standard"))
    batch = batch_of(0)
    inputs = [batch[name] for name in ("tokens_BxL", "segment_ids_BxL", "positions_BxL")]
    np.testing.assert_array_equal(plain(*inputs), trained(*inputs))
    assert float(jnp.abs(trained.final_norm[...] - 0.5).max()) < 0.1  # where the output multiplier lives
