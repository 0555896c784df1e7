"""The decoder: Qwen2's architecture (pre-norm RMSNorm, SwiGLU, RoPE, grouped queries, QKV bias) in Flax NNX.

The parameters of all layers are stacked along a leading axis N. A layer is a pure function of its slice of them, so
that one tree serves the scanned form (compiles once whatever the depth), the unrolled form (decoding on CPU), and any
way to attend: training, prefill and decoding differ only in the `attend` that they hand in.

Numerically equal to Hugging Face `Qwen2ForCausalLM` in float32 (`cometjax.huggingface`).

Dimensions: B batch rows, L row length, D embed width, H query heads, K key/value heads, C head dim, F mlp width,
V vocabulary, N layers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cometjax import attention, parameterization
from cometjax.attention_shards import RESIDUAL_NAME
from cometjax.elementwise import add_bias, rms_norm, swiglu
from cometjax.packed import Heads
from cometjax.products import are_few, contract, product, transposed, turned_product
from cometjax.sharding import constrain, gather_weights, path_name, traced_platform
from data_pipeline.errors import UserError

# As transformers' Qwen2Config.initializer_range: all matrices and the embedding alike (under "mup" the layers' matrices
# and the final norm start by `cometjax.parameterization`).
INIT_STDDEV = 0.02

# What a layer's forward pass keeps for its backward pass. "none": everything, weights that were gathered from other
# devices included. "dots": results of matmuls with weights and of attention kernels, the rest is recomputed. "full":
# nothing but the layer's input.
REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESIDUAL_NAME),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Names of the parameters' axes, kept with each parameter as metadata `axes`: the vocabulary of sharding rules.
AXIS_NAMES = {
    "N": "layers",
    "D": "embed",
    "H": "heads",
    "K": "kv_heads",
    "C": "head_dim",
    "F": "mlp",
    "V": "vocabulary",
}

# attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, cache of this layer) -> (out_BxLxHxC, cache of this layer);
# q and k have been rotated.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
LayerWeights = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape and numerics of a decoder; hashable, so that it can be a static argument of jit."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied_embeddings: bool = True
    qkv_bias: bool = True
    compute_dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "auto"
    scan_layers: bool = True
    remat: str = "none"
    parameterization: str = "standard"
    mup_base_width: int = 256

    @classmethod
    def from_config(cls, model: Any, vocab_size: int = 0) -> "ModelConfig":
        """The model of `config.model` (validated), for a vocabulary of `vocab_size` tokens.

        `compute_dtype` "auto" becomes bfloat16 on an accelerator and float32 on CPU.

        Raises:
          UserError: `model.vocab_size` is set and differs from `vocab_size`, or neither is given.
        """
        if model.vocab_size and vocab_size and model.vocab_size != vocab_size:
            raise UserError(
                f"{model.vocab_size}, but the corpus vocabulary has {vocab_size} tokens",
                where="config.model.vocab_size",
                fix="set it to 0 to take the corpus vocabulary's",
            )
        values = {field.name: model[field.name] for field in dataclasses.fields(cls)}
        values["vocab_size"] = model.vocab_size or vocab_size
        if values["vocab_size"] <= 0:
            raise UserError("is 0 and there is no corpus to take it from", where="config.model.vocab_size")
        values["compute_dtype"] = compute_dtype(model)
        return cls(**values)

    @property
    def attention_heads(self) -> Heads:
        """What an implementation of attention may refuse."""
        return Heads(self.head_dim, self.compute_dtype)


def compute_dtype(model: Any) -> str:
    """That of `config.model`; "auto" is bfloat16 on an accelerator and float32 on CPU."""
    if model.compute_dtype != "auto":
        return str(model.compute_dtype)
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters of the decoder, counted from shapes without allocating any."""
    abstract = nnx.eval_shape(lambda: nnx.state(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))


def in_compute_dtype(weights: Any, config: ModelConfig) -> Any:
    """A tree of weights as the products take them; norms' scales stay as they are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w if "_norm" in path_name(path) else w.astype(config.compute_dtype), weights
    )


class DecoderLayers(nnx.Module):
    """The parameters of all layers, stacked along axis N. Matrices are normal(0, 0.02), biases zero, norms one.

    (In the standard parameterization; `cometjax.parameterization` has the other.)
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        sizes = _sizes(config)

        def matrix(name: str, axes: str) -> nnx.Param:
            stddev = INIT_STDDEV * parameterization.initial_scale(f"layers/{name}", config)
            return _parameter(nnx.initializers.normal(stddev), axes, sizes, config, rngs)

        def zeros(axes: str) -> nnx.Param:
            return _parameter(nnx.initializers.zeros, axes, sizes, config, rngs)

        def ones(axes: str) -> nnx.Param:
            return _parameter(nnx.initializers.ones, axes, sizes, config, rngs)

        self.attention_norm = ones("ND")
        self.query = matrix("query", "NDHC")
        self.key = matrix("key", "NDKC")
        self.value = matrix("value", "NDKC")
        if config.qkv_bias:
            self.query_bias = zeros("NHC")
            self.key_bias = zeros("NKC")
            self.value_bias = zeros("NKC")
        self.attention_out = matrix("attention_out", "NHCD")
        self.mlp_norm = ones("ND")
        self.mlp_gate = matrix("mlp_gate", "NDF")
        self.mlp_up = matrix("mlp_up", "NDF")
        self.mlp_down = matrix("mlp_down", "NFD")


class Decoder(nnx.Module):
    """A decoder-only transformer over packed rows of event tokens."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        sizes = _sizes(config)
        normal = nnx.initializers.normal(INIT_STDDEV)
        self.embedding = _parameter(normal, "VD", sizes, config, rngs)
        self.layers = DecoderLayers(config, rngs=rngs)
        scale = nnx.initializers.constant(parameterization.initial_scale("final_norm", config))
        self.final_norm = _parameter(scale, "D", sizes, config, rngs)
        if not config.tied_embeddings:
            self.lm_head = _parameter(normal, "VD", sizes, config, rngs)

    def __call__(self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array, positions_BxL: jax.Array) -> jax.Array:
        """Next-token logits_BxLxV (float32) of packed rows; segment id 0 is padding, positions restart per segment."""
        return self.logits(self.hidden_of_rows(tokens_BxL, segment_ids_BxL, positions_BxL))

    def hidden_of_rows(self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array, positions_BxL: jax.Array) -> jax.Array:
        """x_BxLxD of packed rows after the final norm, in the compute dtype: what `head` scores."""

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: None) -> tuple[jax.Array, None]:
            name = self.config.attention
            return attention.attention(q, k, v, segment_ids_BxL=segment_ids_BxL, implementation=name), cache

        return self.hidden(tokens_BxL, positions_BxL, attend)[0]

    def layer_weights(self) -> list[LayerWeights]:
        """Each layer's weights apart: for a loop over `hidden`, which would slice the stacks anew in each round."""
        stacks: LayerWeights = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
        # unstack, not indexing: its gradient is one concatenation, where N slices would each pad to the whole stack.
        by_name = {name: jnp.unstack(stack) for name, stack in stacks.items()}
        return [{name: slices[i] for name, slices in by_name.items()} for i in range(self.config.layers)]

    def hidden(
        self,
        tokens_BxL: jax.Array,
        positions_BxL: jax.Array,
        attend: Attend,
        caches: Any = None,
        layers: list[LayerWeights] | None = None,
    ) -> tuple[jax.Array, Any]:
        """Run the layers; returns (x_BxLxD after the final norm, in the compute dtype; caches).

        `caches` is None, or a pytree whose leaves have a leading axis N: `attend` gets the slice of its layer and
        returns it updated. It may also be a list of N pytrees, one per layer; then the layers run unrolled, and no
        layer's cache is copied to stack it: a third of the time of a scanned decoding step on CPU. `layers`:
        `layer_weights()`, where the layers run unrolled and it was called before.
        """
        rotation_BxLxC = _rotation(positions_BxL, self.config)
        x_BxLxD = constrain(self.embedding[tokens_BxL].astype(self.config.compute_dtype), "BLD")

        def layer(x_BxLxD: jax.Array, weights_and_cache: tuple[LayerWeights, Any]) -> tuple[jax.Array, Any]:
            weights, cache = weights_and_cache
            return _layer(self.config, weights, x_BxLxD, rotation_BxLxC, attend, cache)

        scan_layers = self.config.scan_layers and not isinstance(caches, list)
        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=not scan_layers)
        if scan_layers:
            stacks: LayerWeights = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
            x_BxLxD, caches = jax.lax.scan(layer, x_BxLxD, (stacks, caches))
        else:
            x_BxLxD, caches = _unrolled(layer, x_BxLxD, layers or self.layer_weights(), caches)
        return rms_norm(x_BxLxD, self.final_norm[...], self.config.norm_eps), caches

    def logits(self, x: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [B, L, D], or [R, D]: those of a decoding step."""
        if x.ndim == 2:
            return turned_product(x, self.head())
        return constrain(jnp.einsum("bld,vd->blv", x, self.head(), preferred_element_type=jnp.float32), "BLV")

    def head(self) -> jax.Array:
        """The matrix [V, D] that scores hidden states, in the compute dtype."""
        head_VxD = self.embedding[...] if self.config.tied_embeddings else self.lm_head[...]
        return head_VxD.astype(self.config.compute_dtype)


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "N": config.layers,
        "D": config.width,
        "H": config.heads,
        "K": config.kv_heads,
        "C": config.head_dim,
        "F": config.mlp_width,
        "V": config.vocab_size,
    }


def _parameter(
    init: Callable[..., jax.Array], axes: str, sizes: dict[str, int], config: ModelConfig, rngs: nnx.Rngs
) -> nnx.Param:
    shape = tuple(sizes[axis] for axis in axes)
    value = init(rngs.params(), shape, jnp.dtype(config.param_dtype))
    return nnx.Param(value, axes=tuple(AXIS_NAMES[axis] for axis in axes))


def _unrolled(
    layer: Callable[..., tuple[jax.Array, Any]], x_BxLxD: jax.Array, layers: list[LayerWeights], caches: Any
) -> tuple[jax.Array, Any]:
    updated = []
    for i, weights in enumerate(layers):
        cache = caches[i] if isinstance(caches, list) else jax.tree.map(lambda leaf: leaf[i], caches)  # noqa: B023
        x_BxLxD, cache = layer(x_BxLxD, (weights, cache))
        updated.append(cache)
    return x_BxLxD, updated if isinstance(caches, list) else jax.tree.map(lambda *leaves: jnp.stack(leaves), *updated)


def _layer(
    config: ModelConfig,
    weights: LayerWeights,
    x_BxLxD: jax.Array,
    rotation_BxLxC: tuple[jax.Array, jax.Array],
    attend: Attend,
    cache: Any,
) -> tuple[jax.Array, Any]:
    weights = gather_weights(in_compute_dtype(weights, config))

    h_BxLxD = rms_norm(x_BxLxD, weights["attention_norm"], config.norm_eps)
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC = _queries_keys_values(config, weights, h_BxLxD, rotation_BxLxC)
    q_BxLxHxC = constrain(q_BxLxHxC, "BLHC")
    k_BxLxKxC, v_BxLxKxC = constrain(k_BxLxKxC, "BLKC"), constrain(v_BxLxKxC, "BLKC")
    out_BxLxHxC, cache = attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, cache)
    x_BxLxD = constrain(x_BxLxD + _project(out_BxLxHxC, weights["attention_out"], inputs=2), "BLD")

    h_BxLxD = rms_norm(x_BxLxD, weights["mlp_norm"], config.norm_eps)
    return constrain(x_BxLxD + _mlp(weights, h_BxLxD), "BLD"), cache


def side_by_side(weights: LayerWeights) -> LayerWeights:
    """A layer's weights with those that multiply the same input side by side: two products in place of five.

    For decoding, whose products are small: each reads its weights once for a few rows. On CPU the MLP's
    are outputs x inputs (`products.turned_product`).
    """
    weights = dict(weights)
    inputs = [weights.pop(name) for name in ("query", "key", "value")]
    weights["attention_in"] = jnp.concatenate(inputs, axis=1)
    if "query_bias" in weights:
        biases = [weights.pop(f"{name}_bias") for name in ("query", "key", "value")]
        weights["attention_in_bias"] = jnp.concatenate(biases, axis=0)
    weights["mlp_in"] = jnp.stack([weights.pop("mlp_gate"), weights.pop("mlp_up")], axis=1)
    if traced_platform() == "cpu":
        weights["turned_mlp_in"] = weights.pop("mlp_in").transpose(1, 2, 0)
        weights["turned_mlp_down"] = weights.pop("mlp_down").T
    return weights


def _queries_keys_values(
    config: ModelConfig, weights: LayerWeights, h_BxLxD: jax.Array, rotation_BxLxC: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Queries and keys are rotated.
    if "attention_in" in weights:
        rotated = config.heads + config.kv_heads
        all_BxLxAxC = _project(h_BxLxD, weights["attention_in"], weights.get("attention_in_bias"))
        qk_BxLxAxC = _rotate(all_BxLxAxC[:, :, :rotated], rotation_BxLxC)
        return qk_BxLxAxC[:, :, : config.heads], qk_BxLxAxC[:, :, config.heads :], all_BxLxAxC[:, :, rotated:]
    q_BxLxHxC = _project(h_BxLxD, weights["query"], weights.get("query_bias"))
    k_BxLxKxC = _project(h_BxLxD, weights["key"], weights.get("key_bias"))
    v_BxLxKxC = _project(h_BxLxD, weights["value"], weights.get("value_bias"))
    return _rotate(q_BxLxHxC, rotation_BxLxC), _rotate(k_BxLxKxC, rotation_BxLxC), v_BxLxKxC


def _mlp(weights: LayerWeights, h_BxLxD: jax.Array) -> jax.Array:
    if "turned_mlp_in" in weights:
        return _turned_mlp(weights["turned_mlp_in"], weights["turned_mlp_down"], h_BxLxD)
    if "mlp_in" in weights:
        both_BxLx2xF = _project(h_BxLxD, weights["mlp_in"])
        gate_BxLxF, up_BxLxF = both_BxLx2xF[:, :, 0], both_BxLx2xF[:, :, 1]
    else:
        gate_BxLxF, up_BxLxF = _project(h_BxLxD, weights["mlp_gate"]), _project(h_BxLxD, weights["mlp_up"])
    hidden_BxLxF = constrain(swiglu(gate_BxLxF, up_BxLxF), "BLF")
    return _project(hidden_BxLxF, weights["mlp_down"])


def _turned_mlp(in_2xFxD: jax.Array, down_DxF: jax.Array, h_BxLxD: jax.Array) -> jax.Array:
    h_RxD = h_BxLxD.reshape(-1, h_BxLxD.shape[-1])
    in_2FxD = in_2xFxD.reshape(-1, in_2xFxD.shape[-1])
    if are_few(len(h_RxD)):  # they stay columns between the two products
        gate_FxR, up_FxR = jnp.split(contract(in_2FxD, transposed(h_RxD), 0).astype(h_RxD.dtype), 2)
        out_RxD = transposed(contract(down_DxF, swiglu(gate_FxR, up_FxR), 0))
    else:
        gate_RxF, up_RxF = jnp.split(contract(h_RxD, in_2FxD, 1).astype(h_RxD.dtype), 2, axis=1)
        out_RxD = contract(swiglu(gate_RxF, up_RxF), down_DxF, 1)
    return out_RxD.astype(h_RxD.dtype).reshape(h_BxLxD.shape)


def _project(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, inputs: int = 1) -> jax.Array:
    """Contract the last `inputs` axes of `x` with the first of `weight`, as a product of two matrices; add `bias`.

    Flattened because XLA's CPU backend takes about twice as long for the same product over [B, L, D], and for the
    bias's gradient over [B, L, H, C].
    """
    rows_by_in = x.reshape(-1, math.prod(weight.shape[:inputs]))
    rows_by_out = product(rows_by_in, weight.reshape(rows_by_in.shape[1], -1))
    if bias is not None:
        rows_by_out = add_bias(rows_by_out, bias.reshape(-1))
    return rows_by_out.reshape(*x.shape[:-inputs], *weight.shape[inputs:])


def _rotation(positions_BxL: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles (arXiv 2104.09864), float32, each [B, L, C/2]."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions_BxL[..., None].astype(jnp.float32) / config.rope_theta**exponent
    both_BxLxC = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    # To float32's own precision: it changes nothing, but XLA's CPU backend then keeps the array. Else every layer's
    # rotations, and their gradients, evaluate each cosine and sine again for each head (7% of an unrolled step).
    cos, sin = jnp.split(jax.lax.reduce_precision(both_BxLxC, exponent_bits=8, mantissa_bits=23), 2, axis=-1)
    return cos, sin


def _rotate(x_BxLxHxC: jax.Array, rotation_BxLxC: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate pairs (i, i + C/2), as Hugging Face pairs them (the paper pairs neighbours)."""
    cos, sin = (part[:, :, None, :] for part in rotation_BxLxC)
    first, second = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, axis=-1)
    rotated_BxLxHxC = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated_BxLxHxC.astype(x_BxLxHxC.dtype)
