"""Packed causal attention for Hopper GPUs, as Pallas kernels of the Mosaic GPU backend.

What cometjax/packed_kernels.py computes, with what that source cannot say: matrix products of a whole warpgroup (wgmma)
and copies by the tensor memory unit (TMA). The forward kernel is FlashAttention-3 (arXiv 2407.08608) as
jax.experimental.pallas.ops.gpu.attention_mgpu has it, with segments and masks added.

A program does tiles one after another (forward and gradients of queries: of queries; gradients of keys and values: of
keys), in two compute warpgroups, half of a tile each. It goes over the blocks of the other side that the tile needs,
which a third warpgroup copies to shared memory ahead of time (cometjax/hopper_programs.py). Blocks come in this order:
those on the diagonal; then from the far end of the range back to the diagonal. So the blocks that need a mask
(diagonal, segments' starts) are the first ones, and two loops do, one with and one without a mask. The diagonal is
visited even where all is padding: then everything there is masked.

Scores are in units of log2, so that the exponential is one instruction.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, C head dim, I tiles, J blocks; T
queries and S keys of one warpgroup and step.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from cometjax.attention_shards import RESIDUAL_NAME
from cometjax.hopper_programs import (
    COMPUTE_WARPGROUPS,
    LOG2_E,
    MASKED_SCORE,
    NO_SCORE_YET,
    Blocks,
    Copy,
    Machine,
    Target,
    Work,
    along,
    compute_and_copy,
    matrices,
    run,
    share,
    used,
    write_out,
)


def default_target(head_dim: int) -> Target:
    """Sizes that fit the registers, and 227 KiB of shared memory."""
    if head_dim > 64:
        return Target()
    return Target(
        forward=Blocks(block=128, stages=4, tiles=2),
        query_gradient=Blocks(block=128, stages=3, tiles=2),
        key_value_gradient=Blocks(block=64, stages=4, tiles=2),
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
    out_BxLxHxC, logsumexp_BxHxL = _outputs(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, target=target)
    out_BxLxHxC = checkpoint_name(out_BxLxHxC, RESIDUAL_NAME)
    logsumexp_BxHxL = checkpoint_name(logsumexp_BxHxL, RESIDUAL_NAME)
    return out_BxLxHxC, (q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, out_BxLxHxC, logsumexp_BxHxL)


def _backward(
    target: Target, kept: tuple[Any, ...], d_out_BxLxHxC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    return *_gradients(kept, d_out_BxLxHxC, target=target), None


packed_attention.defvjp(_forward, _backward)


# Jitted, so that the kernels are lowered once and not once for each layer.
@functools.partial(jax.jit, static_argnames="target")
def _outputs(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, starts_BxL: jax.Array, *, target: Target
) -> tuple[jax.Array, jax.Array]:
    """(outputs, log-sum-exp of each query's scores, in units of log2)."""
    batch, length, heads, head_dim = q_BxLxHxC.shape
    blocks, dtype = target.forward, q_BxLxHxC.dtype
    halves = blocks.tiles * COMPUTE_WARPGROUPS
    out_BxLxHxC, logsumexp_BxHxL = run(
        _forward_kernel,
        target,
        blocks,
        heads,
        (_key_blocks(starts_BxL, blocks), starts_BxL, q_BxLxHxC, k_BxLxKxC, v_BxLxKxC),
        outputs=(q_BxLxHxC, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
        scratch={
            "q_smem": matrices(halves, blocks.rows, head_dim, dtype),
            "starts_smem": plgpu.SMEM((halves, blocks.rows), jnp.int32),
            "k_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "v_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "out_smem": matrices(COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            "logsumexp_smem": plgpu.SMEM((COMPUTE_WARPGROUPS, blocks.rows), jnp.float32),
            "tile_ready": plgpu.Barrier(num_arrivals=2 * COMPUTE_WARPGROUPS, num_barriers=blocks.tiles),
            "k_ready": plgpu.Barrier(num_barriers=blocks.stages),
            "v_ready": plgpu.Barrier(num_barriers=blocks.stages),
            "k_used": used(blocks.stages),
            "v_used": used(blocks.stages),
            "turn": plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
        },
    )
    return out_BxLxHxC, logsumexp_BxHxL


@functools.partial(jax.jit, static_argnames="target")
def _gradients(
    kept: tuple[jax.Array, ...], d_out_BxLxHxC: jax.Array, *, target: Target
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, starts_BxL, out_BxLxHxC, logsumexp_BxHxL = kept
    heads, head_dim = q_BxLxHxC.shape[2:]
    kv_heads, dtype = k_BxLxKxC.shape[2], q_BxLxHxC.dtype
    # Softmax's gradient subtracts the weights' mean of the scores' gradients, which is (arXiv 2205.14135, B.4) this:
    mean_BxLxH = jnp.sum(d_out_BxLxHxC.astype(jnp.float32) * out_BxLxHxC.astype(jnp.float32), axis=-1)
    mean_BxHxL = mean_BxLxH.swapaxes(1, 2)
    arrays = (starts_BxL, q_BxLxHxC, d_out_BxLxHxC, logsumexp_BxHxL, mean_BxHxL, k_BxLxKxC, v_BxLxKxC)

    blocks = target.query_gradient
    halves = blocks.tiles * COMPUTE_WARPGROUPS
    (d_q_BxLxHxC,) = run(
        _query_gradient_kernel,
        target,
        blocks,
        heads,
        (_key_blocks(starts_BxL, blocks), *arrays),
        outputs=(q_BxLxHxC,),
        scratch={
            "q_smem": matrices(halves, blocks.rows, head_dim, dtype),
            "d_out_smem": matrices(halves, blocks.rows, head_dim, dtype),
            "starts_smem": plgpu.SMEM((halves, blocks.rows), jnp.int32),
            "logsumexp_smem": plgpu.SMEM((halves, blocks.rows), jnp.float32),
            "mean_smem": plgpu.SMEM((halves, blocks.rows), jnp.float32),
            "k_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "v_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "d_q_smem": matrices(COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            "tile_ready": plgpu.Barrier(num_arrivals=5 * COMPUTE_WARPGROUPS, num_barriers=blocks.tiles),
            "ready": plgpu.Barrier(num_arrivals=2, num_barriers=blocks.stages),
            "used": used(blocks.stages),
        },
    )

    blocks = target.key_value_gradient
    halves = blocks.tiles * COMPUTE_WARPGROUPS
    d_k_BxLxKxC, d_v_BxLxKxC = run(
        _key_value_gradient_kernel,
        target,
        blocks,
        kv_heads,
        (_query_blocks(starts_BxL, blocks), *arrays),
        outputs=(k_BxLxKxC, v_BxLxKxC),
        scratch={
            "k_smem": matrices(halves, blocks.rows, head_dim, dtype),
            "v_smem": matrices(halves, blocks.rows, head_dim, dtype),
            "q_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "d_out_smem": matrices(blocks.stages, blocks.block, head_dim, dtype),
            "starts_smem": plgpu.SMEM((blocks.stages, blocks.block), jnp.int32),
            "logsumexp_smem": plgpu.SMEM((blocks.stages, blocks.block), jnp.float32),
            "mean_smem": plgpu.SMEM((blocks.stages, blocks.block), jnp.float32),
            "d_k_smem": matrices(COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            "d_v_smem": matrices(COMPUTE_WARPGROUPS, blocks.rows, head_dim, dtype),
            "tile_ready": plgpu.Barrier(num_arrivals=2 * COMPUTE_WARPGROUPS, num_barriers=blocks.tiles),
            "ready": plgpu.Barrier(num_arrivals=5, num_barriers=blocks.stages),
            "used": used(blocks.stages),
        },
    )
    return d_q_BxLxHxC, d_k_BxLxKxC, d_v_BxLxKxC


# Which blocks a tile needs, as int32 numbers_BxIx3: its far block, its steps, and how many of them, the first ones, are
# masked.


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


def _forward_kernel(
    numbers_ref, starts_ref, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, *, blocks, programs, on, **smem
):
    groups, scale = q_ref.shape[2] // k_ref.shape[2], _scale(q_ref)
    turn, k_ready, v_ready, k_used, v_used = (smem[x] for x in ("turn", "k_ready", "v_ready", "k_used", "v_used"))
    warpgroup = lax.axis_index("warpgroup")

    def end_turn() -> None:
        if blocks.take_turns:
            plgpu.barrier_arrive(turn)

    def await_turn() -> None:
        if blocks.take_turns:
            plgpu.barrier_wait(turn)

    def pass_turn() -> None:
        end_turn()
        await_turn()

    def compute(work: Work) -> None:
        steps, half = work.steps, work.half(warpgroup)
        plgpu.barrier_wait(smem["tile_ready"].at[work.slot])
        q_smem = smem["q_smem"].at[half]
        starts_T = on.numbers(smem["starts_smem"].at[half], axis=0)
        plgpu.barrier_wait(k_ready.at[work.slot_of(0)])
        pl.when(warpgroup == 1)(pass_turn)

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
            weighted_TxC, highest_T, total_T = sums
            slot = work.slot_of(step)

            def add_scores(scores_ref: Any) -> None:
                on.multiply_transposed(scores_ref, q_smem, smem["k_smem"].at[slot])
                pass_turn()

            (scores_TxS,) = on.accumulate(add_scores, on.full((blocks.rows, blocks.block), 0.0))
            plgpu.barrier_arrive(k_used.at[slot])
            if masked:
                first_key = work.block_of(step) * blocks.block
                scores_TxS = _masked(on, scores_TxS, starts_T, work.first(warpgroup), first_key, keys_axis=1)
            new_highest_T = jnp.maximum(highest_T, jnp.max(scores_TxS, axis=1) * scale)
            shrink_T = jnp.exp2(highest_T - new_highest_T)
            weights_TxS = jnp.exp2(scores_TxS * scale - along(new_highest_T, scores_TxS, 0))
            weighted_TxC *= along(shrink_T, weighted_TxC, 0)
            total_T = total_T * shrink_T + jnp.sum(weights_TxS, axis=1)
            narrow_TxS = weights_TxS.astype(v_ref.dtype)
            weighted_TxC, total_T, new_highest_T, narrow_TxS = lax.optimization_barrier(
                (weighted_TxC, total_T, new_highest_T, narrow_TxS)
            )
            end_turn()  # done with the softmax
            plgpu.barrier_wait(v_ready.at[slot])
            await_turn()  # the other warpgroup has begun its own

            def add_values(sum_ref: Any) -> None:
                on.multiply(sum_ref, narrow_TxS, smem["v_smem"].at[slot])

                @pl.when(step + 1 < steps)
                def _await_next() -> None:
                    plgpu.barrier_wait(k_ready.at[work.slot_of(step + 1)])

            (weighted_TxC,) = on.accumulate(add_values, weighted_TxC)
            plgpu.barrier_arrive(v_used.at[slot])
            return weighted_TxC, new_highest_T, total_T

        sums = (
            on.full((blocks.rows, q_ref.shape[3]), 0.0),
            on.full((blocks.rows,), NO_SCORE_YET),
            on.full((blocks.rows,), 0.0),
        )
        weighted_TxC, highest_T, total_T = _masked_then_clean(add_block, work, sums)
        plgpu.barrier_arrive(smem["tile_used"].at[work.slot])
        pl.when(warpgroup == 0)(pass_turn)

        total_T = jnp.where(total_T > 0, total_T, 1.0)  # 0 for padding alone
        queries = pl.ds(work.first(warpgroup), blocks.rows)
        write_out(
            (
                weighted_TxC * along(1 / total_T, weighted_TxC, 0),
                smem["out_smem"].at[warpgroup],
                out_ref.at[work.row, queries, work.head],
            ),
            (
                highest_T + jnp.log(total_T) * LOG2_E,
                smem["logsumexp_smem"].at[warpgroup],
                logsumexp_ref.at[work.row, work.head, queries],
            ),
        )

    def tile_copies(work: Work) -> tuple[Copy, ...]:
        sources = {
            "q_smem": lambda queries: q_ref.at[work.row, queries, work.head],
            "starts_smem": lambda queries: starts_ref.at[work.row, queries],
        }
        return work.copies_of_halves(sources, smem)

    def step_copies(work: Work, step: Any) -> tuple[tuple[Copy, ...], ...]:
        keys = pl.ds(work.block_of(step) * blocks.block, blocks.block)
        place, slot = (work.row, keys, lax.div(work.head, jnp.int32(groups))), work.slot_of(step)
        return (
            ((k_ref.at[place], smem["k_smem"].at[slot], k_ready.at[slot]),),
            ((v_ref.at[place], smem["v_smem"].at[slot], v_ready.at[slot]),),
        )

    mine, work_at = share(numbers_ref, heads=q_ref.shape[2], programs=programs, groups=1, back=1, blocks=blocks)
    compute_and_copy(mine, work_at, blocks, compute, tile_copies, step_copies, smem["tile_used"], (k_used, v_used))


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
    programs,
    on,
    **smem,
):
    groups, scale = q_ref.shape[2] // k_ref.shape[2], _scale(q_ref)
    warpgroup = lax.axis_index("warpgroup")

    def compute(work: Work) -> None:
        half = work.half(warpgroup)
        plgpu.barrier_wait(smem["tile_ready"].at[work.slot])
        q_smem, d_out_smem = (smem[name].at[half] for name in ("q_smem", "d_out_smem"))
        starts_T, logsumexp_T, mean_T = (
            on.numbers(smem[name].at[half], axis=0) for name in ("starts_smem", "logsumexp_smem", "mean_smem")
        )

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
            slot = work.slot_of(step)
            k_smem, v_smem = smem["k_smem"].at[slot], smem["v_smem"].at[slot]
            plgpu.barrier_wait(smem["ready"].at[slot])

            def add_gradients(d_q_ref: Any, scores_ref: Any, d_weights_ref: Any) -> None:
                on.multiply_transposed(scores_ref, q_smem, k_smem)
                on.multiply_transposed(d_weights_ref, d_out_smem, v_smem)
                scores_TxS = on.finished(scores_ref, still_running=1)
                if masked:
                    first_key = work.block_of(step) * blocks.block
                    scores_TxS = _masked(on, scores_TxS, starts_T, work.first(warpgroup), first_key, keys_axis=1)
                weights_TxS = jnp.exp2(scores_TxS * scale - along(logsumexp_T, scores_TxS, 0))
                d_weights_TxS = on.finished(d_weights_ref)
                d_scores_TxS = weights_TxS * (d_weights_TxS - along(mean_T, d_weights_TxS, 0))
                on.multiply(d_q_ref, d_scores_TxS.astype(k_ref.dtype), k_smem)

            zeros_TxS = on.full((blocks.rows, blocks.block), 0.0)
            d_q_TxC, _, _ = on.accumulate(add_gradients, *sums, zeros_TxS, zeros_TxS)
            plgpu.barrier_arrive(smem["used"].at[slot])
            return (d_q_TxC,)

        zeros_TxC = on.full((blocks.rows, q_ref.shape[3]), 0.0)
        (d_q_TxC,) = _masked_then_clean(add_block, work, (zeros_TxC,))
        plgpu.barrier_arrive(smem["tile_used"].at[work.slot])
        to_ref = d_q_ref.at[work.row, pl.ds(work.first(warpgroup), blocks.rows), work.head]
        write_out((d_q_TxC * q_ref.shape[3] ** -0.5, smem["d_q_smem"].at[warpgroup], to_ref))

    def tile_copies(work: Work) -> tuple[Copy, ...]:
        sources = {
            "q_smem": lambda queries: q_ref.at[work.row, queries, work.head],
            "d_out_smem": lambda queries: d_out_ref.at[work.row, queries, work.head],
            "starts_smem": lambda queries: starts_ref.at[work.row, queries],
            "logsumexp_smem": lambda queries: logsumexp_ref.at[work.row, work.head, queries],
            "mean_smem": lambda queries: mean_ref.at[work.row, work.head, queries],
        }
        return work.copies_of_halves(sources, smem)

    def step_copies(work: Work, step: Any) -> tuple[tuple[Copy, ...], ...]:
        keys = pl.ds(work.block_of(step) * blocks.block, blocks.block)
        place, slot = (work.row, keys, lax.div(work.head, jnp.int32(groups))), work.slot_of(step)
        ready = smem["ready"].at[slot]
        return (
            (
                (k_ref.at[place], smem["k_smem"].at[slot], ready),
                (v_ref.at[place], smem["v_smem"].at[slot], ready),
            ),
        )

    mine, work_at = share(numbers_ref, heads=q_ref.shape[2], programs=programs, groups=1, back=1, blocks=blocks)
    compute_and_copy(mine, work_at, blocks, compute, tile_copies, step_copies, smem["tile_used"], (smem["used"],))


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
    programs,
    on,
    **smem,
):
    groups, scale, dtype = q_ref.shape[2] // k_ref.shape[2], _scale(q_ref), q_ref.dtype
    warpgroup = lax.axis_index("warpgroup")

    def compute(work: Work) -> None:
        half = work.half(warpgroup)
        plgpu.barrier_wait(smem["tile_ready"].at[work.slot])
        k, v = smem["k_smem"].at[half], smem["v_smem"].at[half]
        if blocks.tile_in_registers:
            k, v = on.matrix(k), on.matrix(v)

        def add_block(step: Any, sums: tuple[jax.Array, ...], masked: bool, before: Any) -> tuple[jax.Array, ...]:
            slot = work.slot_of(before + step)
            q_smem, d_out_smem = smem["q_smem"].at[slot], smem["d_out_smem"].at[slot]
            plgpu.barrier_wait(smem["ready"].at[slot])

            def add_gradients(d_k_ref: Any, d_v_ref: Any, scores_ref: Any, d_weights_ref: Any) -> None:
                on.multiply_transposed(scores_ref, k, q_smem)
                on.multiply_transposed(d_weights_ref, v, d_out_smem)
                scores_SxT = on.finished(scores_ref, still_running=1)
                if masked:
                    starts_T = on.numbers(smem["starts_smem"].at[slot], axis=1)
                    first_query = work.block_of(step) * blocks.block
                    scores_SxT = _masked(on, scores_SxT, starts_T, first_query, work.first(warpgroup), keys_axis=0)
                logsumexp_T = on.numbers(smem["logsumexp_smem"].at[slot], axis=1)
                weights_SxT = jnp.exp2(scores_SxT * scale - along(logsumexp_T, scores_SxT, 1))
                on.multiply(d_v_ref, weights_SxT.astype(dtype), d_out_smem)
                d_weights_SxT = on.finished(d_weights_ref, still_running=1)
                mean_T = on.numbers(smem["mean_smem"].at[slot], axis=1)
                d_scores_SxT = weights_SxT * (d_weights_SxT - along(mean_T, d_weights_SxT, 1))
                on.multiply(d_k_ref, d_scores_SxT.astype(dtype), q_smem)

            zeros_SxT = on.full((blocks.rows, blocks.block), 0.0)
            d_k_SxC, d_v_SxC, _, _ = on.accumulate(add_gradients, *sums, zeros_SxT, zeros_SxT)
            plgpu.barrier_arrive(smem["used"].at[slot])
            return d_k_SxC, d_v_SxC

        def add_head(group: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return _masked_then_clean(functools.partial(add_block, before=group * work.steps), work, sums)

        zeros_SxC = on.full((blocks.rows, q_ref.shape[3]), 0.0)
        sums = (zeros_SxC, zeros_SxC)
        d_k_SxC, d_v_SxC = add_head(0, sums) if groups == 1 else lax.fori_loop(0, groups, add_head, sums)
        plgpu.barrier_arrive(smem["tile_used"].at[work.slot])
        place = (work.row, pl.ds(work.first(warpgroup), blocks.rows), work.head)
        write_out(
            (d_k_SxC * q_ref.shape[3] ** -0.5, smem["d_k_smem"].at[warpgroup], d_k_ref.at[place]),
            (d_v_SxC, smem["d_v_smem"].at[warpgroup], d_v_ref.at[place]),
        )

    def tile_copies(work: Work) -> tuple[Copy, ...]:
        sources = {
            "k_smem": lambda keys: k_ref.at[work.row, keys, work.head],
            "v_smem": lambda keys: v_ref.at[work.row, keys, work.head],
        }
        return work.copies_of_halves(sources, smem)

    def step_copies(work: Work, step: Any) -> tuple[tuple[Copy, ...], ...]:
        head = work.head * groups + lax.div(step, work.steps)
        queries = pl.ds(work.block_of(lax.rem(step, work.steps)) * blocks.block, blocks.block)
        slot = work.slot_of(step)
        sources = {
            "q_smem": q_ref.at[work.row, queries, head],
            "d_out_smem": d_out_ref.at[work.row, queries, head],
            "starts_smem": starts_ref.at[work.row, queries],
            "logsumexp_smem": logsumexp_ref.at[work.row, head, queries],
            "mean_smem": mean_ref.at[work.row, head, queries],
        }
        return (tuple((ref, smem[name].at[slot], smem["ready"].at[slot]) for name, ref in sources.items()),)

    mine, work_at = share(numbers_ref, heads=k_ref.shape[2], programs=programs, groups=groups, back=-1, blocks=blocks)
    compute_and_copy(mine, work_at, blocks, compute, tile_copies, step_copies, smem["tile_used"], (smem["used"],))


def _masked_then_clean(add_block: Callable[..., Any], work: Work, sums: Any) -> Any:
    sums = lax.fori_loop(0, work.masked_steps, functools.partial(add_block, masked=True), sums)
    return lax.fori_loop(work.masked_steps, work.steps, functools.partial(add_block, masked=False), sums)


def _masked(
    on: Machine, scores: jax.Array, starts: jax.Array, first_query: Any, first_key: Any, keys_axis: int
) -> jax.Array:
    """A key counts from its query's segment start to the query itself."""
    queries, keys = (
        first + on.indices(scores.shape, axis) for first, axis in ((first_query, 1 - keys_axis), (first_key, keys_axis))
    )
    allowed = (keys >= along(starts, scores, 1 - keys_axis)) & (keys <= queries)
    return jnp.where(allowed, scores, MASKED_SCORE)


def _scale(q_ref: Any) -> float:
    return q_ref.shape[-1] ** -0.5 * LOG2_E
