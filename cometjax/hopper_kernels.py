"""Packed causal attention for Hopper GPUs, as Pallas kernels of the Mosaic GPU backend.

What cometjax/packed_kernels.py computes, with what that source cannot say: matrix products of a whole warpgroup (wgmma)
and copies by the tensor memory unit (TMA). The forward kernel is FlashAttention-3 (arXiv 2407.08608) as
jax.experimental.pallas.ops.gpu.attention_mgpu has it, with segments and masks added.

A program holds one tile (forward and gradients of queries: of queries; gradients of keys and values: of keys) in two
compute warpgroups, half of it each, and goes over the blocks of the other side that its tile needs; a third warpgroup
copies those blocks to shared memory, some stages ahead. Blocks come in this order: those on the diagonal, whose place
is known at once; then from the far end of the range back to the diagonal. So the blocks that need a mask (diagonal,
segments' starts) are the first ones, and two loops do, one with and one without a mask. The diagonal is visited even
where all is padding: then everything there is masked.

Scores are in units of log2, so that the exponential is one instruction.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, C head dim, I tiles, J blocks; T
queries and S keys of one warpgroup and step.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from cometjax.segment_blocks import RESIDUAL_NAME

# jax 0.10 wants to be told which part of a reference to load; from 0.11 on that warns.
_ALL = ((),) if inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty else ()

# Finite, and below _NO_SCORE_YET, so that a query that has met no key of its own yet sums zeros and no NaN.
_MASKED_SCORE = -1e30
_NO_SCORE_YET = -1e20
_LOG2_E = math.log2(math.e)

_COMPUTE_WARPGROUPS = 2
_MEMORY_WARPGROUP = _COMPUTE_WARPGROUPS
_COMPUTE_REGISTERS, _MEMORY_REGISTERS = 232, 40

_Copy = tuple[Any, Any, Any]  # from, to, and the barrier that tells


@dataclasses.dataclass(frozen=True)
class Blocks:
    """One kernel's sizes: positions of a warpgroup (`rows`; a tile is two), of a step's block, and blocks in flight."""

    rows: int = 64
    block: int = 128
    stages: int = 2

    @property
    def tile(self) -> int:
        """Positions of a program."""
        return _COMPUTE_WARPGROUPS * self.rows

    @property
    def diagonal(self) -> int:
        """Blocks of the other side that lie on a tile's diagonal."""
        return self.tile // self.block


@dataclasses.dataclass(frozen=True)
class Target:
    """Sizes of the three kernels; `interpret` (plgpu.InterpretGPUParams) runs their definition on a CPU, for tests."""

    forward: Blocks = Blocks(block=128, stages=2)
    query_gradient: Blocks = Blocks(block=64, stages=3)
    key_value_gradient: Blocks = Blocks(block=64, stages=2)
    interpret: Any = None

    @property
    def tile(self) -> int:
        """What a row's length must be a multiple of."""
        return math.lcm(*(blocks.tile for blocks in (self.forward, self.query_gradient, self.key_value_gradient)))


def default_target(head_dim: int) -> Target:
    """Sizes that fit registers and shared memory (227 KiB) of one program at a time."""
    if head_dim > 64:
        return Target()
    return Target(
        forward=Blocks(block=128, stages=4),
        query_gradient=Blocks(block=128, stages=3),
        key_value_gradient=Blocks(block=64, stages=4),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def packed_attention(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, starts_BxL: jax.Array, target: Target
) -> jax.Array:
    """out_BxLxHxC, of 16-bit queries that are not scaled yet; head dim 64 or 128, L a multiple of `target.tile`.

    starts_BxL: the position at which each position's segment starts; L for padding, which gets zeros.
    """
    return _forward(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, target)[0]


def _forward(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, starts_BxL: jax.Array, target: Target
) -> tuple[jax.Array, tuple[Any, ...]]:
    batch, length, heads, head_dim = q_BxLxHxC.shape
    blocks, dtype = target.forward, q_BxLxHxC.dtype
    out_BxLxHxC, logsumexp_BxHxL = _run(
        functools.partial(_forward_kernel, blocks=blocks, groups=heads // k_BxLxKxC.shape[2]),
        target,
        grid=(heads, length // blocks.tile, batch),
        outputs=(
            jax.ShapeDtypeStruct(q_BxLxHxC.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        scratch=dict(
            q_smem=_matrices(_COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            k_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            v_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            starts_smem=plgpu.SMEM((_COMPUTE_WARPGROUPS, blocks.rows), jnp.int32),
            logsumexp_smem=plgpu.SMEM((_COMPUTE_WARPGROUPS, blocks.rows), jnp.float32),
            tile_ready=plgpu.Barrier(num_arrivals=2, num_barriers=_COMPUTE_WARPGROUPS),
            k_ready=plgpu.Barrier(num_barriers=blocks.stages),
            v_ready=plgpu.Barrier(num_barriers=blocks.stages),
            k_used=plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=blocks.stages),
            v_used=plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=blocks.stages),
            turn=plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS),
        ),
    )(_key_blocks(starts_BxL, blocks), starts_BxL, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC)
    out_BxLxHxC = checkpoint_name(out_BxLxHxC, RESIDUAL_NAME)
    logsumexp_BxHxL = checkpoint_name(logsumexp_BxHxL, RESIDUAL_NAME)
    return out_BxLxHxC, (q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, out_BxLxHxC, logsumexp_BxHxL)


def _backward(
    target: Target, kept: tuple[Any, ...], d_out_BxLxHxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, out_BxLxHxC, logsumexp_BxHxL = kept
    batch, length, heads, head_dim = q_BxLxHxC.shape
    kv_heads, dtype = k_BxLxKxC.shape[2], q_BxLxHxC.dtype
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this:
    mean_BxHxL = jnp.einsum(
        "blhc,blhc->bhl", d_out_BxLxHxC.astype(jnp.float32), out_BxLxHxC.astype(jnp.float32)
    )
    arrays = (starts_BxL, q_BxLxHxC, d_out_BxLxHxC, logsumexp_BxHxL, mean_BxHxL, k_BxLxKxC, v_BxLxKxC)

    blocks = target.query_gradient
    numbers = plgpu.SMEM((_COMPUTE_WARPGROUPS, blocks.rows), jnp.float32)
    (d_q_BxLxHxC,) = _run(
        functools.partial(_query_gradient_kernel, blocks=blocks, groups=heads // kv_heads),
        target,
        grid=(heads, length // blocks.tile, batch),
        outputs=(jax.ShapeDtypeStruct(q_BxLxHxC.shape, dtype),),
        scratch=dict(
            q_smem=_matrices(_COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            d_out_smem=_matrices(_COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            k_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            v_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            starts_smem=plgpu.SMEM((_COMPUTE_WARPGROUPS, blocks.rows), jnp.int32),
            logsumexp_smem=numbers,
            mean_smem=numbers,
            tile_ready=plgpu.Barrier(num_arrivals=5, num_barriers=_COMPUTE_WARPGROUPS),
            ready=plgpu.Barrier(num_arrivals=2, num_barriers=blocks.stages),
            used=plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=blocks.stages),
        ),
    )(_key_blocks(starts_BxL, blocks), *arrays)

    blocks = target.key_value_gradient
    numbers = plgpu.SMEM((blocks.stages, blocks.block), jnp.float32)
    d_k_BxLxKxC, d_v_BxLxKxC = _run(
        functools.partial(_key_value_gradient_kernel, blocks=blocks, groups=heads // kv_heads),
        target,
        grid=(kv_heads, length // blocks.tile, batch),
        outputs=(jax.ShapeDtypeStruct(k_BxLxKxC.shape, dtype),) * 2,
        scratch=dict(
            k_smem=_matrices(_COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            v_smem=_matrices(_COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            q_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            d_out_smem=_matrices(blocks.stages, blocks.block, head_dim, dtype),
            starts_smem=plgpu.SMEM((blocks.stages, blocks.block), jnp.int32),
            logsumexp_smem=numbers,
            mean_smem=numbers,
            tile_ready=plgpu.Barrier(num_arrivals=2, num_barriers=_COMPUTE_WARPGROUPS),
            ready=plgpu.Barrier(num_arrivals=5, num_barriers=blocks.stages),
            used=plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=blocks.stages),
        ),
    )(_query_blocks(starts_BxL, blocks), *arrays)
    return d_q_BxLxHxC, d_k_BxLxKxC, d_v_BxLxKxC, None


packed_attention.defvjp(_forward, _backward)


# Which blocks a tile needs: int32 numbers_BxIx3, each tile's far block, its steps in all, and the first of them, masked.


def _key_blocks(starts_BxL: jax.Array, blocks: Blocks) -> jax.Array:
    """Of each tile of queries, where the far block is its first key block."""
    starts_BxIxT = starts_BxL.reshape(starts_BxL.shape[0], -1, blocks.tile)
    diagonal_I = jnp.arange(starts_BxIxT.shape[1]) * blocks.diagonal
    far_BxI = jnp.minimum(jnp.min(starts_BxIxT, axis=-1) // blocks.block, diagonal_I)
    # Padding's start is behind everything: a tile with padding in it is masked all over.
    clean_BxI = jnp.clip(-(-jnp.max(starts_BxIxT, axis=-1) // blocks.block), far_BxI, diagonal_I)
    return _numbers(far_BxI, diagonal_I - far_BxI, clean_BxI - far_BxI, blocks)


def _query_blocks(starts_BxL: jax.Array, blocks: Blocks) -> jax.Array:
    """Of each tile of keys, where the far block is the last query block that needs it."""
    starts_BxJxT = starts_BxL.reshape(starts_BxL.shape[0], -1, blocks.block)
    first_BxJ, last_BxJ = jnp.min(starts_BxJxT, axis=-1), jnp.max(starts_BxJxT, axis=-1)
    blocks_J = jnp.arange(starts_BxJxT.shape[1])
    behind_I = (1 + jnp.arange(starts_BxL.shape[1] // blocks.tile)) * blocks.diagonal  # the first off the diagonal
    keys_Ix1 = (jnp.arange(behind_I.shape[0]) * blocks.tile)[:, None]
    off_IxJ = blocks_J >= behind_I[:, None]
    needs_BxIxJ = off_IxJ & (first_BxJ[:, None] < keys_Ix1 + blocks.tile)
    far_BxI = jnp.max(jnp.where(needs_BxIxJ, blocks_J, behind_I[:, None] - 1), axis=-1)
    # From the first block on of which some query starts behind the tile's first key, padding included, all are masked.
    late_BxIxJ = off_IxJ & (last_BxJ[:, None] > keys_Ix1)
    late_BxI = jnp.min(jnp.where(late_BxIxJ, blocks_J, blocks_J.shape[0]), axis=-1)
    return _numbers(far_BxI, far_BxI + 1 - behind_I, jnp.maximum(far_BxI + 1 - late_BxI, 0), blocks)


def _numbers(far_BxI: jax.Array, steps_BxI: jax.Array, masked_BxI: jax.Array, blocks: Blocks) -> jax.Array:
    numbers = (far_BxI, steps_BxI + blocks.diagonal, masked_BxI + blocks.diagonal)
    return jnp.stack(numbers, axis=-1).astype(jnp.int32)


def _block_of_step(step: Any, tile: Any, far: Any, back: int, diagonal: int) -> Any:
    """The block of each step: those on the diagonal, then from `far` in steps of `back` (1 or -1)."""
    return jnp.where(step < diagonal, tile * diagonal + step, far + back * (step - diagonal))


def _forward_kernel(numbers_ref, starts_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, *, blocks, groups, on, **smem):
    head, tile, row, warpgroup = _place()
    far, steps, masked_steps = (numbers_ref[row, tile, i] for i in range(3))
    rows, block = blocks.rows, blocks.block
    head_dim = q_ref.shape[-1]
    scale = _scale(head_dim)
    k_smem, v_smem, turn = smem["k_smem"], smem["v_smem"], smem["turn"]
    k_ready, v_ready, k_used, v_used = (smem[name] for name in ("k_ready", "v_ready", "k_used", "v_used"))

    def pass_turn() -> None:
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    @pl.when(warpgroup < _COMPUTE_WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        q_smem, starts_smem, logsumexp_smem = (
            smem[name].at[warpgroup] for name in ("q_smem", "starts_smem", "logsumexp_smem")
        )
        first_query = tile * blocks.tile + warpgroup * rows
        queries = pl.ds(first_query, rows)
        plgpu.copy_gmem_to_smem(q_ref.at[row, queries, head], q_smem, smem["tile_ready"].at[warpgroup])
        plgpu.copy_gmem_to_smem(starts_ref.at[row, queries], starts_smem, smem["tile_ready"].at[warpgroup])
        plgpu.barrier_wait(smem["tile_ready"].at[warpgroup])
        starts_T = on.numbers(starts_smem, axis=0)
        plgpu.barrier_wait(k_ready.at[0])
        # The warpgroups take turns: one multiplies while the other computes its softmax.
        pl.when(warpgroup == 1)(pass_turn)

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
            weighted_TxC, highest_T, total_T = sums
            slot = lax.rem(step, jnp.int32(blocks.stages))

            def add_scores(scores_ref: Any) -> None:
                on.multiply_transposed(scores_ref, q_smem, k_smem.at[slot])
                pass_turn()

            (scores_TxS,) = on.accumulate(add_scores, on.full((rows, block), 0.0))
            plgpu.barrier_arrive(k_used.at[slot])
            if masked:
                first_key = _block_of_step(step, tile, far, 1, blocks.diagonal) * block
                scores_TxS = _masked(on, scores_TxS, starts_T, first_query, first_key, keys_axis=1)
            new_highest_T = jnp.maximum(highest_T, jnp.max(scores_TxS, axis=1) * scale)
            shrink_T = jnp.exp2(highest_T - new_highest_T)
            weights_TxS = jnp.exp2(scores_TxS * scale - _along(new_highest_T, scores_TxS, 0))
            weighted_TxC *= _along(shrink_T, weighted_TxC, 0)
            total_T = total_T * shrink_T + jnp.sum(weights_TxS, axis=1)
            narrow_TxS = weights_TxS.astype(v_ref.dtype)
            weighted_TxC, total_T, new_highest_T, narrow_TxS = lax.optimization_barrier(
                (weighted_TxC, total_T, new_highest_T, narrow_TxS)
            )
            plgpu.barrier_arrive(turn)  # done with the softmax
            plgpu.barrier_wait(v_ready.at[slot])
            plgpu.barrier_wait(turn)  # the other warpgroup has begun its own

            def add_values(sum_ref: Any) -> None:
                on.multiply(sum_ref, narrow_TxS, v_smem.at[slot])

                @pl.when(step + 1 < steps)
                def _await_next() -> None:
                    plgpu.barrier_wait(k_ready.at[lax.rem(step + 1, jnp.int32(blocks.stages))])

            (weighted_TxC,) = on.accumulate(add_values, weighted_TxC)
            plgpu.barrier_arrive(v_used.at[slot])
            return weighted_TxC, new_highest_T, total_T

        sums = (
            on.full((rows, head_dim), 0.0),
            on.full((rows,), _NO_SCORE_YET),
            on.full((rows,), 0.0),
        )
        weighted_TxC, highest_T, total_T = _masked_then_clean(add_block, masked_steps, steps, sums)
        pl.when(warpgroup == 0)(pass_turn)

        total_T = jnp.where(total_T > 0, total_T, 1.0)  # 0 for padding alone
        q_smem[...] = (weighted_TxC * _along(1 / total_T, weighted_TxC, 0)).astype(out_ref.dtype)
        logsumexp_smem[...] = highest_T + jnp.log(total_T) * _LOG2_E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, out_ref.at[row, queries, head])
        plgpu.copy_smem_to_gmem(logsumexp_smem, logsumexp_ref.at[row, head, queries])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _MEMORY_WARPGROUP)
    def _copy() -> None:
        plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")
        kv_head = lax.div(head, jnp.int32(groups))

        def copies_of(step: Any, slot: Any) -> tuple[tuple[_Copy, ...], ...]:
            keys = pl.ds(_block_of_step(step, tile, far, 1, blocks.diagonal) * block, block)
            return (
                ((k_ref.at[row, keys, kv_head], k_smem.at[slot], k_ready.at[slot]),),
                ((v_ref.at[row, keys, kv_head], v_smem.at[slot], v_ready.at[slot]),),
            )

        _copy_ahead(copies_of, steps, blocks.stages, (k_used, v_used))


def _query_gradient_kernel(
    numbers_ref,
    starts_ref,
    q_ref,
    d_out_ref,
    logsumexp_ref,
    mean_ref,
    k_ref,
    v_ref,
    d_q_ref,
    *,
    blocks,
    groups,
    on,
    **smem,
):
    head, tile, row, warpgroup = _place()
    far, steps, masked_steps = (numbers_ref[row, tile, i] for i in range(3))
    rows, block = blocks.rows, blocks.block
    head_dim = q_ref.shape[-1]
    k_smem, v_smem, ready, used = (smem[name] for name in ("k_smem", "v_smem", "ready", "used"))

    @pl.when(warpgroup < _COMPUTE_WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        first_query = tile * blocks.tile + warpgroup * rows
        queries = pl.ds(first_query, rows)
        tile_ready = smem["tile_ready"].at[warpgroup]
        sources = (
            ("q_smem", q_ref.at[row, queries, head]),
            ("d_out_smem", d_out_ref.at[row, queries, head]),
            ("starts_smem", starts_ref.at[row, queries]),
            ("logsumexp_smem", logsumexp_ref.at[row, head, queries]),
            ("mean_smem", mean_ref.at[row, head, queries]),
        )
        q_smem, d_out_smem, *numbers_smem = (smem[name].at[warpgroup] for name, _ in sources)
        for to_smem, (_, source) in zip((q_smem, d_out_smem, *numbers_smem), sources, strict=True):
            plgpu.copy_gmem_to_smem(source, to_smem, tile_ready)
        plgpu.barrier_wait(tile_ready)
        starts_T, logsumexp_T, mean_T = (on.numbers(x, axis=0) for x in numbers_smem)

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
            slot = lax.rem(step, jnp.int32(blocks.stages))
            plgpu.barrier_wait(ready.at[slot])

            def add_gradients(d_q_ref: Any, scores_ref: Any, d_weights_ref: Any) -> None:
                on.multiply_transposed(scores_ref, q_smem, k_smem.at[slot])
                on.multiply_transposed(d_weights_ref, d_out_smem, v_smem.at[slot])
                scores_TxS = on.finished(scores_ref, still_running=1)
                if masked:
                    first_key = _block_of_step(step, tile, far, 1, blocks.diagonal) * block
                    scores_TxS = _masked(on, scores_TxS, starts_T, first_query, first_key, keys_axis=1)
                weights_TxS = jnp.exp2(scores_TxS * _scale(head_dim) - _along(logsumexp_T, scores_TxS, 0))
                d_weights_TxS = on.finished(d_weights_ref)
                d_scores_TxS = weights_TxS * (d_weights_TxS - _along(mean_T, d_weights_TxS, 0))
                on.multiply(d_q_ref, d_scores_TxS.astype(k_ref.dtype), k_smem.at[slot])

            zeros_TxS = on.full((rows, block), 0.0)
            d_q_TxC, _, _ = on.accumulate(add_gradients, *sums, zeros_TxS, zeros_TxS)
            plgpu.barrier_arrive(used.at[slot])
            return (d_q_TxC,)

        zeros_TxC = on.full((rows, head_dim), 0.0)
        (d_q_TxC,) = _masked_then_clean(add_block, masked_steps, steps, (zeros_TxC,))
        q_smem[...] = (d_q_TxC * head_dim**-0.5).astype(d_q_ref.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, d_q_ref.at[row, queries, head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _MEMORY_WARPGROUP)
    def _copy() -> None:
        plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")
        kv_head = lax.div(head, jnp.int32(groups))

        def copies_of(step: Any, slot: Any) -> tuple[tuple[_Copy, ...], ...]:
            keys = pl.ds(_block_of_step(step, tile, far, 1, blocks.diagonal) * block, block)
            return (
                (
                    (k_ref.at[row, keys, kv_head], k_smem.at[slot], ready.at[slot]),
                    (v_ref.at[row, keys, kv_head], v_smem.at[slot], ready.at[slot]),
                ),
            )

        _copy_ahead(copies_of, steps, blocks.stages, (used,))


def _key_value_gradient_kernel(
    numbers_ref,
    starts_ref,
    q_ref,
    d_out_ref,
    logsumexp_ref,
    mean_ref,
    k_ref,
    v_ref,
    d_k_ref,
    d_v_ref,
    *,
    blocks,
    groups,
    on,
    **smem,
):
    kv_head, tile, row, warpgroup = _place()
    far, steps, masked_steps = (numbers_ref[row, tile, i] for i in range(3))
    rows, block = blocks.rows, blocks.block
    head_dim, dtype = q_ref.shape[-1], q_ref.dtype
    q_smem, d_out_smem, ready, used = (smem[name] for name in ("q_smem", "d_out_smem", "ready", "used"))

    @pl.when(warpgroup < _COMPUTE_WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        k_smem, v_smem = smem["k_smem"].at[warpgroup], smem["v_smem"].at[warpgroup]
        first_key = tile * blocks.tile + warpgroup * rows
        keys = pl.ds(first_key, rows)
        plgpu.copy_gmem_to_smem(k_ref.at[row, keys, kv_head], k_smem, smem["tile_ready"].at[warpgroup])
        plgpu.copy_gmem_to_smem(v_ref.at[row, keys, kv_head], v_smem, smem["tile_ready"].at[warpgroup])
        plgpu.barrier_wait(smem["tile_ready"].at[warpgroup])

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool, steps_before: Any) -> tuple[jax.Array, ...]:
            slot = lax.rem(steps_before + step, jnp.int32(blocks.stages))
            plgpu.barrier_wait(ready.at[slot])
            logsumexp_T, mean_T = (
                on.numbers(smem[name].at[slot], axis=1) for name in ("logsumexp_smem", "mean_smem")
            )

            def add_gradients(d_k_ref: Any, d_v_ref: Any, scores_ref: Any, d_weights_ref: Any) -> None:
                on.multiply_transposed(scores_ref, k_smem, q_smem.at[slot])
                on.multiply_transposed(d_weights_ref, v_smem, d_out_smem.at[slot])
                scores_SxT = on.finished(scores_ref, still_running=1)
                if masked:
                    starts_T = on.numbers(smem["starts_smem"].at[slot], axis=1)
                    first_query = _block_of_step(step, tile, far, -1, blocks.diagonal) * block
                    scores_SxT = _masked(on, scores_SxT, starts_T, first_query, first_key, keys_axis=0)
                weights_SxT = jnp.exp2(scores_SxT * _scale(head_dim) - _along(logsumexp_T, scores_SxT, 1))
                on.multiply(d_v_ref, weights_SxT.astype(dtype), d_out_smem.at[slot])
                d_weights_SxT = on.finished(d_weights_ref, still_running=1)
                d_scores_SxT = weights_SxT * (d_weights_SxT - _along(mean_T, d_weights_SxT, 1))
                on.multiply(d_k_ref, d_scores_SxT.astype(dtype), q_smem.at[slot])

            zeros_SxT = on.full((rows, block), 0.0)
            d_k_SxC, d_v_SxC, _, _ = on.accumulate(add_gradients, *sums, zeros_SxT, zeros_SxT)
            plgpu.barrier_arrive(used.at[slot])
            return d_k_SxC, d_v_SxC

        def add_head(group: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            add_block_of_head = functools.partial(add_block, steps_before=group * steps)
            return _masked_then_clean(add_block_of_head, masked_steps, steps, sums)

        zeros_SxC = on.full((rows, head_dim), 0.0)
        sums = (zeros_SxC, zeros_SxC)
        d_k_SxC, d_v_SxC = add_head(0, sums) if groups == 1 else lax.fori_loop(0, groups, add_head, sums)
        k_smem[...] = (d_k_SxC * head_dim**-0.5).astype(dtype)
        v_smem[...] = d_v_SxC.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_smem, d_k_ref.at[row, keys, kv_head])
        plgpu.copy_smem_to_gmem(v_smem, d_v_ref.at[row, keys, kv_head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == _MEMORY_WARPGROUP)
    def _copy() -> None:
        plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")

        def copies_of(step: Any, slot: Any) -> tuple[tuple[_Copy, ...], ...]:
            head = kv_head * groups + lax.div(step, steps)
            queries = pl.ds(_block_of_step(lax.rem(step, steps), tile, far, -1, blocks.diagonal) * block, block)
            sources = (
                ("q_smem", q_ref.at[row, queries, head]),
                ("d_out_smem", d_out_ref.at[row, queries, head]),
                ("starts_smem", starts_ref.at[row, queries]),
                ("logsumexp_smem", logsumexp_ref.at[row, head, queries]),
                ("mean_smem", mean_ref.at[row, head, queries]),
            )
            return (tuple((source, smem[name].at[slot], ready.at[slot]) for name, source in sources),)

        _copy_ahead(copies_of, groups * steps, blocks.stages, (used,))


def _place() -> tuple[Any, Any, Any, Any]:
    return tuple(lax.axis_index(name) for name in ("head", "tile", "row", "warpgroup"))


def _copy_ahead(
    copies_of: Callable[[Any, Any], tuple[tuple[_Copy, ...], ...]], steps: Any, stages: int, used: tuple[Any, ...]
) -> None:
    """The memory warpgroup: each step's copies, into the slot of step % stages once that is `used`; until all are."""

    @pl.loop(0, steps + stages)
    def _step(step: Any) -> None:
        slot = lax.rem(step, jnp.int32(stages))
        for i, slots in enumerate(used):
            pl.when(step >= stages)(functools.partial(plgpu.barrier_wait, slots.at[slot]))

            @pl.when(step < steps)
            def _copy(i: int = i) -> None:
                for source, to_smem, ready in copies_of(step, slot)[i]:
                    plgpu.copy_gmem_to_smem(source, to_smem, ready)


def _masked_then_clean(add_block: Callable[..., Any], masked_steps: Any, steps: Any, sums: Any) -> Any:
    sums = lax.fori_loop(0, masked_steps, functools.partial(add_block, masked=True), sums)
    return lax.fori_loop(masked_steps, steps, functools.partial(add_block, masked=False), sums)


def _masked(
    on: Any, scores: jax.Array, starts: jax.Array, first_query: Any, first_key: Any, keys_axis: int
) -> jax.Array:
    """A key counts from its query's segment start to the query itself."""
    queries, keys = (
        first + on.indices(scores.shape, axis)
        for first, axis in ((first_query, 1 - keys_axis), (first_key, keys_axis))
    )
    allowed = (keys >= _along(starts, scores, 1 - keys_axis)) & (keys <= queries)
    return jnp.where(allowed, scores, _MASKED_SCORE)


def _along(x: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    return lax.broadcast_in_dim(x, like.shape, [axis])


def _matrices(count: int, rows: int, columns: int, dtype: Any) -> Any:
    """Shared memory as wgmma reads it."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)


def _scale(head_dim: int) -> float:
    return head_dim**-0.5 * _LOG2_E


class _Device:
    """What the kernels ask of the machine."""

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        """As jnp.full; of one axis: a number for each row of an accumulator."""
        layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def indices(self, shape: tuple[int, int], axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def numbers(self, ref: Any, axis: int) -> jax.Array:
        """Load a number for each row (axis 0) or column (axis 1) of an accumulator."""
        return plgpu.load(ref, *_ALL, layout=plgpu.Layout.WGMMA.reduce(1 - axis))

    def accumulate(self, add: Callable[..., None], *sums: jax.Array) -> tuple[jax.Array, ...]:
        """The sums after `add`, which gets an accumulator for each, has added products to them."""
        return pl.run_state(lambda accumulators: add(*accumulators))(tuple(plgpu.ACC.init(x) for x in sums))

    def multiply(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        """Begin to add x · y; x may lie in registers."""
        plgpu.wgmma(accumulator, x, y_ref)

    def multiply_transposed(self, accumulator: Any, x_ref: Any, y_ref: Any) -> None:
        """Begin to add x · yᵀ."""
        plgpu.wgmma(accumulator, x_ref, y_ref.transpose((1, 0)))

    def finished(self, accumulator: Any, still_running: int = 0) -> jax.Array:
        """What the accumulator holds once no more than the `still_running` last products are under way."""
        # The barrier keeps the compiler from moving arithmetic on the registers before the wait.
        return lax.optimization_barrier(plgpu.wgmma_accumulator_load(accumulator, wait_n=still_running))


class _Interpreter(_Device):
    """Products at once, in jax.numpy: the interpreter knows no accumulator with a value and no product from registers.

    An accumulator is a list of its one value. Layouts of registers mean nothing here, and jax 0.10's knows none.
    """

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        return jnp.full(shape, value, jnp.float32)

    def indices(self, shape: tuple[int, int], axis: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, shape, axis)

    def numbers(self, ref: Any, axis: int) -> jax.Array:
        return ref[...]

    def accumulate(self, add: Callable[..., None], *sums: jax.Array) -> tuple[jax.Array, ...]:
        accumulators = [[x] for x in sums]
        add(*accumulators)
        return tuple(accumulator[0] for accumulator in accumulators)

    def multiply(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        accumulator[0] += jnp.dot(x[...], y_ref[...], preferred_element_type=jnp.float32)

    def multiply_transposed(self, accumulator: Any, x_ref: Any, y_ref: Any) -> None:
        accumulator[0] += jnp.dot(x_ref[...], y_ref[...].T, preferred_element_type=jnp.float32)

    def finished(self, accumulator: Any, still_running: int = 0) -> jax.Array:
        return accumulator[0]


def _run(
    kernel: Callable[..., None],
    target: Target,
    *,
    grid: tuple[int, int, int],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    scratch: dict[str, Any],
) -> Callable[..., tuple[jax.Array, ...]]:
    """`kernel` as a function of its arrays: one program per (head, tile, row), of the warpgroups' three threads."""
    return plgpu.kernel(
        functools.partial(kernel, on=_Interpreter() if target.interpret else _Device()),
        out_type=outputs,
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "tile", "row"),
        num_threads=_COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=target.interpret,
    )
