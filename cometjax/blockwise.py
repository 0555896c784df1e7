"""Packed attention in plain XLA that looks only at the blocks that a segment reaches: the CPU's default.

One loop over the (row, query block, key block) triples that share a segment. Their number depends on the packing, so it
is the loop's dynamic bound; shapes stay static. The softmax is summed up block by block (arXiv 2205.14135), in float32;
the backward pass computes the scores again from the saved log-sum-exp, so nothing of size L x L is ever held.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, Q = L * G queries of a key/value
head, C head dim, I query blocks, J key blocks, P pairs of blocks; T queries and S keys of one block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from cometjax.products import transposed
from cometjax.segment_blocks import RESIDUAL_NAME, on_each_device, pad_rows, shared_blocks

# Positions in a block. Two busy CPU cores, forward and backward, one row of 8,192 with 4 heads of 64 and segments of
# 1,280 on average: 480 ms (256: 534 ms; 512: 1,154 ms; reference: 3,880 ms); 8 rows of 512, unpacked: 100 ms (256:
# 101 ms; 512: 194 ms; reference: 177 ms).
BLOCK = 128
# Added to the scores of pairs that may not attend; finite, so that nothing becomes NaN, and below _NO_SCORE_YET, so
# that exp(masked - highest score so far) is zero even for a query that has met no key of its own yet.
_MASKED_SCORE = -1e30
_NO_SCORE_YET = -1e20


def blockwise_attention(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, *, block: int = BLOCK
) -> jax.Array:
    """As `cometjax.attention.attention`, for any arrangement of segments; those in one piece each are fast."""
    attend = functools.partial(_attend_rows, block=block)
    return on_each_device(attend, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def _attend_rows(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, *, block: int
) -> jax.Array:
    length, kv_heads = q_BxLxHxC.shape[1], k_BxLxKxC.shape[2]
    rows = pad_rows((q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL), block)
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL = rows
    batch, padded, heads, head_dim = q_BxLxHxC.shape
    # A position's G query heads of one key head stay side by side: with one key head nothing is moved.
    scaled_BxLxKxGxC = (q_BxLxHxC * head_dim**-0.5).reshape(batch, padded, kv_heads, heads // kv_heads, head_dim)
    out_BxKxQxC = _attend(
        scaled_BxLxKxGxC.swapaxes(1, 2).reshape(batch, kv_heads, -1, head_dim),
        k_BxLxKxC.swapaxes(1, 2),
        v_BxLxKxC.swapaxes(1, 2),
        segment_ids_BxL,
        block,
    )
    out_BxLxKxGxC = out_BxKxQxC.reshape(batch, kv_heads, padded, -1, head_dim).swapaxes(1, 2)
    return out_BxLxKxGxC.reshape(q_BxLxHxC.shape)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_BxKxQxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> jax.Array:
    return _forward(q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, block)[0]


def _forward(
    q_BxKxQxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    pairs_Px3, count = _pairs(segment_ids_BxL, block)
    group = q_BxKxQxC.shape[2] // k_BxKxLxC.shape[2]
    queries, ids_BxQ = block * group, jnp.repeat(segment_ids_BxL, group, axis=1)

    def add_pair(index: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        row, i, j = pairs_Px3[index]
        q, *sums = (_take(x, row, i, queries, 2) for x in (q_BxKxQxC, *so_far))
        k, v = (_take(x, row, j, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
        allowed_TxS = _allowed(ids_BxQ, segment_ids_BxL, row, i, j, block)
        updated = _add_keys(q, k, v, tuple(sums), allowed_TxS)
        return tuple(_put(x, part, row, i, queries, 2) for x, part in zip(so_far, updated, strict=True))

    zeros_BxKxQ = jnp.zeros(q_BxKxQxC.shape[:-1], jnp.float32)
    start = (jnp.zeros(q_BxKxQxC.shape, jnp.float32), zeros_BxKxQ + _NO_SCORE_YET, zeros_BxKxQ)
    weighted_BxKxQxC, highest_BxKxQ, total_BxKxQ = jax.lax.fori_loop(0, count, add_pair, start)
    total_BxKxQ = jnp.where(total_BxKxQ > 0, total_BxKxQ, 1.0)  # 0 for padding alone
    out_BxKxQxC = (weighted_BxKxQxC / total_BxKxQ[..., None]).astype(q_BxKxQxC.dtype)
    out_BxKxQxC = checkpoint_name(out_BxKxQxC, RESIDUAL_NAME)
    logsumexp_BxKxQ = checkpoint_name(highest_BxKxQ + jnp.log(total_BxKxQ), RESIDUAL_NAME)
    kept = (q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, pairs_Px3, count, out_BxKxQxC, logsumexp_BxKxQ)
    return out_BxKxQxC, kept


def _backward(
    block: int, kept: tuple[Any, ...], d_out_BxKxQxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, pairs_Px3, count, out_BxKxQxC, logsumexp_BxKxQ = kept
    group = q_BxKxQxC.shape[2] // k_BxKxLxC.shape[2]
    queries, ids_BxQ = block * group, jnp.repeat(segment_ids_BxL, group, axis=1)
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this. As
    # einsum: multiplied and summed, it took XLA's CPU backend ten times as long.
    mean_BxKxQ = jnp.einsum("bkqc,bkqc->bkq", d_out_BxKxQxC.astype(jnp.float32), out_BxKxQxC.astype(jnp.float32))

    def add_pair(index: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        row, i, j = pairs_Px3[index]
        of_queries = (q_BxKxQxC, d_out_BxKxQxC, logsumexp_BxKxQ, mean_BxKxQ)
        q, d_out, logsumexp_KxT, mean_KxT = (_take(x, row, i, queries, 2) for x in of_queries)
        k, v = (_take(x, row, j, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
        allowed_SxT = _allowed(ids_BxQ, segment_ids_BxL, row, i, j, block, keys_first=True)
        q_part, k_part, v_part = _gradients_of_pair(q, k, v, d_out, logsumexp_KxT, mean_KxT, allowed_SxT)
        d_q, d_k, d_v = gradients
        return (
            _add(d_q, q_part, row, i, queries, 2),
            _add(d_k, k_part, row, j, block, 2),
            _add(d_v, v_part, row, j, block, 2),
        )

    inputs = (q_BxKxQxC, k_BxKxLxC, v_BxKxLxC)
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in inputs)
    d_q, d_k, d_v = jax.lax.fori_loop(0, count, add_pair, zeros)
    return d_q.astype(q_BxKxQxC.dtype), d_k.astype(k_BxKxLxC.dtype), d_v.astype(v_BxKxLxC.dtype), None


_attend.defvjp(_forward, _backward)


def _pairs(segment_ids_BxL: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(row, query block, key block) of every pair to compute, packed to the front of [P, 3], and how many they are."""
    shared_BxIxJ = shared_blocks(segment_ids_BxL, block)
    rows, blocks, _ = shared_BxIxJ.shape
    at = jnp.nonzero(shared_BxIxJ, size=rows * blocks * (blocks + 1) // 2, fill_value=0)
    return jnp.stack(at, axis=-1).astype(jnp.int32), jnp.sum(shared_BxIxJ, dtype=jnp.int32)


def _add_keys(
    q_KxTxC: jax.Array, k_KxSxC: jax.Array, v_KxSxC: jax.Array, so_far: tuple[jax.Array, ...], allowed_TxS: jax.Array
) -> tuple[jax.Array, ...]:
    """A softmax's sums over keys (weighted values, highest score, total weight), with one block of keys more."""
    weighted_KxTxC, highest_KxT, total_KxT = so_far
    scores_KxTxS = _einsum("ktc,ksc->kts", q_KxTxC, k_KxSxC) + jnp.where(allowed_TxS, 0.0, _MASKED_SCORE)
    new_highest_KxT = jnp.maximum(highest_KxT, jnp.max(scores_KxTxS, axis=-1))
    weights_KxTxS = jnp.exp(scores_KxTxS - new_highest_KxT[..., None])
    shrink_KxT = jnp.exp(highest_KxT - new_highest_KxT)
    values_KxTxC = _einsum("kts,ksc->ktc", weights_KxTxS.astype(v_KxSxC.dtype), v_KxSxC)
    return (
        weighted_KxTxC * shrink_KxT[..., None] + values_KxTxC,
        new_highest_KxT,
        total_KxT * shrink_KxT + jnp.sum(weights_KxTxS, axis=-1),
    )


def _gradients_of_pair(
    q_KxTxC: jax.Array,
    k_KxSxC: jax.Array,
    v_KxSxC: jax.Array,
    d_out_KxTxC: jax.Array,
    logsumexp_KxT: jax.Array,
    mean_KxT: jax.Array,
    allowed_SxT: jax.Array,
) -> tuple[jax.Array, ...]:
    """What one pair of blocks adds to the gradients by q, k and v. Scores are held with their keys first: only one of
    the three products then needs a transposed copy of them."""
    dtype = q_KxTxC.dtype
    scores_KxSxT = _einsum("ksc,ktc->kst", k_KxSxC, q_KxTxC) + jnp.where(allowed_SxT, 0.0, _MASKED_SCORE)
    weights_KxSxT = jnp.exp(scores_KxSxT - logsumexp_KxT[:, None])
    d_weights_KxSxT = _einsum("ksc,ktc->kst", v_KxSxC, d_out_KxTxC)
    d_scores_KxSxT = (weights_KxSxT * (d_weights_KxSxT - mean_KxT[:, None])).astype(dtype)
    return (
        _einsum("kts,ksc->ktc", jax.vmap(transposed)(d_scores_KxSxT), k_KxSxC),
        _einsum("kst,ktc->ksc", d_scores_KxSxT, q_KxTxC),
        _einsum("kst,ktc->ksc", weights_KxSxT.astype(dtype), d_out_KxTxC),
    )


def _allowed(
    ids_BxQ: jax.Array, ids_BxL: jax.Array, row: Any, i: Any, j: Any, block: int, *, keys_first: bool = False
) -> jax.Array:
    """allowed_TxS: which queries of block i may attend to which keys of block j; or allowed_SxT.

    The queries' ids come repeated: in the loop an index divided by the group's size would keep the masks, and the
    exponentials that they are fused with, from vector instructions.
    """
    group = ids_BxQ.shape[1] // ids_BxL.shape[1]
    of_queries = _take(ids_BxQ, row, i, block * group, 1), i * block + np.arange(block * group) // group
    of_keys = _take(ids_BxL, row, j, block, 1), j * block + np.arange(block)
    (ids_T, at_T), (ids_S, at_S) = (
        [jnp.expand_dims(x, axis) for x in of]
        for of, axis in ((of_queries, 0 if keys_first else 1), (of_keys, 1 if keys_first else 0))
    )
    return (ids_T == ids_S) & (ids_T != 0) & (at_T >= at_S)


def _einsum(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _take(x: jax.Array, row: jax.Array, index: jax.Array, block: int, axis: int) -> jax.Array:
    """Block `index` along `axis` of one batch row of `x`."""
    starts, sizes = _block_of(x, row, index, block, axis)
    return jax.lax.dynamic_slice(x, starts, sizes)[0]


def _put(x: jax.Array, part: jax.Array, row: jax.Array, index: jax.Array, block: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice(x, part[None], _block_of(x, row, index, block, axis)[0])


def _add(x: jax.Array, part: jax.Array, row: jax.Array, index: jax.Array, block: int, axis: int) -> jax.Array:
    return _put(x, _take(x, row, index, block, axis) + part, row, index, block, axis)


def _block_of(x: jax.Array, row: jax.Array, index: jax.Array, block: int, axis: int) -> tuple[list[Any], list[int]]:
    starts, sizes = [row, *[0] * (x.ndim - 1)], [1, *x.shape[1:]]
    starts[axis], sizes[axis] = index * block, block
    return starts, sizes
