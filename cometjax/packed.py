"""The packed Pallas kernels as attention implementations: `pallas_tpu` and `pallas_gpu`.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim.
"""

import functools

import jax
import jax.numpy as jnp

from cometjax.packed_kernels import VMEM_BYTES, Target, packed_attention
from cometjax.segment_blocks import on_each_device, pad_rows
from data_pipeline.errors import UserError

# Positions in a block; not timed yet (benchmarks/attention.py tries others). TPU: 512 keeps the matrix unit busy
# (MaxText's choice for splash) and its scores are 1 MiB of vector memory. GPU: 64 x 64 scores and 64 x 128 sums, three
# of them in the backward pass, still fit the registers of 4 warps.
TPU_BLOCK, GPU_BLOCK = 512, 64
TPU_LANES = 128


def pallas_tpu_attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    block: int = TPU_BLOCK,
    interpret: bool = False,
) -> jax.Array:
    """As `cometjax.attention.attention`, where each segment is one run of equal ids.

    `interpret` runs the kernel's definition on any device, slowly, for tests.

    Raises:
      UserError: a row and head do not fit the chip's vector memory (about 40,000 positions of head_dim up to 128).
    """
    length, head_dim = q_BxLxHxC.shape[1], q_BxLxHxC.shape[3]
    block = min(block, length + -length % TPU_LANES)
    # Keys and values (backward: queries and their outputs' gradients) of a row, each twice; lanes come in 128.
    position_bytes = 4 * (head_dim + -head_dim % TPU_LANES) * q_BxLxHxC.dtype.itemsize
    longest = VMEM_BYTES * 7 // 8 // position_bytes
    if length > longest:
        raise UserError(
            f"rows of {length} tokens do not fit a TPU core's vector memory, as attention 'pallas_tpu' needs",
            where="config.train.row_length",
            fix=f"use {longest} or less, or config.model.attention=splash",
        )
    return _attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL, Target("tpu", block, interpret=interpret))


def pallas_gpu_attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    block: int = GPU_BLOCK,
    warps: int = 4,
    interpret: bool = False,
) -> jax.Array:
    """As `pallas_tpu_attention`, on GPU.

    Raises:
      UserError: the head dim is not a power of two from 16 on, which Triton's blocks are.
    """
    head_dim = q_BxLxHxC.shape[3]
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise UserError(
            f"head_dim {head_dim} is no power of two from 16 on, as attention 'pallas_gpu' needs",
            where="config.model.head_dim",
            fix="use 64 or 128, or config.model.attention=blockwise",
        )
    return _attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL, Target("gpu", block, warps, interpret))


def _attend(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, target: Target
) -> jax.Array:
    attend_rows = functools.partial(_attend_rows, target=target)
    return on_each_device(attend_rows, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def _attend_rows(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array, *, target: Target
) -> jax.Array:
    length, head_dim = q_BxLxHxC.shape[1], q_BxLxHxC.shape[3]
    scaled_BxLxHxC = q_BxLxHxC * head_dim**-0.5
    rows = pad_rows((scaled_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL), target.block)
    q_BxHxLxC, k_BxKxLxC, v_BxKxLxC = (x.swapaxes(1, 2) for x in rows[:3])
    out_BxHxLxC = packed_attention(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, segment_starts(rows[3]), target)
    return out_BxHxLxC.swapaxes(1, 2)[:, :length]


def segment_starts(segment_ids_BxL: jax.Array) -> jax.Array:
    """The position at which each position's run of equal ids begins, int32; L for padding."""
    length = segment_ids_BxL.shape[1]
    begins_BxL = jnp.diff(segment_ids_BxL, axis=1, prepend=-1) != 0
    starts_BxL = jax.lax.cummax(jnp.where(begins_BxL, jnp.arange(length, dtype=jnp.int32), 0), axis=1)
    return jnp.where(segment_ids_BxL == 0, length, starts_BxL)
