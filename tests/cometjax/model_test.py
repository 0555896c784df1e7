"""The decoder: what may depend on what, and forms of it that must agree."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cometjax import products
from cometjax.attention import attend_masked
from cometjax.model import Attend, Decoder, ModelConfig, in_compute_dtype, num_parameters, side_by_side
from cometjax.sharding import path_name
from data_pipeline.errors import UserError
from experiments.configs import comet_l, comet_m, comet_s, demo

# Most of the time is the compiler's, and no test here is of how its code rounds.
pytestmark = pytest.mark.usefixtures("hurried_compiler")

CONFIG = ModelConfig(vocab_size=37, layers=3, width=24, heads=4, kv_heads=2, head_dim=8, mlp_width=48)
PAPER_VOCABULARY = 7105
SEGMENTS_BxL = np.array([[1] * 5 + [2] * 7 + [3] * 8, [1] * 11 + [2] * 3 + [0] * 6])
POSITIONS_BxL = np.array([[*range(5), *range(7), *range(8)], [*range(11), *range(3), *[0] * 6]])
TOKENS_BxL = np.random.default_rng(0).integers(1, CONFIG.vocab_size, SEGMENTS_BxL.shape) * (SEGMENTS_BxL != 0)


def random_state(config: ModelConfig) -> nnx.State:
    """Weights an order of magnitude above their initial values, biases and norms too, so that all of them matter."""
    state = nnx.state(abstract_decoder(config))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype) for leaf in leaves])


def abstract_decoder(config: ModelConfig) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))


def decoder(config: ModelConfig, state: nnx.State) -> Decoder:
    return nnx.merge(nnx.graphdef(abstract_decoder(config)), state)


@functools.partial(jax.jit, static_argnums=0)
def run(config: ModelConfig, state: nnx.State, tokens: Any, segments: Any, positions: Any) -> jax.Array:
    return decoder(config, state)(jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions))


@functools.partial(jax.jit, static_argnums=0)
def gradients(config: ModelConfig, state: nnx.State, tokens: Any, segments: Any, positions: Any) -> nnx.State:
    def loss(state: nnx.State) -> jax.Array:
        logits_BxLxV = decoder(config, state)(tokens, segments, positions)
        return jnp.mean(jax.nn.logsumexp(logits_BxLxV, axis=-1) - logits_BxLxV[..., 3])

    return jax.grad(loss)(state)


PACKED = (TOKENS_BxL, SEGMENTS_BxL, POSITIONS_BxL)


@pytest.fixture(scope="module")
def state() -> nnx.State:
    return random_state(CONFIG)


@pytest.fixture(scope="module")
def packed_logits(state: nnx.State) -> np.ndarray:
    return np.asarray(run(CONFIG, state, *PACKED))


def test_logits_are_float32_and_say_something(packed_logits: np.ndarray) -> None:
    assert packed_logits.dtype == np.float32
    assert packed_logits.shape == (2, 20, 37)
    assert packed_logits.std() > 0.3


def test_a_segment_does_not_depend_on_the_tokens_of_another(state: nnx.State, packed_logits: np.ndarray) -> None:
    changed = (SEGMENTS_BxL == 2) | (SEGMENTS_BxL == 0)
    tokens_BxL = np.where(changed, (TOKENS_BxL + 11) % CONFIG.vocab_size, TOKENS_BxL)
    logits = np.asarray(run(CONFIG, state, tokens_BxL, SEGMENTS_BxL, POSITIONS_BxL))
    np.testing.assert_array_equal(logits[~changed], packed_logits[~changed])
    assert np.abs(logits[changed] - packed_logits[changed]).max() > 0.1


def test_a_token_does_not_depend_on_later_ones(state: nnx.State, packed_logits: np.ndarray) -> None:
    later_BxL = np.arange(20) >= 8
    tokens_BxL = np.where(later_BxL, (TOKENS_BxL + 11) % CONFIG.vocab_size, TOKENS_BxL)
    logits = np.asarray(run(CONFIG, state, tokens_BxL, SEGMENTS_BxL, POSITIONS_BxL))
    np.testing.assert_array_equal(logits[:, :8], packed_logits[:, :8])
    assert np.abs(logits[:, 8] - packed_logits[:, 8]).max() > 0.1


def test_a_token_depends_on_earlier_ones_of_its_segment_and_on_their_order(
    state: nnx.State, packed_logits: np.ndarray
) -> None:
    tokens_BxL = TOKENS_BxL.copy()
    tokens_BxL[:, [0, 1]] = tokens_BxL[:, [1, 0]]
    logits = np.asarray(run(CONFIG, state, tokens_BxL, SEGMENTS_BxL, POSITIONS_BxL))
    assert (np.abs(logits[:, 4] - packed_logits[:, 4]).max(axis=-1) > 1e-3).all()


def test_a_packed_row_gives_what_its_segments_give_alone(state: nnx.State, packed_logits: np.ndarray) -> None:
    for row, segment in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]:
        inside = SEGMENTS_BxL[row] == segment
        tokens_1xL = TOKENS_BxL[row, inside][None]
        positions_1xL = np.arange(tokens_1xL.shape[1])[None]
        alone = run(CONFIG, state, tokens_1xL, np.ones_like(tokens_1xL), positions_1xL)
        np.testing.assert_allclose(alone[0], packed_logits[row, inside], atol=2e-5)


def test_unrolled_layers_give_what_scanned_layers_give(state: nnx.State, packed_logits: np.ndarray) -> None:
    unrolled = dataclasses.replace(CONFIG, scan_layers=False)
    np.testing.assert_allclose(run(unrolled, state, *PACKED), packed_logits, atol=2e-5)
    assert_trees_close(gradients(unrolled, state, *PACKED), gradients(CONFIG, state, *PACKED), 1e-5)


@pytest.mark.parametrize(("remat", "scan_layers"), [("full", True), ("dots", True), ("full", False)])
def test_remat_changes_no_gradient(state: nnx.State, remat: str, scan_layers: bool) -> None:
    config = dataclasses.replace(CONFIG, remat=remat, scan_layers=scan_layers)
    jaxpr = str(jax.make_jaxpr(functools.partial(gradients, config))(state, *PACKED))
    assert "checkpoint" in jaxpr or "remat" in jaxpr
    assert_trees_close(gradients(config, state, *PACKED), gradients(CONFIG, state, *PACKED), 1e-5)


def test_remat_policies_recompute_nothing_little_and_all(state: nnx.State) -> None:
    def products(remat: str, attention: str) -> int:
        config = dataclasses.replace(CONFIG, remat=remat, attention=attention)
        return str(jax.make_jaxpr(functools.partial(gradients, config))(state, *PACKED)).count("dot_general[")

    none, dots, full = (products(remat, "reference") for remat in ("none", "dots", "full"))
    assert none < dots < full
    # Its output and log-sum-exp are kept: "dots" has no product of `blockwise` done again.
    none, dots, full = (products(remat, "blockwise") for remat in ("none", "dots", "full"))
    assert none == dots < full


def test_a_row_of_padding_gives_finite_logits_and_gradients(state: nnx.State) -> None:
    nothing = np.zeros_like(TOKENS_BxL)
    assert np.isfinite(run(CONFIG, state, nothing, nothing, nothing)).all()
    for leaf in jax.tree.leaves(gradients(CONFIG, state, nothing, nothing, nothing)):
        assert np.isfinite(leaf).all()


def test_bfloat16_stays_close_to_float32(state: nnx.State, packed_logits: np.ndarray) -> None:
    logits = run(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), state, *PACKED)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - packed_logits).mean() < 0.03 * packed_logits.std()


def write_and_attend(start: jax.Array) -> Attend:
    """An `attend` that writes keys and values into a cache at `start` and attends to what is there."""

    def attend(q, k, v, cache):
        cache = {
            "k": jax.lax.dynamic_update_slice_in_dim(cache["k"], k, start, axis=1),
            "v": jax.lax.dynamic_update_slice_in_dim(cache["v"], v, start, axis=1),
        }
        key_positions_M = jnp.arange(cache["k"].shape[1])
        allowed_LxM = key_positions_M[None] <= start + jnp.arange(q.shape[1])[:, None]
        allowed_BxLxM = jnp.broadcast_to(allowed_LxM, (q.shape[0], *allowed_LxM.shape))
        return attend_masked(q, cache["k"], cache["v"], allowed_BxLxM), cache

    return attend


@pytest.mark.parametrize("form", ["scanned", "unrolled", "a cache per layer", "side by side"])
def test_prefill_and_decode_with_a_cache_give_what_a_full_pass_gives(
    state: nnx.State, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, scan_layers=form == "scanned")
    length, prompt = 12, 7
    tokens_BxL = jnp.asarray(TOKENS_BxL[:, :length])
    empty = jnp.zeros((2, length, config.kv_heads, config.head_dim))
    monkeypatch.setattr(products, "_FEW_ROWS", 2)  # so that the prompt's are many, and a step's few
    if form in ("a cache per layer", "side by side"):
        caches: Any = [{"k": empty, "v": empty} for _ in range(config.layers)]
    else:
        caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * config.layers), {"k": empty, "v": empty})

    @jax.jit
    def step(state: nnx.State, tokens_BxL: jax.Array, start: jax.Array, caches: Any) -> tuple[jax.Array, Any]:
        model = decoder(config, state)
        positions_BxL = jnp.broadcast_to(start + jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        layers = [side_by_side(weights) for weights in model.layer_weights()] if form == "side by side" else None
        x_BxLxD, caches = model.hidden(tokens_BxL, positions_BxL, write_and_attend(start), caches, layers)
        return model.logits(x_BxLxD), caches

    logits, caches = step(state, tokens_BxL[:, :prompt], jnp.int32(0), caches)
    steps = [logits]
    for i in range(prompt, length):
        logits, caches = step(state, tokens_BxL[:, i : i + 1], jnp.int32(i), caches)
        steps.append(logits)
    positions_BxL = np.broadcast_to(np.arange(length), (2, length))
    full = run(CONFIG, state, tokens_BxL, np.ones((2, length), int), positions_BxL)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), full, atol=2e-5)


def test_on_cpu_weights_side_by_side_have_the_mlps_as_outputs_by_inputs(state: nnx.State) -> None:
    weights = side_by_side(decoder(CONFIG, state).layer_weights()[0])
    shapes = {name: weight.shape for name, weight in weights.items() if "mlp" in name and "norm" not in name}
    assert shapes == {"turned_mlp_in": (2, 48, 24), "turned_mlp_down": (24, 48)}


@pytest.mark.parametrize(
    ("config_file", "vocabulary", "expected"),
    [
        (comet_s, PAPER_VOCABULARY, 62_103_552),
        (comet_m, PAPER_VOCABULARY, 118_749_696),
        (comet_l, PAPER_VOCABULARY, 1_088_458_752),
    ],
)
def test_the_published_models_have_the_published_sizes(config_file: Any, vocabulary: int, expected: int) -> None:
    assert num_parameters(ModelConfig.from_config(config_file.get_config().model, vocabulary)) == expected


def test_weights_cast_beforehand_give_the_same_logits(state: nnx.State) -> None:
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    cast = in_compute_dtype(state, config)
    dtypes = {path_name(path): str(leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(cast)}
    assert {name.split("/")[-2] for name, dtype in dtypes.items() if dtype == "float32"} == {
        "attention_norm", "mlp_norm", "final_norm",
    }  # fmt: skip
    np.testing.assert_array_equal(run(config, cast, *PACKED), run(config, state, *PACKED))


def test_the_demo_model_is_small() -> None:
    assert 0.6e6 < num_parameters(ModelConfig.from_config(demo.get_config().model, 800)) < 0.8e6


def test_an_untied_head_adds_a_matrix_and_a_missing_bias_takes_three() -> None:
    tied = num_parameters(CONFIG)
    assert num_parameters(dataclasses.replace(CONFIG, tied_embeddings=False)) == tied + 37 * 24
    assert num_parameters(dataclasses.replace(CONFIG, qkv_bias=False)) == tied - 3 * (4 + 2 + 2) * 8


def test_initial_weights_are_those_of_qwen2() -> None:
    model = Decoder(dataclasses.replace(CONFIG, width=64, mlp_width=256), rngs=nnx.Rngs(5))
    flat = {"/".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model))}
    for name, value in flat.items():
        if name.endswith("_norm"):
            assert (value == 1).all(), name
        elif name.endswith("_bias"):
            assert (value == 0).all(), name
        else:
            assert 0.018 < value.std() < 0.022, name
            assert abs(value.mean()) < 0.002, name
    again = nnx.state(Decoder(dataclasses.replace(CONFIG, width=64, mlp_width=256), rngs=nnx.Rngs(5)))
    for leaf, value in zip(jax.tree.leaves(again), flat.values(), strict=True):
        np.testing.assert_array_equal(leaf, value)


def test_a_vocabulary_that_differs_from_the_corpus_is_refused() -> None:
    config = demo.get_config().model
    with pytest.raises(UserError, match=r"config\.model\.vocab_size"):
        ModelConfig.from_config(config)
    config.vocab_size = 100
    assert ModelConfig.from_config(config).vocab_size == 100
    with pytest.raises(UserError, match="100, but the corpus vocabulary has 90 tokens"):
        ModelConfig.from_config(config, 90)


def assert_trees_close(actual: nnx.State, expected: nnx.State, tolerance: float) -> None:
    expected_leaves, actual_leaves = jax.tree.leaves(expected), jax.tree.leaves(actual)
    assert max(np.abs(leaf).max() for leaf in expected_leaves) > 0.05
    for wanted, got in zip(expected_leaves, actual_leaves, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
