"""Packed causal attention as Pallas kernels, one source for TPU (Mosaic) and GPU (Triton).

A segment is one run of positions, so a query attends to the keys from its segment's start to itself. A mask is then one
number per query, `starts`, and a block of queries needs one range of key blocks: from the block in which its first
query's segment starts to its own. Each program takes one block and loops over its range and nothing else; the ranges
are small integers in scalar memory (prefetched on TPU). The other side, a whole row of one head, lies before the
program: on TPU it stays in vector memory while the programs of that head go by, on GPU it is an address.

Three kernels (arXiv 2205.14135, 2307.08691): outputs with each query's log-sum-exp; gradients of queries; gradients of
keys and values, with scores transposed, so that what belongs to queries is a row there. Scores, softmax and sums are
float32; products take the dtype that they are given (bfloat16).

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim, I blocks; T queries and S keys of
one block.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from cometjax.attention_shards import RESIDUAL_NAME

# Finite, and below _NO_SCORE_YET, so that a query that has met no key of its own yet sums zeros and no NaN.
_MASKED_SCORE = -1e30
_NO_SCORE_YET = -1e20
# TPU: what the kernels may take of a core's vector memory (64 MiB on v5p, 128 MiB on v5e and v6e; the compiler's own
# limit is a quarter of the smaller). Two arrays of a whole row, each twice for the copy under way, are most of it.
VMEM_BYTES = 48 * 2**20


@dataclasses.dataclass(frozen=True)
class Target:
    """Where and how the kernels run: `platform` "tpu" or "gpu", positions in a block, warps of a program (GPU)."""

    platform: str
    block: int
    warps: int = 4
    interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def packed_attention(
    q_BxHxLxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, starts_BxL: jax.Array, target: Target
) -> jax.Array:
    """out_BxHxLxC, of queries that are scaled already; L must be a multiple of the block.

    starts_BxL: the position at which each position's segment starts; L for padding, which gets zeros.
    """
    return _forward(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, starts_BxL, target)[0]


def _forward(
    q_BxHxLxC: jax.Array, k_BxKxLxC: jax.Array, v_BxKxLxC: jax.Array, starts_BxL: jax.Array, target: Target
) -> tuple[jax.Array, tuple[Any, ...]]:
    batch, heads, length, _ = q_BxHxLxC.shape
    specs = _Specs(q_BxHxLxC.shape, heads // k_BxKxLxC.shape[1], target.block)
    first_BxI = jnp.min(starts_BxL.reshape(batch, -1, target.block), axis=-1) // target.block
    out_BxHxLxC, logsumexp_BxHx1xL = _run(
        functools.partial(_forward_kernel, block=target.block),
        target,
        first_BxI,
        (
            (starts_BxL[:, None, None], specs.numbers_of_block(shared=True)),
            (q_BxHxLxC, specs.block()),
            (k_BxKxLxC, specs.row(grouped=True)),
            (v_BxKxLxC, specs.row(grouped=True)),
        ),
        (
            (jax.ShapeDtypeStruct(q_BxHxLxC.shape, q_BxHxLxC.dtype), specs.block()),
            (jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32), specs.numbers_of_block()),
        ),
    )
    out_BxHxLxC = checkpoint_name(out_BxHxLxC, RESIDUAL_NAME)
    logsumexp_BxHx1xL = checkpoint_name(logsumexp_BxHx1xL, RESIDUAL_NAME)
    return out_BxHxLxC, (q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, starts_BxL, out_BxHxLxC, logsumexp_BxHx1xL)


def _backward(
    target: Target, kept: tuple[Any, ...], d_out_BxHxLxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, starts_BxL, out_BxHxLxC, logsumexp_BxHx1xL = kept
    batch, heads, length, head_dim = q_BxHxLxC.shape
    kv_heads = k_BxKxLxC.shape[1]
    groups, block = heads // kv_heads, target.block
    specs = _Specs(q_BxHxLxC.shape, groups, block)
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this:
    mean_BxHx1xL = jnp.sum(d_out_BxHxLxC.astype(jnp.float32) * out_BxHxLxC.astype(jnp.float32), axis=-1)[:, :, None]
    starts_Bx1x1xL = starts_BxL[:, None, None]
    first_BxI = jnp.min(starts_BxL.reshape(batch, -1, block), axis=-1) // block
    (d_q_BxHxLxC,) = _run(
        functools.partial(_query_gradient_kernel, block=block),
        target,
        first_BxI,
        (
            (starts_Bx1x1xL, specs.numbers_of_block(shared=True)),
            (q_BxHxLxC, specs.block()),
            (d_out_BxHxLxC, specs.block()),
            (logsumexp_BxHx1xL, specs.numbers_of_block()),
            (mean_BxHx1xL, specs.numbers_of_block()),
            (k_BxKxLxC, specs.row(grouped=True)),
            (v_BxKxLxC, specs.row(grouped=True)),
        ),
        ((jax.ShapeDtypeStruct(q_BxHxLxC.shape, q_BxHxLxC.dtype), specs.block()),),
    )
    # Each query head gives gradients of its own to the keys and values that it shares; they are added up here.
    per_head = jax.ShapeDtypeStruct(q_BxHxLxC.shape, k_BxKxLxC.dtype if groups == 1 else jnp.float32)
    d_k_BxHxLxC, d_v_BxHxLxC = _run(
        functools.partial(_key_value_gradient_kernel, block=block),
        target,
        _last_query_block(first_BxI),
        (
            (starts_Bx1x1xL, specs.numbers_of_row(shared=True)),
            (q_BxHxLxC, specs.row()),
            (d_out_BxHxLxC, specs.row()),
            (logsumexp_BxHx1xL, specs.numbers_of_row()),
            (mean_BxHx1xL, specs.numbers_of_row()),
            (k_BxKxLxC, specs.block(grouped=True)),
            (v_BxKxLxC, specs.block(grouped=True)),
        ),
        ((per_head, specs.block()), (per_head, specs.block())),
    )

    def by_kv_head(x_BxHxLxC: jax.Array) -> jax.Array:
        x_BxKxGxLxC = x_BxHxLxC.reshape(batch, kv_heads, groups, length, head_dim)
        return jnp.sum(x_BxKxGxLxC, axis=2).astype(k_BxKxLxC.dtype) if groups > 1 else x_BxHxLxC

    return d_q_BxHxLxC, by_kv_head(d_k_BxHxLxC), by_kv_head(d_v_BxHxLxC), None


packed_attention.defvjp(_forward, _backward)


def _last_query_block(first_BxI: jax.Array) -> jax.Array:
    """The last query block that needs each key block; the key block less one where none does."""
    blocks = jnp.arange(first_BxI.shape[1])
    needs_BxIxJ = (first_BxI[:, :, None] <= blocks) & (blocks <= blocks[:, None])
    return jnp.max(jnp.where(needs_BxIxJ, blocks[:, None], blocks - 1), axis=1)


def _forward_kernel(first_ref, starts_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, *, block):
    row, i = pl.program_id(0), pl.program_id(2)
    q_TxC = q_ref[...]
    starts_Tx1 = jnp.expand_dims(starts_ref[0, :], 1)

    def add_block(j: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        weighted_TxC, highest_Tx1, total_Tx1 = sums
        k_SxC, v_SxC = _block_of(k_ref, j, block), _block_of(v_ref, j, block)
        scores_TxS = _masked(_x_yt(q_TxC, k_SxC), starts_Tx1, i, j, keys_axis=1)
        new_highest_Tx1 = jnp.maximum(highest_Tx1, jnp.max(scores_TxS, axis=1, keepdims=True))
        weights_TxS = jnp.exp(scores_TxS - new_highest_Tx1)
        shrink_Tx1 = jnp.exp(highest_Tx1 - new_highest_Tx1)
        return (
            weighted_TxC * shrink_Tx1 + _x_y(weights_TxS.astype(v_SxC.dtype), v_SxC),
            new_highest_Tx1,
            total_Tx1 * shrink_Tx1 + jnp.sum(weights_TxS, axis=1, keepdims=True),
        )

    zeros_Tx1 = jnp.zeros((block, 1), jnp.float32)
    start = (jnp.zeros(q_TxC.shape, jnp.float32), zeros_Tx1 + _NO_SCORE_YET, zeros_Tx1)
    weighted_TxC, highest_Tx1, total_Tx1 = jax.lax.fori_loop(first_ref[row, i], i + 1, add_block, start)
    total_Tx1 = jnp.where(total_Tx1 > 0, total_Tx1, 1.0)  # 0 for padding alone
    out_ref[...] = (weighted_TxC / total_Tx1).astype(out_ref.dtype)
    logsumexp_ref[0, :] = (highest_Tx1 + jnp.log(total_Tx1))[:, 0]


def _query_gradient_kernel(
    first_ref, starts_ref, q_ref, d_out_ref, logsumexp_ref, mean_ref, k_ref, v_ref, d_q_ref, *, block
):
    row, i = pl.program_id(0), pl.program_id(2)
    q_TxC, d_out_TxC = q_ref[...], d_out_ref[...]
    starts_Tx1, logsumexp_Tx1, mean_Tx1 = (jnp.expand_dims(x[0, :], 1) for x in (starts_ref, logsumexp_ref, mean_ref))

    def add_block(j: Any, d_q_TxC: jax.Array) -> jax.Array:
        k_SxC, v_SxC = _block_of(k_ref, j, block), _block_of(v_ref, j, block)
        scores_TxS = _masked(_x_yt(q_TxC, k_SxC), starts_Tx1, i, j, keys_axis=1)
        weights_TxS = jnp.exp(scores_TxS - logsumexp_Tx1)
        d_scores_TxS = weights_TxS * (_x_yt(d_out_TxC, v_SxC) - mean_Tx1)
        return d_q_TxC + _x_y(d_scores_TxS.astype(k_SxC.dtype), k_SxC)

    d_q_TxC = jax.lax.fori_loop(first_ref[row, i], i + 1, add_block, jnp.zeros(q_TxC.shape, jnp.float32))
    d_q_ref[...] = d_q_TxC.astype(d_q_ref.dtype)


def _key_value_gradient_kernel(
    last_ref, starts_ref, q_ref, d_out_ref, logsumexp_ref, mean_ref, k_ref, v_ref, d_k_ref, d_v_ref, *, block
):
    row, j = pl.program_id(0), pl.program_id(2)
    k_SxC, v_SxC = k_ref[...], v_ref[...]

    def add_block(i: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_k_SxC, d_v_SxC = gradients
        q_TxC, d_out_TxC = _block_of(q_ref, i, block), _block_of(d_out_ref, i, block)
        starts_1xT, logsumexp_1xT, mean_1xT = (
            x[:, pl.ds(pl.multiple_of(i * block, block), block)] for x in (starts_ref, logsumexp_ref, mean_ref)
        )
        scores_SxT = _masked(_x_yt(k_SxC, q_TxC), starts_1xT, i, j, keys_axis=0)
        weights_SxT = jnp.exp(scores_SxT - logsumexp_1xT)
        d_scores_SxT = weights_SxT * (_x_yt(v_SxC, d_out_TxC) - mean_1xT)
        return (
            d_k_SxC + _x_y(d_scores_SxT.astype(q_TxC.dtype), q_TxC),
            d_v_SxC + _x_y(weights_SxT.astype(d_out_TxC.dtype), d_out_TxC),
        )

    zeros_SxC = jnp.zeros(k_SxC.shape, jnp.float32)
    d_k_SxC, d_v_SxC = jax.lax.fori_loop(j, last_ref[row, j] + 1, add_block, (zeros_SxC, zeros_SxC))
    d_k_ref[...] = d_k_SxC.astype(d_k_ref.dtype)
    d_v_ref[...] = d_v_SxC.astype(d_v_ref.dtype)


def _block_of(ref: Any, index: Any, block: int) -> jax.Array:
    return ref[pl.ds(pl.multiple_of(index * block, block), block), :]


def _masked(scores: jax.Array, starts: jax.Array, i: Any, j: Any, keys_axis: int) -> jax.Array:
    """Scores of query block i with key block j: a key counts from its query's segment start to the query itself."""
    block = scores.shape[0]
    queries = i * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1 - keys_axis)
    keys = j * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, keys_axis)
    return jnp.where((keys >= starts) & (keys <= queries), scores, _MASKED_SCORE)


def _x_yt(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _x_y(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Specs:
    """What a program (row, query head, block) sees: its block of positions, or the whole row of its head.

    `grouped`: of the key/value head that its query head reads. `shared`: of an array that all heads have in common.
    """

    shape_BxHxLxC: tuple[int, ...]
    groups: int
    size: int

    def block(self, grouped: bool = False) -> pl.BlockSpec:
        shape, head = (None, None, self.size, self.shape_BxHxLxC[3]), self._head(grouped, shared=False)
        return pl.BlockSpec(shape, lambda row, h, index, *_: (row, head(h), index, 0))

    def row(self, grouped: bool = False) -> pl.BlockSpec:
        shape, head = (None, None, *self.shape_BxHxLxC[2:]), self._head(grouped, shared=False)
        return pl.BlockSpec(shape, lambda row, h, index, *_: (row, head(h), 0, 0))

    def numbers_of_block(self, shared: bool = False) -> pl.BlockSpec:
        head = self._head(False, shared)
        return pl.BlockSpec((None, None, 1, self.size), lambda row, h, index, *_: (row, head(h), 0, index))

    def numbers_of_row(self, shared: bool = False) -> pl.BlockSpec:
        head = self._head(False, shared)
        return pl.BlockSpec((None, None, 1, self.shape_BxHxLxC[2]), lambda row, h, index, *_: (row, head(h), 0, 0))

    def _head(self, grouped: bool, shared: bool) -> Callable[[Any], Any]:
        return lambda h: 0 if shared else jax.lax.div(h, self.groups) if grouped and self.groups > 1 else h


def _run(
    kernel: Callable[..., None],
    target: Target,
    ranges_BxI: jax.Array,
    inputs: tuple[tuple[jax.Array, pl.BlockSpec], ...],
    outputs: tuple[tuple[jax.ShapeDtypeStruct, pl.BlockSpec], ...],
) -> tuple[jax.Array, ...]:
    """Run `kernel` in one program per (row, query head, block)."""
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    rows, blocks = ranges_BxI.shape
    grid = (rows, shapes[0].shape[1], blocks)
    if target.platform == "tpu":
        call = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1, grid=grid, in_specs=in_specs, out_specs=out_specs
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=VMEM_BYTES),
            interpret=target.interpret,
        )
    else:
        call = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid=grid,
            in_specs=(pl.BlockSpec(), *in_specs),
            out_specs=out_specs,
            compiler_params=pltriton.CompilerParams(num_warps=target.warps, num_stages=2),
            interpret=target.interpret,
        )
    return tuple(call(ranges_BxI.astype(jnp.int32), *arrays))
