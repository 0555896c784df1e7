"""Equality with Hugging Face's Qwen2 by golden vectors (`make_golden.py`); `tests/parity` compares live."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cometjax.huggingface import differences, from_hf_state, to_hf_config, to_hf_state
from cometjax.model import Decoder, ModelConfig
from data_pipeline.errors import UserError

# Most of the time is the compiler's, and no test here is of how its code rounds.
pytestmark = pytest.mark.usefixtures("hurried_compiler")

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMALL = ModelConfig(vocab_size=11, layers=2, width=12, heads=4, kv_heads=2, head_dim=6, mlp_width=20)


def golden(name: str) -> tuple[ModelConfig, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    with np.load(GOLDEN / f"qwen2_{name}.npz", allow_pickle=False) as arrays:
        config = ModelConfig(**json.loads(str(arrays["config"])))
        state = {key.removeprefix("state/"): arrays[key] for key in arrays.files if key.startswith("state/")}
        return config, state, arrays["tokens_BxL"], arrays["logits_BxLxV"]


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_equal_those_of_transformers_qwen2(name: str, scan_layers: bool) -> None:
    config, state, tokens_BxL, expected_BxLxV = golden(name)
    model = from_hf_state(state, dataclasses.replace(config, scan_layers=scan_layers))
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    logits_BxLxV = model(jnp.asarray(tokens_BxL), jnp.ones_like(positions_BxL), positions_BxL)
    assert np.abs(expected_BxLxV).max() > 1  # logits that say something
    np.testing.assert_allclose(logits_BxLxV, expected_BxLxV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_state_dict_goes_through_the_model_bitwise(name: str) -> None:
    config, state, _, _ = golden(name)
    back = to_hf_state(from_hf_state(state, config))
    assert state.keys() - back.keys() == ({"lm_head.weight"} if name == "tied" else set())
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[key], err_msg=key)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"rope_scaling": {"rope_type": "default"}, "layer_types": ["full_attention"] * 2}, []),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0}}, ["rope_type is 'yarn', this decoder's"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_type is 'yarn', this decoder's"]),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ["rope_type is 'linear', this decoder's"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types has sliding_attention, this"]),
    ],
)
def test_what_a_qwen2_may_do_otherwise_is_named(changes: dict[str, object], says: list[str]) -> None:
    config = dataclasses.replace(SMALL, rope_theta=10_000.0)
    theirs = to_hf_config(config, max_positions=64)
    if "rope_scaling" in changes:  # as transformers 4 writes it
        del theirs["rope_parameters"]
    found = differences(theirs | changes, config)
    assert len(found) == len(says)
    assert all(phrase.startswith(start) for phrase, start in zip(found, says, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_goes_through_a_state_dict_bitwise(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tied_embeddings=tied)
    model = Decoder(config, rngs=nnx.Rngs(3))
    model.layers.query_bias[...] = nnx.Rngs(4).params.normal(model.layers.query_bias.shape)
    again = nnx.to_flat_state(nnx.state(from_hf_state(to_hf_state(model), config)))
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    assert len(flat) == len(again)
    for path, value in again:
        np.testing.assert_array_equal(value[...], flat[path][...], err_msg=str(path))
        assert value.get_metadata("axes") == flat[path].get_metadata("axes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "tensor model.norm.weight: is missing"),
        (lambda state: state.update({"model.layers.2.mlp.up_proj.weight": np.ones(1)}), "has no place"),
        (lambda state: state.update({"model.norm.weight": np.ones(5)}), r"shape \[5\], config.model wants \[24\]"),
        (lambda state: state.update({"lm_head.weight": np.ones((61, 24))}), "differs from the embedding"),
    ],
)
def test_a_state_dict_of_another_model_is_refused_by_tensor_name(
    change: Callable[[dict], object], message: str
) -> None:
    config, state, _, _ = golden("tied")
    change(state)
    with pytest.raises(UserError, match=message):
        from_hf_state(state, config)


def test_a_model_without_qkv_bias_has_no_qwen2_form() -> None:
    with pytest.raises(UserError, match=r"config\.model\.qkv_bias"):
        to_hf_state(Decoder(dataclasses.replace(SMALL, qkv_bias=False), rngs=nnx.Rngs(0)))
