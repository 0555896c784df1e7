"""Packed attention in plain XLA that looks only at the blocks that a segment reaches: the CPU's default.

One loop over the (row, query block, key block) triples that share a segment. Their number depends on the packing, so it
is the loop's dynamic bound; shapes stay static. The softmax is summed up block by block (arXiv 2205.14135), in float32;
the backward pass computes the scores again from the saved log-sum-exp, so nothing of size L x L is ever held.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, C head dim, I query blocks,
J key blocks, P pairs of blocks; T queries and S keys of one block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

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
    scaled_BxLxKxGxC = (q_BxLxHxC * head_dim**-0.5).reshape(batch, padded, kv_heads, heads // kv_heads, head_dim)
    out_BxKxGxLxC = _attend(
        scaled_BxLxKxGxC.transpose(0, 2, 3, 1, 4),
        k_BxLxKxC.swapaxes(1, 2),
        v_BxLxKxC.swapaxes(1, 2),
        segment_ids_BxL,
        block,
    )
    return out_BxKxGxLxC.transpose(0, 3, 1, 2, 4).reshape(q_BxLxHxC.shape)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_BxKxGxLxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> jax.Array:
    return _forward(q_BxKxGxLxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, block)[0]


def _forward(
    q_BxKxGxLxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    pairs_Px3, count = _pairs(segment_ids_BxL, block)

    def add_pair(index: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        row, i, j = pairs_Px3[index]
        q, *sums = (_take(x, row, i, block, 3) for x in (q_BxKxGxLxC, *so_far))
        k, v = (_take(x, row, j, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
        allowed_TxS = _allowed(segment_ids_BxL, row, i, j, block)
        updated = _add_keys(q, k, v, tuple(sums), allowed_TxS)
        return tuple(_put(x, part, row, i, block, 3) for x, part in zip(so_far, updated, strict=True))

    zeros_BxKxGxL = jnp.zeros(q_BxKxGxLxC.shape[:-1], jnp.float32)
    start = (jnp.zeros(q_BxKxGxLxC.shape, jnp.float32), zeros_BxKxGxL + _NO_SCORE_YET, zeros_BxKxGxL)
    weighted_BxKxGxLxC, highest_BxKxGxL, total_BxKxGxL = jax.lax.fori_loop(0, count, add_pair, start)
    total_BxKxGxL = jnp.where(total_BxKxGxL > 0, total_BxKxGxL, 1.0)  # 0 for padding alone
    out_BxKxGxLxC = (weighted_BxKxGxLxC / total_BxKxGxL[..., None]).astype(q_BxKxGxLxC.dtype)
    out_BxKxGxLxC = checkpoint_name(out_BxKxGxLxC, RESIDUAL_NAME)
    logsumexp_BxKxGxL = checkpoint_name(highest_BxKxGxL + jnp.log(total_BxKxGxL), RESIDUAL_NAME)
    kept = (q_BxKxGxLxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, pairs_Px3, count, out_BxKxGxLxC, logsumexp_BxKxGxL)
    return out_BxKxGxLxC, kept


def _backward(
    block: int, kept: tuple[Any, ...], d_out_BxKxGxLxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BxKxGxLxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, pairs_Px3, count, out_BxKxGxLxC, logsumexp_BxKxGxL = kept
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this:
    mean_BxKxGxL = jnp.sum(d_out_BxKxGxLxC.astype(jnp.float32) * out_BxKxGxLxC.astype(jnp.float32), axis=-1)

    def add_pair(index: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        row, i, j = pairs_Px3[index]
        of_queries = (q_BxKxGxLxC, d_out_BxKxGxLxC, logsumexp_BxKxGxL, mean_BxKxGxL)
        q, d_out, logsumexp_KxGxT, mean_KxGxT = (_take(x, row, i, block, 3) for x in of_queries)
        k, v = (_take(x, row, j, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
        allowed_TxS = _allowed(segment_ids_BxL, row, i, j, block)
        q_part, k_part, v_part = _gradients_of_pair(q, k, v, d_out, logsumexp_KxGxT, mean_KxGxT, allowed_TxS)
        d_q, d_k, d_v = gradients
        return (
            _add(d_q, q_part, row, i, block, 3),
            _add(d_k, k_part, row, j, block, 2),
            _add(d_v, v_part, row, j, block, 2),
        )

    inputs = (q_BxKxGxLxC, k_BxKxLxC, v_BxKxLxC)
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in inputs)
    d_q, d_k, d_v = jax.lax.fori_loop(0, count, add_pair, zeros)
    return d_q.astype(q_BxKxGxLxC.dtype), d_k.astype(k_BxKxLxC.dtype), d_v.astype(v_BxKxLxC.dtype), None


_attend.defvjp(_forward, _backward)


def _pairs(segment_ids_BxL: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(row, query block, key block) of every pair to compute, packed to the front of [P, 3], and how many they are."""
    shared_BxIxJ = shared_blocks(segment_ids_BxL, block)
    rows, blocks, _ = shared_BxIxJ.shape
    at = jnp.nonzero(shared_BxIxJ, size=rows * blocks * (blocks + 1) // 2, fill_value=0)
    return jnp.stack(at, axis=-1).astype(jnp.int32), jnp.sum(shared_BxIxJ, dtype=jnp.int32)


def _add_keys(
    q_KxGxTxC: jax.Array,
    k_KxSxC: jax.Array,
    v_KxSxC: jax.Array,
    so_far: tuple[jax.Array, ...],
    allowed_TxS: jax.Array,
) -> tuple[jax.Array, ...]:
    """A softmax's sums over keys (weighted values, highest score, total weight), with one block of keys more."""
    weighted_KxGxTxC, highest_KxGxT, total_KxGxT = so_far
    scores_KxGxTxS = _einsum("kgtc,ksc->kgts", q_KxGxTxC, k_KxSxC) + jnp.where(allowed_TxS, 0.0, _MASKED_SCORE)
    new_highest_KxGxT = jnp.maximum(highest_KxGxT, jnp.max(scores_KxGxTxS, axis=-1))
    weights_KxGxTxS = jnp.exp(scores_KxGxTxS - new_highest_KxGxT[..., None])
    shrink_KxGxT = jnp.exp(highest_KxGxT - new_highest_KxGxT)
    values_KxGxTxC = _einsum("kgts,ksc->kgtc", weights_KxGxTxS.astype(v_KxSxC.dtype), v_KxSxC)
    return (
        weighted_KxGxTxC * shrink_KxGxT[..., None] + values_KxGxTxC,
        new_highest_KxGxT,
        total_KxGxT * shrink_KxGxT + jnp.sum(weights_KxGxTxS, axis=-1),
    )


def _gradients_of_pair(
    q_KxGxTxC: jax.Array,
    k_KxSxC: jax.Array,
    v_KxSxC: jax.Array,
    d_out_KxGxTxC: jax.Array,
    logsumexp_KxGxT: jax.Array,
    mean_KxGxT: jax.Array,
    allowed_TxS: jax.Array,
) -> tuple[jax.Array, ...]:
    """What one pair of blocks adds to the gradients by q, k and v. Scores are held with their keys first: two of the
    three products then need no transposed copy of them."""
    dtype = q_KxGxTxC.dtype
    masked_Sx1xT = jnp.where(allowed_TxS.T, 0.0, _MASKED_SCORE)[:, None]
    scores_KxSxGxT = _einsum("ksc,kgtc->ksgt", k_KxSxC, q_KxGxTxC) + masked_Sx1xT
    weights_KxSxGxT = jnp.exp(scores_KxSxGxT - logsumexp_KxGxT[:, None])
    d_weights_KxSxGxT = _einsum("ksc,kgtc->ksgt", v_KxSxC, d_out_KxGxTxC)
    d_scores_KxSxGxT = (weights_KxSxGxT * (d_weights_KxSxGxT - mean_KxGxT[:, None])).astype(dtype)
    return (
        _einsum("ksgt,ksc->kgtc", d_scores_KxSxGxT, k_KxSxC),
        _einsum("ksgt,kgtc->ksc", d_scores_KxSxGxT, q_KxGxTxC),
        _einsum("ksgt,kgtc->ksc", weights_KxSxGxT.astype(dtype), d_out_KxGxTxC),
    )


def _allowed(segment_ids_BxL: jax.Array, row: Any, i: Any, j: Any, block: int) -> jax.Array:
    """allowed_TxS: which queries of block i may attend to which keys of block j."""
    ids_T, ids_S = (_take(segment_ids_BxL, row, index, block, 1) for index in (i, j))
    at_T = np.arange(block)
    causal_TxS = i * block + at_T[:, None] >= j * block + at_T
    return (ids_T[:, None] == ids_S) & (ids_T != 0)[:, None] & causal_TxS


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
