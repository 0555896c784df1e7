"""What one chip holds in a train step, worked out from shapes: no compiler, no device.

    parameters, optimizer   exact: the shapes and shardings that training uses, in the chip's tiles
    gradients               float32, where the parameters are
    saved activations       what the layers' backward pass needs from the forward pass: the model is traced with one
                            chip's share of rows, heads and mlp under its remat policy, and what it keeps is counted
    working set             the larger of the loss (a chunk of logits, gradients) and one layer's backward pass

The backward pass begins with the saved activations of all layers and the working set of the loss, and ends with the
gradients of all layers and the working set of a layer. XLA's heap adds fragmentation, which is not modelled.
`benchmarks/plan_memory.py` compares all this with the TPU compiler.

R rows of a chip   L row length   D embed   H query heads   K key/value heads   C head dim   F mlp   V vocabulary
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cometjax import attention, sharding
from cometjax.attention_shards import RESIDUAL_NAME
from cometjax.cross_entropy import CHUNK_BYTES
from cometjax.model import Decoder, ModelConfig
from cometjax.optimizer import make_optimizer
from cometjax.pod_run import PodRun, abstract_mesh
from cometjax.train_step import TrainState, init_state, model_graph
from data_pipeline.loader import BATCH_DTYPES

# TPU arrays lie in tiles of 8 x 128 (sublanes x lanes) of their two innermost dimensions.
LANES, SUBLANES = 128, 8
# Attention whose kernels lay heads out by the lanes.
_LANE_PADDED = ("splash", "pallas_tpu")
# JAX's own kernel names nothing of what its backward pass needs.
_UNNAMED = ("splash",)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip, each at the step's peak."""

    parameters: int
    optimizer: int
    gradients: int
    saved_activations: int
    working_set: int
    batch: int

    @property
    def activations(self) -> int:
        """All that the step needs beside what it was given."""
        return self.gradients + self.saved_activations + self.working_set

    @property
    def total(self) -> int:
        """The peak."""
        return self.parameters + self.optimizer + self.batch + self.activations


def chip_memory(run: PodRun) -> Memory:
    """The memory of one chip in a run's step."""
    tiled = run.topology.chip.platform == "tpu"
    parameters, optimizer, gradients = _state_bytes(run, tiled)
    train, share = run.config.train, share_of_chip(run.model, run.sizes["tensor"])
    tokens = run.microbatch_rows * train.row_length
    of_a_layer = _layer_weight_bytes(share) if run.sizes["fsdp"] > 1 else 0
    # Gathered weights: those of a layer and of the next one, or under "none", which keeps them, of all.
    kept, passing = (share.layers * of_a_layer, 0) if share.remat == "none" else (0, 2 * of_a_layer)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        # In microbatches: the sum so far, and the part's own. Between replicas: their sum, and the replica's own.
        gradients=gradients * (2 if train.microbatches > 1 or run.sizes["data"] > 1 else 1),
        saved_activations=saved_bytes(share, run.microbatch_rows, train.row_length, tiled) - _inputs_elsewhere(run),
        working_set=max(_loss_bytes(run, tokens), _layer_bytes(share, tokens, tiled) + passing) + kept,
        batch=tokens * train.microbatches * sum(np.dtype(dtype).itemsize for dtype in BATCH_DTYPES.values()),
    )


def share_of_chip(model: ModelConfig, tensor: int) -> ModelConfig:
    """The model that one of `tensor` chips computes: its part of heads, mlp and vocabulary, where these divide."""

    def part(size: int) -> int:
        return size if size % tensor else size // tensor

    heads = part(model.heads)
    # As the kernels do: key/value heads that do not divide are repeated until they do.
    kv_heads = model.kv_heads // math.gcd(model.kv_heads, tensor) if heads < model.heads else model.kv_heads
    return dataclasses.replace(
        model,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=part(model.mlp_width),
        vocab_size=part(model.vocab_size),
    )


def _state_bytes(run: PodRun, tiled: bool) -> tuple[int, int, int]:
    """(parameters, optimizer and counters, gradients)."""
    # Remat changes none of it: a search asks for the same state many times.
    parts = {"optimizer": run.config.optimizer.to_dict(), "model": run.config.model.to_dict() | {"remat": "none"}}
    model, config = dataclasses.replace(run.model, remat="none"), ml_collections.FrozenConfigDict(parts)
    return _sharded_state_bytes(model, config, tuple(run.sizes.items()), tiled)


@functools.lru_cache(maxsize=256)
def _sharded_state_bytes(
    model: ModelConfig, config: ml_collections.FrozenConfigDict, sizes: tuple[tuple[str, int], ...], tiled: bool
) -> tuple[int, int, int]:
    state = _abstract_state(model, config)
    shards = sharding.state_sharding(abstract_mesh(dict(sizes)), state)

    def held(arrays: Any, places: Any, dtype: Any = None) -> int:
        sized = jax.tree.map(
            lambda leaf, place: array_bytes(place.shard_shape(leaf.shape), dtype or leaf.dtype, tiled), arrays, places
        )
        return sum(jax.tree.leaves(sized))

    parameters = held(state.params, shards.params)
    return parameters, held(state, shards) - parameters, held(state.params, shards.params, jnp.float32)


@functools.lru_cache(maxsize=16)
def _abstract_state(model: ModelConfig, config: ml_collections.FrozenConfigDict) -> TrainState:
    optimizer = make_optimizer(config)
    return jax.eval_shape(lambda: init_state(model, optimizer, 0))


def array_bytes(shape: tuple[int, ...], dtype: Any, tiled: bool) -> int:
    """Bytes of an array; `tiled`: in the TPU's tiles, of the order of dimensions that wastes least."""
    itemsize = np.dtype(dtype).itemsize
    if not tiled or len(shape) < 2:
        return math.prod(shape) * itemsize
    # Packed dtypes have more sublanes to a tile (16 of bfloat16); XLA then also takes smaller tiles.
    size = math.prod(shape)
    waste = min(
        (-(-shape[minor] // LANES) * LANES / shape[minor]) * (-(-shape[second] // SUBLANES) * SUBLANES / shape[second])
        for minor in range(len(shape))
        for second in range(len(shape))
        if minor != second
    )
    return round(size * waste) * itemsize


def saved_bytes(share: ModelConfig, rows: int, length: int, tiled: bool) -> int:
    """Bytes that the layers keep for their backward pass, for `rows` rows on a chip that computes `share`."""
    # What does not grow with the rows are weights in the compute dtype: XLA keeps these as it keeps the parameters.
    one, two = (_traced_bytes(share, traced, length, tiled) for traced in (1, 2))
    return (two - one) * rows


def _inputs_elsewhere(run: PodRun) -> int:
    """Bytes of the layers' inputs that a chip leaves to its neighbours along `tensor`.

    The loss splits positions over them (`cometjax.cross_entropy`), and the partitioner carries that into what each
    layer keeps of its input.
    """
    length, tensor = run.config.train.row_length, run.sizes["tensor"]
    if length % tensor:
        return 0
    itemsize = jnp.dtype(run.model.compute_dtype).itemsize
    inputs = run.model.layers * run.microbatch_rows * length * run.model.width * itemsize
    return inputs - inputs // tensor


@functools.lru_cache(maxsize=256)
def _traced_bytes(share: ModelConfig, rows: int, length: int, tiled: bool) -> int:
    graph = model_graph(share)
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(Decoder(share, rngs=nnx.Rngs(0)), nnx.Param)))
    ids_RxL = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def kept(params: Any, tokens_RxL: jax.Array, positions_RxL: jax.Array) -> list[Any]:
        def hidden(params: Any) -> jax.Array:
            return nnx.merge(graph, params).hidden(tokens_RxL, positions_RxL, _attend(share, ids_RxL.shape))[0]

        return jax.tree.leaves(jax.vjp(hidden, params)[1])

    with sharding.traced_for("tpu" if tiled else "gpu"):
        jaxpr = jax.make_jaxpr(kept)(params, ids_RxL, ids_RxL).jaxpr
    return sum(_distinct(jaxpr, share, tiled).values())


def _attend(share: ModelConfig, shape: tuple[int, int]) -> Any:
    """How the traced layers attend: as named, or, where that is a fused kernel, with what any such kernel keeps."""
    if share.attention == "reference":
        segment_ids_RxL = jnp.ones(shape, jnp.int32)
        return lambda q, k, v, cache: (
            attention.attention(q, k, v, segment_ids_BxL=segment_ids_RxL, implementation="reference"),
            cache,
        )
    named = share.attention not in _UNNAMED
    return lambda q, k, v, cache: (_fused(q, k, v, named), cache)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused(q_RxLxHxC: jax.Array, k_RxLxKxC: jax.Array, v_RxLxKxC: jax.Array, named: bool) -> jax.Array:
    return q_RxLxHxC + 0 * (k_RxLxKxC.sum() + v_RxLxKxC.sum())


def _fused_forward(q: jax.Array, k: jax.Array, v: jax.Array, named: bool) -> tuple[jax.Array, Any]:
    """Kept: the operands, the output, and a float32 normalizer per query and head (arXiv 2205.14135, algorithm 2).

    `named`: the last two by the name by which remat policies keep them (`cometjax.model`).
    """
    out = _fused(q, k, v, named)
    results = out, out[..., 0].astype(jnp.float32)
    if named:
        results = checkpoint_name(results, RESIDUAL_NAME)
    return results[0], (q, k, v, *results)


def _fused_backward(named: bool, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return gradient, kept[1], kept[2]


_fused.defvjp(_fused_forward, _fused_backward)


def _distinct(jaxpr: Any, share: ModelConfig, tiled: bool) -> dict[Any, int]:
    """The arrays that a trace returns, by where they come from: array → bytes. Those that it was given are left out.

    So are those made beside the loop over layers, if there is one: rotations and casts, which XLA makes anew where they
    are used. What the loop hands out it must store.
    """
    producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    loops = any(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)
    found: dict[Any, int] = {}
    for var in jaxpr.outvars:
        if isinstance(var, jax.extend.core.Literal):
            continue  # a number, which is no array
        if var not in producers:
            continue  # a parameter, as it is
        eqn = producers[var]
        if eqn.primitive.name == "scan":
            key = (id(eqn), eqn.params["jaxpr"].jaxpr.outvars[eqn.outvars.index(var)])
        elif loops:
            continue
        else:
            key = var
        found[key] = _kept_bytes(var.aval, share, tiled)
    return found


def _kept_bytes(aval: Any, share: ModelConfig, tiled: bool) -> int:
    size = array_bytes(aval.shape, aval.dtype, False)
    # Kernels read and write [.., L, C] with C in the lanes: narrow heads are padded. XLA orders the rest better.
    of_heads = len(aval.shape) >= 3 and aval.shape[-2:] in {
        (share.heads, share.head_dim),
        (share.kv_heads, share.head_dim),
    }
    if tiled and of_heads and share.attention in _LANE_PADDED:
        return size * -(-share.head_dim // LANES) * LANES // share.head_dim
    return size


def _loss_bytes(run: PodRun, tokens: int) -> int:
    """A chunk's float32 logits and their gradient, the head and its float32 gradient, whole; hidden states, twice.

    See cometjax.cross_entropy: a chunk is bounded, and `tensor` splits tokens there, not the vocabulary.
    """
    width, vocabulary = run.model.width, run.model.vocab_size
    itemsize = jnp.dtype(run.model.compute_dtype).itemsize
    chunk = min(CHUNK_BYTES["accelerator"], 4 * vocabulary * tokens // run.sizes["tensor"])
    return chunk * (4 + itemsize) // 4 + vocabulary * width * (4 + itemsize) + 2 * tokens * width * itemsize


def _layer_bytes(share: ModelConfig, tokens: int, tiled: bool) -> int:
    """One layer's backward pass, as it enters the mlp, with what attention's will need.

    The mlp's gate, up and product, two of their gradients; three arrays of the width (the layer's input, a norm's
    output, the gradient); and of attention's operands and output what remat computes again.
    """
    itemsize = jnp.dtype(share.compute_dtype).itemsize
    padded = tiled and share.attention in _LANE_PADDED
    head = (-(-share.head_dim // LANES) * LANES if padded else share.head_dim) * itemsize
    kept_output = share.remat == "none" or (share.remat == "dots" and share.attention not in _UNNAMED)
    heads = (0 if share.remat == "none" else share.heads + 2 * share.kv_heads) + (0 if kept_output else share.heads)
    return tokens * (itemsize * (5 * share.mlp_width + 3 * share.width) + heads * head)


def _layer_weight_bytes(share: ModelConfig) -> int:
    """One layer's matrices in the compute dtype, whole along `fsdp`."""
    query, kv = share.heads * share.head_dim, share.kv_heads * share.head_dim
    matrices = share.width * (2 * query + 2 * kv + 3 * share.mlp_width)
    return matrices * jnp.dtype(share.compute_dtype).itemsize
