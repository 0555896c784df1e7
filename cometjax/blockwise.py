"""Packed attention in plain XLA that looks only at the keys that a segment reaches: the CPU's default.

A row is walked in tiles of queries, and a tile's keys in blocks from where its first segment begins: loops with dynamic
bounds, which depend on the packing; shapes stay static. The softmax is summed up block by block (arXiv 2205.14135), in
float32; the backward pass computes the scores again from the saved log-sum-exp, so nothing of size L x L is ever held.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, Q = L * G queries of a key/value
head, C head dim; T queries of a tile and S keys of a block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from cometjax.attention_shards import RESIDUAL_NAME, on_each_device
from cometjax.products import transposed

# Positions in a block. Two busy CPU cores, forward and backward, one row of 8,192 with 4 heads of 64 and segments of
# 1,280 on average: 480 ms (256: 534 ms; 512: 1,154 ms; reference: 3,880 ms); 8 rows of 512, unpacked: 100 ms (256:
# 101 ms; 512: 194 ms; reference: 177 ms).
BLOCK = 128
# Added to the scores of pairs that may not attend; finite, so that nothing becomes NaN, and below _NO_SCORE_YET, so
# that exp(masked - highest score so far) is zero even for a query that has met no key of its own yet.
_MASKED_SCORE = -1e30
_NO_SCORE_YET = -1e20

_Sums = tuple[jax.Array, ...]


def blockwise_attention(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, *, block: int = BLOCK
) -> jax.Array:
    """As `cometjax.attention.attention`, for any arrangement of segments; those whose ids rise along a row are fast."""
    attend = functools.partial(_attend_rows, block=min(block, q_BxLxHxC.shape[1]))
    return on_each_device(attend, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def _attend_rows(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, *, block: int
) -> jax.Array:
    batch, length, heads, head_dim = q_BxLxHxC.shape
    kv_heads = k_BxLxKxC.shape[2]
    # A position's G query heads of one key head stay side by side: with one key head nothing is moved.
    scaled_BxLxKxGxC = (q_BxLxHxC * head_dim**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    out_BxKxQxC = _attend(
        scaled_BxLxKxGxC.swapaxes(1, 2).reshape(batch, kv_heads, -1, head_dim),
        k_BxLxKxC.swapaxes(1, 2),
        v_BxLxKxC.swapaxes(1, 2),
        segment_ids_BxL,
        block,
    )
    return out_BxKxQxC.reshape(batch, kv_heads, length, -1, head_dim).swapaxes(1, 2).reshape(q_BxLxHxC.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_BxKxQxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> jax.Array:
    return _forward(q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, block)[0]


def _forward(
    q_BxKxQxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, segment_ids_BxL: jax.Array, block: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    _, kv_heads, queries, head_dim = q_BxKxQxC.shape
    group = queries // k_BxKxLxC.shape[2]
    size = block * group

    def add_tile(tile: _Tile, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        q_KxTxC = _take(q_BxKxQxC, tile.row, tile.low * group, size, 2)
        of_queries = _queries(segment_ids_BxL, tile, block, group)

        def add_keys(low: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            k_KxSxC, v_KxSxC = (_take(x, tile.row, low, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
            allowed_TxS = _allowed(of_queries, _keys(segment_ids_BxL, tile.row, low, block))
            return _add_keys(q_KxTxC, k_KxSxC, v_KxSxC, sums, allowed_TxS)

        zeros_KxT = jnp.zeros((kv_heads, size), jnp.float32)
        start = (jnp.zeros((kv_heads, size, head_dim), jnp.float32), zeros_KxT + _NO_SCORE_YET, zeros_KxT)
        weighted_KxTxC, highest_KxT, total_KxT = _over_keys(tile, block, add_keys, start)
        # No weight: padding, and queries of other tiles, for which this one adds zeros.
        seen_KxT = total_KxT > 0
        total_KxT = jnp.where(seen_KxT, total_KxT, 1.0)
        logsumexp_KxT = jnp.where(seen_KxT, highest_KxT + jnp.log(total_KxT), 0.0)
        parts = (weighted_KxTxC / total_KxT[..., None], logsumexp_KxT)
        return tuple(_add(x, part, tile.row, tile.low * group, 2) for x, part in zip(so_far, parts, strict=True))

    zeros = (jnp.zeros(q_BxKxQxC.shape, jnp.float32), jnp.zeros(q_BxKxQxC.shape[:-1], jnp.float32))
    out_BxKxQxC, logsumexp_BxKxQ = _over_tiles(segment_ids_BxL, block, add_tile, zeros)
    out_BxKxQxC = checkpoint_name(out_BxKxQxC.astype(q_BxKxQxC.dtype), RESIDUAL_NAME)
    logsumexp_BxKxQ = checkpoint_name(logsumexp_BxKxQ, RESIDUAL_NAME)
    return out_BxKxQxC, (q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, out_BxKxQxC, logsumexp_BxKxQ)


def _backward(
    block: int, kept: tuple[Any, ...], d_out_BxKxQxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BxKxQxC, k_BxKxLxC, v_BxKxLxC, segment_ids_BxL, out_BxKxQxC, logsumexp_BxKxQ = kept
    group = q_BxKxQxC.shape[2] // k_BxKxLxC.shape[2]
    size = block * group
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this. As
    # einsum: multiplied and summed, it took XLA's CPU backend ten times as long.
    mean_BxKxQ = jnp.einsum("bkqc,bkqc->bkq", d_out_BxKxQxC.astype(jnp.float32), out_BxKxQxC.astype(jnp.float32))

    def add_tile(tile: _Tile, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        arrays = (q_BxKxQxC, d_out_BxKxQxC, logsumexp_BxKxQ, mean_BxKxQ)
        q_KxTxC, d_out_KxTxC, logsumexp_KxT, mean_KxT = (_take(x, tile.row, tile.low * group, size, 2) for x in arrays)
        of_queries = _queries(segment_ids_BxL, tile, block, group)

        def add_keys(low: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            k_KxSxC, v_KxSxC = (_take(x, tile.row, low, block, 2) for x in (k_BxKxLxC, v_BxKxLxC))
            allowed_SxT = _allowed(of_queries, _keys(segment_ids_BxL, tile.row, low, block), keys_first=True)
            q_part, k_part, v_part = _gradients_of_pair(
                q_KxTxC, k_KxSxC, v_KxSxC, d_out_KxTxC, logsumexp_KxT, mean_KxT, allowed_SxT
            )
            d_q_KxTxC, d_k, d_v = so_far
            return d_q_KxTxC + q_part, _add(d_k, k_part, tile.row, low, 2), _add(d_v, v_part, tile.row, low, 2)

        d_q, d_k, d_v = gradients
        d_q_KxTxC, d_k, d_v = _over_keys(tile, block, add_keys, (jnp.zeros(q_KxTxC.shape, jnp.float32), d_k, d_v))
        return _add(d_q, d_q_KxTxC, tile.row, tile.low * group, 2), d_k, d_v

    inputs = (q_BxKxQxC, k_BxKxLxC, v_BxKxLxC)
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in inputs)
    d_q, d_k, d_v = _over_tiles(segment_ids_BxL, block, add_tile, zeros)
    return d_q.astype(q_BxKxQxC.dtype), d_k.astype(k_BxKxLxC.dtype), d_v.astype(v_BxKxLxC.dtype), None


_attend.defvjp(_forward, _backward)


class _Tile(NamedTuple):
    """Queries [low, high) of a batch row, whose keys begin at `first`; scalars."""

    row: jax.Array
    low: jax.Array
    high: jax.Array
    first: jax.Array


def _over_tiles(segment_ids_BxL: jax.Array, block: int, do: Callable[[_Tile, _Sums], _Sums], start: _Sums) -> _Sums:
    """`do` for tiles of at most `block` queries, which hold each position up to the row's last segment's end once.

    A segment that does not fit into what is left of a tile begins the next. So a long one's tiles, and its keys, begin
    where it begins: no pair of blocks is computed for the ends of two segments that share a block.
    """
    length = segment_ids_BxL.shape[1]
    positions_L = np.arange(length)
    first_BxL = _first_keys(segment_ids_BxL)
    ends_B = jnp.max(jnp.where(segment_ids_BxL != 0, positions_L + 1, 0), axis=1)

    def do_tile(row: jax.Array, low: jax.Array, so_far: _Sums) -> tuple[jax.Array, _Sums]:
        cut = low + block
        segment = first_BxL[row, jnp.minimum(cut, length - 1)]  # where that which the cut divides begins
        high = jnp.where(cut < ends_B[row], jnp.where(segment > low, segment, cut), ends_B[row])
        at_T = jnp.minimum(low, length - block) + np.arange(block)
        firsts_T = _take(first_BxL, row, low, block, 1)
        first = jnp.min(jnp.where((at_T >= low) & (at_T < high), firsts_T, length))
        return high, do(_Tile(row, low, high, first), so_far)

    def do_row(row: jax.Array, so_far: _Sums) -> _Sums:
        tile = lambda low_and_sums: do_tile(row, *low_and_sums)  # noqa: E731
        return jax.lax.while_loop(lambda low_and_sums: low_and_sums[0] < ends_B[row], tile, (jnp.int32(0), so_far))[1]

    return jax.lax.fori_loop(0, segment_ids_BxL.shape[0], do_row, start)


def _over_keys(tile: _Tile, block: int, do: Callable[[jax.Array, _Sums], _Sums], start: _Sums) -> _Sums:
    """`do` for each block of a tile's keys, given where the block begins."""
    blocks = (tile.high - tile.first + block - 1) // block
    return jax.lax.fori_loop(0, blocks, lambda i, so_far: do(tile.first + i * block, so_far), start)


def _first_keys(segment_ids_BxL: jax.Array) -> jax.Array:
    """first_BxL: no position before it has the same id. Padding (id 0) is its own.

    Exact where ids rise along a row, as the loader packs them; 0 for an id below one that came before it.
    """
    positions_L = jnp.arange(segment_ids_BxL.shape[1], dtype=jnp.int32)
    highest_BxL = jax.lax.cummax(segment_ids_BxL, axis=1)
    rises_BxL = jnp.diff(highest_BxL, axis=1, prepend=0) > 0
    start_BxL = jax.lax.cummax(jnp.where(rises_BxL, positions_L, 0), axis=1)
    first_BxL = jnp.where(segment_ids_BxL == highest_BxL, start_BxL, 0)
    return jnp.where(segment_ids_BxL == 0, positions_L, first_BxL)


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


def _queries(segment_ids_BxL: jax.Array, tile: _Tile, block: int, group: int) -> tuple[jax.Array, jax.Array]:
    """(ids_T, positions_T) of a tile's queries; 0 is the id of those that are not its own.

    A position's `group` queries repeat it here, once a tile: in the loop over keys an index divided by the group's size
    would keep the masks, and the exponentials that they are fused with, from vector instructions.
    """
    at = jnp.minimum(tile.low, segment_ids_BxL.shape[1] - block) + np.arange(block)
    ids = _take(segment_ids_BxL, tile.row, tile.low, block, 1)
    ids = jnp.where((at >= tile.low) & (at < tile.high), ids, 0)
    return jnp.repeat(ids, group), jnp.repeat(at, group)


def _keys(segment_ids_BxL: jax.Array, row: jax.Array, low: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """(ids_S, positions_S) of the keys of the block at `low`; the id of padding, and of keys before it, is -1."""
    # A block that would pass the row's end is taken from further ahead, as dynamic_slice has it.
    at_S = jnp.minimum(low, segment_ids_BxL.shape[1] - block) + np.arange(block)
    ids_S = _take(segment_ids_BxL, row, low, block, 1)
    return jnp.where((at_S >= low) & (ids_S != 0), ids_S, -1), at_S


def _allowed(
    of_queries: tuple[jax.Array, jax.Array], of_keys: tuple[jax.Array, jax.Array], *, keys_first: bool = False
) -> jax.Array:
    """allowed_TxS: which queries may attend to which keys; or allowed_SxT."""
    ids_T, at_T = (jnp.expand_dims(x, 0 if keys_first else 1) for x in of_queries)
    ids_S, at_S = (jnp.expand_dims(x, 1 if keys_first else 0) for x in of_keys)
    return (ids_T == ids_S) & (at_T >= at_S)


def _einsum(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _take(x: jax.Array, row: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    """`size` elements along `axis` of one batch row of `x`, from `start`; the last, where these would pass the end."""
    starts: list[Any] = [row, *[0] * (x.ndim - 1)]
    sizes = [1, *x.shape[1:]]
    starts[axis], sizes[axis] = start, size
    return jax.lax.dynamic_slice(x, starts, sizes)[0]


def _add(x: jax.Array, part: jax.Array, row: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """`x` with `part` added to what `_take` takes."""
    starts: list[Any] = [row, *[0] * (x.ndim - 1)]
    starts[axis] = start
    updated = _take(x, row, start, part.shape[axis - 1], axis) + part
    return jax.lax.dynamic_update_slice(x, updated[None], starts)
