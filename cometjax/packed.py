"""The packed Pallas kernels as attention implementations: `pallas_tpu`, `pallas_gpu` and `hopper`.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from cometjax import hopper_kernels, hopper_programs
from cometjax.attention_shards import on_each_device
from cometjax.packed_kernels import VMEM_BYTES, Target, packed_attention
from data_pipeline.errors import UserError

# Positions in a block. TPU: 512 keeps the matrix unit busy (MaxText's choice for splash) and its scores are 1 MiB of
# vector memory; not timed yet (benchmarks/attention.py tries others). GPU: 64 x 64 scores and 64 x 128 sums, three of
# them in the backward pass, still fit the registers of 4 warps; 128 spills, and is three times slower on an H200.
TPU_BLOCK, GPU_BLOCK = 512, 64
TPU_LANES = 128
# Starts of jax's `device_kind` (H20 and H200 with one). The kernels need wgmma: Blackwell, too, is without it.
HOPPER_KINDS = ("NVIDIA H100", "NVIDIA H20", "NVIDIA H800", "NVIDIA GH200")


@dataclasses.dataclass(frozen=True)
class Heads:
    """What an implementation may refuse: the width of a head, and the dtype of queries, keys and values."""

    head_dim: int
    dtype: str


def pallas_tpu_check_rows(length: int, heads: Heads) -> None:
    """Raise UserError where a row of `length` positions and a head do not fit a TPU core's vector memory."""
    # Keys and values (backward: queries and their outputs' gradients) of a row, each twice; lanes come in 128.
    position_bytes = 4 * (heads.head_dim + -heads.head_dim % TPU_LANES) * jnp.dtype(heads.dtype).itemsize
    longest = VMEM_BYTES * 7 // 8 // position_bytes
    if length > longest:
        raise UserError(
            f"rows of {length} tokens do not fit a TPU core's vector memory, as attention 'pallas_tpu' needs",
            where="config.train.row_length",
            fix=f"use {longest} or less, or config.model.attention=splash",
        )


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
    length = q_BxLxHxC.shape[1]
    pallas_tpu_check_rows(length, Heads(q_BxLxHxC.shape[3], str(q_BxLxHxC.dtype)))
    block = min(block, length + -length % TPU_LANES)
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
    """As `pallas_tpu_attention`, on GPU; the head dim is a power of two from 16 on, as Triton's blocks are."""
    return _attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL, Target("gpu", block, warps, interpret))


def pallas_gpu_refuses(heads: Heads, kind: str) -> str:
    """Why Triton cannot run such heads on any kind of GPU; nothing where it can."""
    if heads.head_dim < 16 or heads.head_dim & (heads.head_dim - 1):
        return f"head_dim is {heads.head_dim}, it takes powers of two from 16 on"
    return ""


def hopper_refuses(heads: Heads, kind: str) -> str:
    """Why the Hopper kernels cannot run such heads on a kind of GPU; nothing where they can."""
    if not kind.startswith(HOPPER_KINDS):
        return "it needs an H100 or H200"
    if heads.head_dim not in (64, 128):
        return f"head_dim is {heads.head_dim}, it takes 64 and 128"
    if heads.dtype not in ("bfloat16", "float16"):
        return f"compute_dtype is {heads.dtype}, it takes bfloat16"
    return ""


def hopper_attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
    *,
    target: hopper_programs.Target | None = None,
) -> jax.Array:
    """As `pallas_tpu_attention`, on H100 and H200, of 16-bit arrays with head dim 64 or 128."""
    target = target or hopper_kernels.default_target(q_BxLxHxC.shape[3])

    def attend_rows(
        q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array
    ) -> jax.Array:
        length = q_BxLxHxC.shape[1]
        *rows, ids_BxL = _pad_rows((q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL), target.tile)
        return hopper_kernels.packed_attention(*rows, segment_starts(ids_BxL), target)[:, :length]

    return on_each_device(attend_rows, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


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
    rows = _pad_rows((scaled_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL), target.block)
    q_BxHxLxC, k_BxKxLxC, v_BxKxLxC = (x.swapaxes(1, 2) for x in rows[:3])
    out_BxHxLxC = packed_attention(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, segment_starts(rows[3]), target)
    return out_BxHxLxC.swapaxes(1, 2)[:, :length]


def segment_starts(segment_ids_BxL: jax.Array) -> jax.Array:
    """The position at which each position's run of equal ids begins, int32; L for padding."""
    length = segment_ids_BxL.shape[1]
    begins_BxL = jnp.diff(segment_ids_BxL, axis=1, prepend=-1) != 0
    starts_BxL = jax.lax.cummax(jnp.where(begins_BxL, jnp.arange(length, dtype=jnp.int32), 0), axis=1)
    return jnp.where(segment_ids_BxL == 0, length, starts_BxL)


def _pad_rows(arrays: tuple[jax.Array, ...], block: int) -> tuple[jax.Array, ...]:
    """Each [B, L, ...], lengthened by zeros (padding: segment id 0) to a multiple of `block`."""
    missing = -arrays[0].shape[1] % block
    return tuple(jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays) if missing else arrays
