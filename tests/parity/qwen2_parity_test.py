"""The decoder against transformers' Qwen2, live, both ways, on several shapes and packed rows: `make test-parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from cometjax.huggingface import from_hf_state, to_hf_state
from cometjax.model import Decoder, ModelConfig

TOLERANCE = 1e-4
SHAPES = {
    "grouped, tied": ModelConfig(
        vocab_size=97, layers=3, width=48, heads=4, kv_heads=2, head_dim=12, mlp_width=80, rope_theta=10_000.0
    ),
    "one key/value head, untied, heads wider than the model": ModelConfig(
        vocab_size=50, layers=2, width=32, heads=4, kv_heads=1, head_dim=16, mlp_width=64, tied_embeddings=False
    ),
    "no groups, another rotary base and epsilon, unrolled": ModelConfig(
        vocab_size=131, layers=4, width=64, heads=4, kv_heads=4, head_dim=16, mlp_width=96,
        rope_theta=1e6, norm_eps=1e-5, scan_layers=False,
    ),
}  # fmt: skip


@pytest.fixture(params=list(SHAPES))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return SHAPES[request.param]


def qwen2(config: ModelConfig) -> transformers.Qwen2ForCausalLM:
    hf_config = transformers.Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied_embeddings,
        attn_implementation="eager",
    )
    return transformers.Qwen2ForCausalLM(hf_config).to(torch.float32).eval()


def random_qwen2(config: ModelConfig) -> transformers.Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = qwen2(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.25)
    return model


def random_decoder(config: ModelConfig) -> Decoder:
    model = Decoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.25, leaf.dtype), nnx.state(model)
    )
    nnx.update(model, noise)
    return model


def tokens(config: ModelConfig, length: int = 33) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab_size, (2, length))


def torch_logits(model: transformers.Qwen2ForCausalLM, tokens_BxL: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens_BxL)).logits.numpy()


@nnx.jit
def jax_logits(model: Decoder, tokens_BxL: jax.Array, segments_BxL: jax.Array, positions_BxL: jax.Array) -> jax.Array:
    return model(tokens_BxL, segments_BxL, positions_BxL)


def plain_logits(model: Decoder, tokens_BxL: np.ndarray) -> np.ndarray:
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    return np.asarray(jax_logits(model, jnp.asarray(tokens_BxL), jnp.ones_like(positions_BxL), positions_BxL))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.3  # logits that say something
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_weights_of_qwen2_give_its_logits(config: ModelConfig) -> None:
    theirs = random_qwen2(config)
    ours = from_hf_state({name: tensor.numpy() for name, tensor in theirs.state_dict().items()}, config)
    assert_equal(plain_logits(ours, tokens(config)), torch_logits(theirs, tokens(config)))


def test_our_weights_give_our_logits_in_qwen2(config: ModelConfig) -> None:
    ours, theirs = random_decoder(config), qwen2(config)
    state = {name: torch.from_numpy(array.copy()) for name, array in to_hf_state(ours).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tied_embeddings else set())
    assert_equal(plain_logits(ours, tokens(config)), torch_logits(theirs, tokens(config)))


def test_segments_of_a_packed_row_give_what_qwen2_gives_them_one_by_one(config: ModelConfig) -> None:
    theirs = random_qwen2(config)
    ours = from_hf_state({name: tensor.numpy() for name, tensor in theirs.state_dict().items()}, config)
    lengths, row = [13, 1, 21, 9], 48  # and four tokens of padding
    rng = np.random.default_rng(2)
    segments = [rng.integers(0, config.vocab_size, length) for length in lengths]
    padding = [0] * (row - sum(lengths))
    tokens_1xL = np.concatenate([*segments, padding]).astype(np.int32)[None]
    segment_ids_1xL = np.array([*np.repeat(np.arange(1, 5), lengths), *padding])[None]
    positions_1xL = np.concatenate([*map(np.arange, lengths), padding]).astype(np.int32)[None]
    logits_LxV = jax_logits(ours, *map(jnp.asarray, (tokens_1xL, segment_ids_1xL, positions_1xL)))[0]
    for i, segment in enumerate(segments):
        assert_equal(logits_LxV[segment_ids_1xL[0] == i + 1], torch_logits(theirs, segment[None])[0])


def test_gradients_equal_those_of_qwen2(config: ModelConfig) -> None:
    theirs = random_qwen2(config)
    state = {name: tensor.detach().clone().numpy() for name, tensor in theirs.state_dict().items()}
    tokens_BxL = tokens(config)
    torch_tokens = torch.from_numpy(tokens_BxL)
    theirs(input_ids=torch_tokens, labels=torch_tokens).loss.backward()

    @nnx.jit
    def gradient(model: Decoder, tokens_BxL: jax.Array) -> nnx.State:
        def loss(model: Decoder) -> jax.Array:
            positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
            logits_BxLxV = model(tokens_BxL, jnp.ones_like(tokens_BxL), positions_BxL)[:, :-1]
            chosen_BxL = jnp.take_along_axis(logits_BxLxV, tokens_BxL[:, 1:, None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(logits_BxLxV, axis=-1) - chosen_BxL)

        return nnx.grad(loss)(model)

    ours = from_hf_state(state, config)
    nnx.update(ours, gradient(ours, jnp.asarray(tokens_BxL)))
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    for name, array in to_hf_state(ours).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=TOLERANCE, err_msg=name)


def test_the_comparison_is_sensitive_to_every_tensor() -> None:
    config = SHAPES["grouped, tied"]
    theirs = random_qwen2(config)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    expected = torch_logits(theirs, tokens(config))
    for name, array in state.items():
        broken = {**state, name: array * 1.05 + 0.01}
        difference = np.abs(plain_logits(from_hf_state(broken, config), tokens(config)) - expected).max()
        # A bias on keys adds the same to all scores of a query, up to rotation: the least visible of them.
        assert difference > 2 * TOLERANCE, name
