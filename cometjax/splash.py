"""Attention on TPU: JAX's splash kernel, a packed row at a time, skipping blocks that no segment reaches.

The scores of a block of queries and keys live in the chip's vector memory only. The kernel is told which blocks hold
anything: those on or below the diagonal, and, worked out from the row's segment ids on the chip, those in which some
query and key share a segment. So time goes with the sum of squared segment lengths, up to whole blocks.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim, I query blocks, J key blocks.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from cometjax.attention_shards import on_each_device
from data_pipeline.errors import UserError

# The kernel's lanes: a block is a multiple of them, and so is a row.
LANES = 128
# Larger blocks feed the matrix unit better (MaxText's default is 512) and skip fewer pairs of different segments.
MAX_BLOCK = 512


def splash_check_rows(length: int) -> None:
    """Raise UserError where a row of `length` positions is not whole blocks."""
    if length % LANES:
        raise UserError(
            f"rows of {length} tokens cannot be cut in blocks of {LANES}, which attention 'splash' needs",
            where="config.train.row_length",
            fix=f"use a multiple of {LANES}",
        )


def splash_attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    interpret: bool = False,
    max_block: int = MAX_BLOCK,
) -> jax.Array:
    """As `cometjax.attention.attention`; segment ids must not fall within a row, but for the padding at its end.

    Under a mesh each device attends for its own rows and heads, without communication. `interpret` runs the kernel's
    definition on any device, slowly, for tests.

    Raises:
      UserError: the row length is not a multiple of 128.
    """
    length = q_BxLxHxC.shape[1]
    splash_check_rows(length)
    attend = functools.partial(_attend_rows, block=math.gcd(length, max_block), interpret=interpret)
    return on_each_device(attend, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def _attend_rows(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    block: int,
    interpret: bool,
) -> jax.Array:
    length, heads = q_BxLxHxC.shape[1:3]
    causal = _causal_kernel(length, heads, block, interpret)
    scaled_BxLxHxC = q_BxLxHxC * q_BxLxHxC.shape[3] ** -0.5

    def attend_row(row: tuple[jax.Array, ...]) -> jax.Array:
        q_LxHxC, k_LxKxC, v_LxKxC, segment_ids_L = row
        kernel = _skip_foreign_blocks(causal, segment_ids_L, block)
        ids = kernels.SegmentIds(segment_ids_L, segment_ids_L)
        q, k, v = (x.swapaxes(0, 1) for x in (q_LxHxC, k_LxKxC, v_LxKxC))
        out: Any = kernel(q, k, v, segment_ids=ids)  # a pair only of kernels made to save residuals
        return out.swapaxes(0, 1)

    rows = (scaled_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)
    if q_BxLxHxC.shape[0] == 1:
        out_BxLxHxC = attend_row(tuple(x[0] for x in rows))[None]
    else:  # a loop, because each row skips blocks of its own
        out_BxLxHxC = jax.lax.map(attend_row, rows)
    return jnp.where((segment_ids_BxL != 0)[:, :, None, None], out_BxLxHxC, 0)


def _causal_kernel(length: int, heads: int, block: int, interpret: bool) -> kernels.SplashAttentionKernel:
    blocks = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    return kernels.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)


def _skip_foreign_blocks(
    kernel: kernels.SplashAttentionKernel, segment_ids_L: jax.Array, block: int
) -> kernels.SplashAttentionKernel:
    """The kernel for one row: blocks whose queries and keys have no segment in common are marked empty too."""
    # Ids rise along a row; padding, 0, ends it and would make them fall.
    last = jnp.iinfo(jnp.int32).max
    rising_L = jnp.where(segment_ids_L == 0, last, segment_ids_L)
    first_I, last_I = rising_L[::block], rising_L[block - 1 :: block]
    shared_IxJ = (first_I[:, None] <= last_I) & (last_I[:, None] >= first_I)
    # Padding attends to nothing (its output is thrown away), but no row of blocks may be empty, or it divides by 0.
    shared_IxJ &= (first_I < last)[None, :] | jnp.eye(first_I.size, dtype=bool)
    return kernels.SplashAttentionKernel(
        _restrict(kernel.fwd_mask_info, shared_IxJ, axis=1),
        _restrict(kernel.dq_mask_info, shared_IxJ, axis=1),
        _restrict(kernel.dkv_mask_info, shared_IxJ, axis=0),
        **kernel.kwargs,
    )


def _restrict(info: Any, shared_IxJ: jax.Array, axis: int) -> Any:
    """Mark the blocks outside `shared_IxJ` as empty, and let the ones before them fetch what comes next.

    The kernel walks along `axis`; of an empty block it reads in `data_next` what to fetch for the next one that is not
    (splash_attention_mask_info.MaskInfo).
    """
    blocks = shared_IxJ.shape[0]
    block_mask_IxJ = jnp.where(shared_IxJ, info.block_mask[0], 0).astype(info.block_mask.dtype)
    index_IxJ = jax.lax.broadcasted_iota(jnp.int32, shared_IxJ.shape, axis)
    active_IxJ = block_mask_IxJ > 0
    following_IxJ = jax.lax.cummin(jnp.where(active_IxJ, index_IxJ, blocks), axis=axis, reverse=True)
    latest_IxJ = jnp.max(jnp.where(active_IxJ, index_IxJ, 0), axis=axis, keepdims=True)
    data_next_IxJ = jnp.where(following_IxJ < blocks, following_IxJ, latest_IxJ).astype(info.data_next.dtype)
    return info._replace(block_mask=block_mask_IxJ[None], data_next=data_next_IxJ[None])
