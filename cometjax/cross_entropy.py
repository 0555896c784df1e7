"""Cross-entropy from hidden states, without logits of a whole batch: a chunk of positions at a time.

With a large vocabulary the float32 logits of a batch are its largest array (64 rows of 8,192 over 7,105 tokens: 15 GB),
and they are read and written several times. Here a chunk's logits are made, turned into its losses and, when there is a
gradient to take, into its part of both gradients at once, and forgotten: nothing of it is computed again in the
backward pass, which only scales what the forward pass has made.

Dimensions: B batch rows, L row length, D embed, V vocabulary; N positions of a device, T positions of a chunk.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cometjax.products import summed_over_rows
from cometjax.sharding import AXES, traced_platform

# Bytes of a chunk's float32 logits: on CPU a quarter of the last cache, on accelerators enough for large products.
CHUNK_BYTES = {"cpu": 8 * 2**20, "accelerator": 256 * 2**20}


def weighted_nats(
    x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum over tokens of weight * nats, nats_BxL), float32, for hidden states and the matrix that scores them.

    The sum has gradients by `x_BxLxD` and `head_VxD`; nats_BxL is for metrics and has none. Under a mesh each device
    computes its rows, and of them its share along `tensor`, over the whole vocabulary; the head's gradient is summed
    over the devices once.
    """
    return _weighted_nats(x_BxLxD, head_VxD, targets_BxL, weights_BxL)


@jax.custom_vjp
def _weighted_nats(
    x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    total, nats_BxL, _ = _on_each_device(x_BxLxD, head_VxD, targets_BxL, weights_BxL, gradient=False)
    return total, nats_BxL


def _forward(
    x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    total, nats_BxL, gradients = _on_each_device(x_BxLxD, head_VxD, targets_BxL, weights_BxL, gradient=True)
    return (total, nats_BxL), gradients


def _backward(gradients: tuple[jax.Array, jax.Array], d_out: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    d_x_BxLxD, d_head_VxD = gradients
    scale, _ = d_out
    return (d_x_BxLxD * scale).astype(d_x_BxLxD.dtype), d_head_VxD * scale.astype(d_head_VxD.dtype), None, None


_weighted_nats.defvjp(_forward, _backward)


def _on_each_device(
    x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array, gradient: bool
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None]:
    of_share = functools.partial(_nats_of_share, gradient=gradient)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not set(AXES) <= set(mesh.axis_names):
        return of_share(x_BxLxD, head_VxD, targets_BxL, weights_BxL)
    rows, length = targets_BxL.shape
    row_axes = ("data", "fsdp") if rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else ()
    length_axes = ("tensor",) if length % mesh.shape["tensor"] == 0 else ()
    split_axes = (*row_axes, *length_axes)
    by_token, by_feature = P(row_axes or None, length_axes or None), P(row_axes or None, length_axes or None, None)

    def summed(*arrays: jax.Array) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None]:
        total, nats_BxL, gradients = of_share(*arrays)
        if gradients is not None:
            gradients = (gradients[0], jax.lax.psum(gradients[1], split_axes))
        return jax.lax.psum(total, split_axes), nats_BxL, gradients

    return jax.shard_map(
        summed,
        in_specs=(by_feature, P(None, None), by_token, by_token),
        out_specs=(P(), by_token, (by_feature, P(None, None)) if gradient else None),
        check_vma=False,
    )(x_BxLxD, head_VxD, targets_BxL, weights_BxL)


def _nats_of_share(
    x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array, *, gradient: bool
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None]:
    positions, vocabulary = targets_BxL.size, head_VxD.shape[0]
    platform = "cpu" if traced_platform() == "cpu" else "accelerator"
    chunks = _chunks(positions, 4 * vocabulary, CHUNK_BYTES[platform])
    padding = -positions % chunks

    def chunked(array: jax.Array) -> jax.Array:
        flat = array.reshape(positions, *array.shape[2:])
        padded = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1)) if padding else flat
        return padded.reshape(chunks, -(-positions // chunks), *flat.shape[1:])

    def whole(chunks_of_array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return chunks_of_array.reshape(-1, *shape[2:])[:positions].reshape(shape)

    # The head's gradient is summed transposed: the product is a third faster on CPU, where its wide side comes last.
    def add_chunk(d_head_DxV: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, tuple[jax.Array, Any]]:
        x_TxD, targets_T, weights_T = chunk
        logits_TxV = jnp.einsum("td,vd->tv", x_TxD, head_VxD, preferred_element_type=jnp.float32)
        highest_Tx1 = jnp.max(logits_TxV, axis=-1, keepdims=True)
        powers_TxV = jnp.exp(logits_TxV - highest_Tx1)
        total_Tx1 = jnp.sum(powers_TxV, axis=-1, keepdims=True)
        chosen_T = jnp.take_along_axis(logits_TxV, targets_T[:, None], axis=-1)[:, 0]
        nats_T = (highest_Tx1 + jnp.log(total_Tx1))[:, 0] - chosen_T
        if not gradient:
            return d_head_DxV, (nats_T, None)
        is_target_TxV = targets_T[:, None] == jnp.arange(vocabulary)
        weights_Tx1 = weights_T[:, None]
        d_logits_TxV = powers_TxV * (weights_Tx1 / total_Tx1) - jnp.where(is_target_TxV, weights_Tx1, 0.0)
        d_logits_TxV = d_logits_TxV.astype(x_TxD.dtype)
        d_x_TxD = jnp.einsum("tv,vd->td", d_logits_TxV, head_VxD, preferred_element_type=jnp.float32)
        d_head_DxV += summed_over_rows(x_TxD, d_logits_TxV)
        return d_head_DxV, (nats_T, d_x_TxD.astype(x_TxD.dtype))

    start: Any = jnp.zeros(head_VxD.shape[::-1], jnp.float32) if gradient else None
    # Padding has no weight: it adds nothing to the gradients.
    by_chunk = tuple(chunked(array) for array in (x_BxLxD, targets_BxL, weights_BxL))
    d_head_DxV, (nats, d_x) = jax.lax.scan(add_chunk, start, by_chunk)
    nats_BxL = whole(nats, targets_BxL.shape)
    total = jnp.sum(nats_BxL * weights_BxL)
    return total, nats_BxL, (whole(d_x, x_BxLxD.shape), d_head_DxV.T.astype(head_VxD.dtype)) if gradient else None


def _chunks(positions: int, position_bytes: int, chunk_bytes: int) -> int:
    """The fewest chunks that fit `chunk_bytes`, or one position each; up to twice as many, if those need no padding."""
    fewest = math.ceil(positions / max(1, chunk_bytes // position_bytes))
    return next((n for n in range(fewest, 2 * fewest) if positions % n == 0), fewest)
