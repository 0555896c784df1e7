"""The decoder's parameters as a Hugging Face `Qwen2ForCausalLM` state dict, and back.

Torch keeps a linear layer as [out, in] with heads flattened; here matrices are [in, out] with heads apart and layers
stacked. Nothing is computed, so a round trip is bitwise. Arrays are numpy; neither torch nor transformers is needed.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax.model import Decoder, LayerWeights, ModelConfig
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
    _require_qwen2(config)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    _refuse_strangers(state, config)
    values = nnx.to_pure_dict(abstract)
    values["embedding"] = _tensor(state, _EMBEDDING, values["embedding"].shape)
    values["final_norm"] = _tensor(state, _FINAL_NORM, values["final_norm"].shape)
    if not config.tied_embeddings:
        values["lm_head"] = _tensor(state, _LM_HEAD, values["lm_head"].shape)
    for name, stacked in values["layers"].items():
        shape = stacked.shape[1:]
        torch_shape = _flat_shape(name, shape)[::-1]
        tensors = (_tensor(state, _layer_tensor(i, name), torch_shape) for i in range(config.layers))
        values["layers"][name] = np.stack([tensor.T.reshape(shape) for tensor in tensors])
    nnx.replace_by_pure_dict(abstract, jax.tree.map(lambda value: jnp.asarray(value, config.param_dtype), values))
    return nnx.merge(graph, abstract)


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
