"""The decoder as a Hugging Face `Qwen2ForCausalLM`: its configuration and its state dict, both ways.

Torch keeps a linear layer as [out, in] with heads flattened; here matrices are [in, out] with heads apart and layers
stacked. Nothing is computed, so a round trip is bitwise. Arrays are numpy; neither torch nor transformers is needed.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax.model import INIT_STDDEV, Decoder, LayerWeights, ModelConfig
from data_pipeline.errors import UserError

_EMBEDDING = "model.embed_tokens.weight"
_FINAL_NORM = "model.norm.weight"
_LM_HEAD = "lm_head.weight"

# Parameter of DecoderLayers -> name under "model.layers.<i>.".
_LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "attention_out": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "mlp_gate": "mlp.gate_proj.weight",
    "mlp_up": "mlp.up_proj.weight",
    "mlp_down": "mlp.down_proj.weight",
}

# Field of ModelConfig -> key of config.json.
_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}
# What an architecture of this name may do otherwise, and this decoder does not.
_FIXED = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0}


def to_hf_config(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """config.json of the equivalent `Qwen2ForCausalLM`; raises UserError as `to_hf_state`."""
    _require_qwen2(config)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        **_FIXED,
        **{key: getattr(config, field) for field, key in _CONFIG_KEYS.items()},
        # transformers 4 reads the one, 5 the other.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": max_positions,
        "initializer_range": INIT_STDDEV,
        "use_cache": True,
        "dtype": config.param_dtype,
    }


def differences(hf_config: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """How the model of a config.json differs from `config`: a phrase with both values for each key, or none."""
    rope = hf_config.get("rope_parameters") or {"rope_theta": hf_config.get("rope_theta", 10_000.0)}
    theirs = {key: hf_config.get(key) for key in _CONFIG_KEYS.values()}
    if theirs["head_dim"] is None and theirs["hidden_size"] and theirs["num_attention_heads"]:
        theirs["head_dim"] = theirs["hidden_size"] // theirs["num_attention_heads"]
    theirs["tie_word_embeddings"] = bool(theirs["tie_word_embeddings"])
    found = [
        f"{key} is {theirs[key]!r}, config.model.{field} {getattr(config, field)!r}"
        for field, key in _CONFIG_KEYS.items()
        if theirs[key] != getattr(config, field)
    ]
    if rope.get("rope_theta") != config.rope_theta:
        found.append(f"rope_theta is {rope.get('rope_theta')!r}, config.model.rope_theta {config.rope_theta!r}")
    scaling = hf_config.get("rope_scaling") or {}  # transformers 4, whose older versions say "type"
    kinds = {rope.get("rope_type", "default"), scaling.get("rope_type", scaling.get("type", "default"))}
    found += [f"rope_type is {kind!r}, this decoder's 'default'" for kind in sorted(kinds - {"default"})]
    if other := set(hf_config.get("layer_types") or ()) - {"full_attention"}:
        found.append(f"layer_types has {', '.join(sorted(other))}, this decoder's 'full_attention' alone")
    found += [
        f"{key} is {hf_config[key]!r}, this decoder's {value!r}"
        for key, value in _FIXED.items()
        if hf_config.get(key, value) != value
    ]
    return found


def to_hf_state(model: Decoder) -> dict[str, np.ndarray]:
    """The state dict of the equivalent `Qwen2ForCausalLM`.

    With tied embeddings it has no `lm_head.weight`: transformers ties it (`load_state_dict(..., strict=False)`).

    Raises:
      UserError: the model has no QKV bias, which Qwen2 always has.
    """
    _require_qwen2(model.config)
    state = {_EMBEDDING: np.asarray(model.embedding[...]), _FINAL_NORM: np.asarray(model.final_norm[...])}
    layers: LayerWeights = nnx.to_pure_dict(nnx.state(model.layers, nnx.Param))
    for name, stacked in layers.items():
        for i, weight in enumerate(np.asarray(stacked)):
            state[_layer_tensor(i, name)] = weight.reshape(_flat_shape(name, weight.shape)).T
    if not model.config.tied_embeddings:
        state[_LM_HEAD] = np.asarray(model.lm_head[...])
    return state


def from_hf_state(state: Mapping[str, np.ndarray], config: ModelConfig) -> Decoder:
    """The decoder of shape `config` with the weights of a `Qwen2ForCausalLM` state dict, in `config.param_dtype`.

    Raises:
      UserError: a tensor is missing, has no place in this architecture, or has another shape than `config` wants; or a
        tied model's `lm_head.weight` (it may be left out) differs from its embedding.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(abstract, jax.tree.map(jnp.asarray, params_from_hf_state(state, config)))
    return nnx.merge(graph, abstract)


def params_from_hf_state(state: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """The parameters alone, as numpy arrays on the host; arguments and errors as of `from_hf_state`."""
    _require_qwen2(config)
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))), nnx.Param)
    _refuse_strangers(state, config)
    values: dict[str, Any] = nnx.to_pure_dict(abstract)
    values["embedding"] = _tensor(state, _EMBEDDING, values["embedding"].shape)
    values["final_norm"] = _tensor(state, _FINAL_NORM, values["final_norm"].shape)
    if not config.tied_embeddings:
        values["lm_head"] = _tensor(state, _LM_HEAD, values["lm_head"].shape)
    for name, stacked in values["layers"].items():
        shape = stacked.shape[1:]
        torch_shape = _flat_shape(name, shape)[::-1]
        tensors = (_tensor(state, _layer_tensor(i, name), torch_shape) for i in range(config.layers))
        values["layers"][name] = np.stack([tensor.T.reshape(shape) for tensor in tensors])
    dtype = jnp.dtype(config.param_dtype)
    return jax.tree.map(lambda value: value.astype(dtype, copy=False), values)


def _layer_tensor(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{_LAYER_NAMES[name]}"


def _flat_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one layer's parameter with its heads flattened: [in, out] for matrices, else one axis."""
    if name.endswith(("_bias", "_norm")):
        return (math.prod(shape),)
    if name == "attention_out":
        return (shape[0] * shape[1], shape[2])
    return (shape[0], math.prod(shape[1:]))


def _tensor(state: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in state:
        raise UserError("is missing from the state dict", where=f"tensor {name}")
    if state[name].shape != shape:
        raise UserError(
            f"has shape {list(state[name].shape)}, config.model wants {list(shape)}", where=f"tensor {name}"
        )
    return state[name]


def _refuse_strangers(state: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    known = {_EMBEDDING, _FINAL_NORM, _LM_HEAD}
    known |= {_layer_tensor(i, name) for i in range(config.layers) for name in _LAYER_NAMES}
    for name in sorted(state.keys() - known):
        raise UserError("has no place in this model", where=f"tensor {name}", fix="check config.model.layers")
    if config.tied_embeddings and _LM_HEAD in state and not np.array_equal(state[_LM_HEAD], state[_EMBEDDING]):
        raise UserError(
            "differs from the embedding", where=f"tensor {_LM_HEAD}", fix="set config.model.tied_embeddings to False"
        )


def _require_qwen2(config: ModelConfig) -> None:
    if not config.qkv_bias:
        raise UserError(
            "False has no equivalent in Qwen2", where="config.model.qkv_bias", fix="only models with QKV bias convert"
        )
