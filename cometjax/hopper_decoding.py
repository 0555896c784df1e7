"""Attention of one decoding step for Hopper GPUs: a new token per row, to its prompt and to what its sample drew.

Both pools of `cometjax.decoding` are read where they lie, each row's keys up to its own length, and the new token's key
and value are written into the sample's slot. What a step waits for is memory: programs are small, several run on each
multiprocessor, and each has the tensor memory unit (TMA) fetch tiles of keys and values ahead of what it computes.

Two kinds of programs share one launch, and the few partial sums of each query are put together behind it:
- A prompt's keys meet all queries of its block in matrix products (wgmma), as in cometjax/hopper_kernels.py.
- A sample's own keys meet the queries of one row in plain arithmetic: a matrix product would be padding for the most
  part. Each of the 64 rows of a tile sums apart from the others; they come together once, at the program's end.

Scores are in units of log2.

Dimensions: R rows, Q blocks, S rows of a block, H query heads, K key/value heads, G = H / K, C head dim, X tokens of a
prompt slot, Y tokens of a sample slot, P parts of a row's tokens; T the 64 rows of a tile: keys, and in a prompt's
program queries, with U keys.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from cometjax.hopper_programs import LOG2_E, MASKED_SCORE, NO_SCORE_YET, Machine, along, machine, matrices, matrix
from cometjax.packed import Heads, hopper_refuses
from cometjax.sharding import Device

_TILE_ROWS = 64  # of a warpgroup's accumulator
_FEW_HEADS = 8  # columns of the narrowest matrix product
_SUMS = 128  # columns of sums that a sample's program has registers for
_REDUCTION_BYTES = 4096  # shared memory in which sums of columns cross warps; 2 KiB more take a barrier less
_LEAST_TILES = 4  # of a part: each costs a program and partial sums

Cache = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens of a tile, how many tiles a program holds at a time, those on their way included; how many `programs`
    keep a GPU busy (five on each of 132 multiprocessors): where there are fewer, a row's tokens are shared out.

    `interpret` (plgpu.InterpretGPUParams) runs the kernel's definition on a CPU, for tests.
    """

    tile: int = 64
    stages: int = 2
    programs: int = 660
    interpret: Any = None


def sizes_for(heads: Heads, cache_dtype: str, chunk_steps: int, on: Device) -> Sizes | None:
    """What the kernel runs with on a device; None where it cannot run.

    Chunks must fill tiles, or tiles chunks.
    """
    sizes = Sizes()
    fits = sizes.tile % chunk_steps == 0 or chunk_steps % sizes.tile == 0
    if on.platform != "gpu" or hopper_refuses(heads, on.kind) or cache_dtype != heads.dtype or not fits:
        return None
    return sizes


def whole_chunks(chunks: int, chunk_steps: int, sizes: Sizes) -> int:
    """At least so many chunks, that fill whole tiles."""
    return chunks + -chunks % max(1, sizes.tile // chunk_steps)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["prefix_slot_Q", "prefix_length_Q", "slot_R", "length_R"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Places:
    """Slots and lengths of blocks' prompts and of rows' samples, before the new token.

    A row whose slot is not there gets some output, and nothing is written for it.
    """

    prefix_slot_Q: jax.Array
    prefix_length_Q: jax.Array
    slot_R: jax.Array
    length_R: jax.Array


@dataclasses.dataclass(frozen=True)
class _Share:
    """How one kind's queries are shared out: each program has `rows` x `heads` of them, and a part of the tokens."""

    parts: int
    rows: int
    row_tiles: int
    heads: int
    head_tiles: int

    @property
    def programs(self) -> int:
        return self.parts * self.row_tiles * self.head_tiles

    def at(self, index: Any) -> tuple[Any, Any, Any]:
        """(part, tile of rows, tile of heads) of a program; heads fastest."""
        place, head_tile = _divided(index, self.head_tiles)
        part, row_tile = _divided(place, self.row_tiles)
        return part, row_tile, head_tile


# Jitted, so that the kernel is lowered once and not once for each layer.
@functools.partial(jax.jit, static_argnames="sizes")
def attend(
    q_RxHxC: jax.Array,
    k_RxKxC: jax.Array,
    v_RxKxC: jax.Array,
    prompts: Cache,
    samples: Cache,
    places: Places,
    sizes: Sizes,
) -> tuple[jax.Array, Cache]:
    """(out_RxHxC, the samples' pool with the new keys and values), of 16-bit arrays; head dim 64 or 128.

    Queries are not scaled yet. prompts: [slots, K, X, C]; samples: [slots, K, Y, C], donated to the kernel; X and Y are
    multiples of `sizes.tile`.
    """
    blocks, (num_rows, heads, head_dim), dtype = len(places.prefix_slot_Q), q_RxHxC.shape, q_RxHxC.dtype
    groups = heads // k_RxKxC.shape[1]
    # A prompt's program takes whole tiles of its block's rows: eight rows at least, as shared memory is laid out.
    block = num_rows // blocks
    whole = block + -block % (8 if block <= _TILE_ROWS else _TILE_ROWS)
    rows = min(whole, _TILE_ROWS)
    of_prompts = _shared(rows, blocks * whole // rows, heads, _divisor(groups, _TILE_ROWS // rows), prompts, sizes)
    of_samples = _shared(1, num_rows, heads, _divisor(groups, _SUMS // head_dim), samples, sizes)
    q_by_block = q_RxHxC.reshape(blocks, block, heads, head_dim)
    q_by_block = jnp.pad(q_by_block, ((0, 0), (0, whole - block), (0, 0), (0, 0))).reshape(-1, heads, head_dim)
    q_in_fews = jnp.pad(q_RxHxC, ((0, 0), (0, -heads % _FEW_HEADS), (0, 0)))

    on, (parts, row_tiles, head_tiles) = machine(sizes.interpret), _tiles(of_prompts)
    kernel = functools.partial(_kernel, of_prompts=of_prompts, of_samples=of_samples, sizes=sizes, on=on)
    scratch = {
        "k_smem": matrices(sizes.stages, sizes.tile, head_dim, dtype),
        "v_smem": matrices(sizes.stages, sizes.tile, head_dim, dtype),
        "q_smem": matrix(_TILE_ROWS, head_dim, dtype),
        "k_ready": plgpu.Barrier(num_barriers=sizes.stages),
        "v_ready": plgpu.Barrier(num_barriers=sizes.stages),
        "q_ready": plgpu.Barrier(num_arrivals=of_prompts.heads),
        "few_ready": plgpu.Barrier(),
    }
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # References to the pools: the kernel writes to them, and they are its outputs without a copy.
    pools = [jax.new_ref(pool, memory_space=plgpu.GMEM) for pool in samples]
    sums = pl.kernel(
        lambda *refs: pl.run_scoped(functools.partial(kernel, *refs), **scratch),
        out_type=[
            jax.ShapeDtypeStruct((parts, *q_by_block.shape), dtype),
            float32((parts, row_tiles, head_tiles, _TILE_ROWS)),
            float32((parts, row_tiles, head_tiles, _TILE_ROWS)),
            float32((of_samples.parts, *q_RxHxC.shape)),
            float32((of_samples.parts, num_rows, heads)),
            float32((of_samples.parts, num_rows, heads)),
        ],
        mesh=plgpu.Mesh(grid=(of_prompts.programs + of_samples.programs,), grid_names=("program",)),
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=_REDUCTION_BYTES),
        interpret=sizes.interpret or False,
        name="decoding_attention",
    )(
        *pools,
        *prompts,
        q_in_fews,
        q_by_block,
        k_RxKxC,
        v_RxKxC,
        places.prefix_slot_Q,
        places.prefix_length_Q,
        places.slot_R,
        places.length_R,
    )

    def by_row(x_PxTxHx64: jax.Array) -> jax.Array:
        shape = (parts, row_tiles, head_tiles, of_prompts.heads, rows)
        x = x_PxTxHx64[..., : rows * of_prompts.heads].reshape(shape).transpose(0, 1, 4, 2, 3)
        return of_rows(x.reshape(parts, blocks * whole, heads))

    def of_rows(x: jax.Array) -> jax.Array:
        return x.reshape(parts, blocks, whole, *x.shape[2:])[:, :, :block].reshape(parts, num_rows, *x.shape[2:])

    prompt = (of_rows(sums[0]), by_row(sums[1]), by_row(sums[2]))
    out_RxHxC = _put_together(prompt, tuple(sums[3:])).astype(dtype)
    return out_RxHxC, (jax.freeze(pools[0]), jax.freeze(pools[1]))


def _shared(rows: int, row_tiles: int, heads: int, of_program: int, pool: Cache, sizes: Sizes) -> _Share:
    head_tiles = heads // of_program
    tiles = pool[0].shape[2] // sizes.tile
    parts = min(-(-sizes.programs // (row_tiles * head_tiles)), tiles // _LEAST_TILES)
    return _Share(max(1, parts), rows, row_tiles, of_program, head_tiles)


def _divisor(number: int, most: int) -> int:
    return max(x for x in range(1, max(1, most) + 1) if number % x == 0)


def _tiles(share: _Share) -> tuple[int, int, int]:
    return share.parts, share.row_tiles, share.head_tiles


def _put_together(prompt: tuple[jax.Array, ...], own: tuple[jax.Array, ...]) -> jax.Array:
    """float32 out_RxHxC of partial sums: (weighted means PxRxHxC, highest scores PxRxH, sums of weights PxRxH) of the
    prompt, the same with weighted sums for means of the rows' own tokens."""
    (mean_PxRxHxC, top_PxRxH, total_PxRxH), (sum_PxRxHxC, own_top_PxRxH, own_total_PxRxH) = prompt, own
    top_RxH = jnp.maximum(top_PxRxH.max(0), own_top_PxRxH.max(0))
    weight_PxRxH = total_PxRxH * jnp.exp2(top_PxRxH - top_RxH)
    own_weight_PxRxH = jnp.exp2(own_top_PxRxH - top_RxH)
    total_RxH = weight_PxRxH.sum(0) + (own_total_PxRxH * own_weight_PxRxH).sum(0)
    out_RxHxC = (mean_PxRxHxC * weight_PxRxH[..., None]).sum(0) + (sum_PxRxHxC * own_weight_PxRxH[..., None]).sum(0)
    return out_RxHxC / total_RxH[..., None]


class _Refs(NamedTuple):
    """References to arrays in the device's memory: inputs, then outputs; the kernel writes to `k` and `v`."""

    k: Any
    v: Any
    prompt_k: Any
    prompt_v: Any
    q: Any
    q_by_block: Any
    new_k: Any
    new_v: Any
    prefix_slot: Any
    prefix_length: Any
    slot: Any
    length: Any
    prompt_out: Any
    prompt_highest: Any
    prompt_total: Any
    out: Any
    highest: Any
    total: Any


def _kernel(*refs, of_prompts, of_samples, sizes, on, **smem):
    program = lax.axis_index("program")

    @pl.when(program < of_prompts.programs)
    def _prompt() -> None:
        _prompt_program(program, _Refs(*refs), of_prompts, sizes, on, smem)

    @pl.when(program >= of_prompts.programs)
    def _sample() -> None:
        _sample_program(program - of_prompts.programs, _Refs(*refs), of_samples, sizes, on, smem)


def _prompt_program(
    program: Any, refs: _Refs, of_prompts: _Share, sizes: Sizes, on: Machine, smem: dict[str, Any]
) -> None:
    (_, num_heads, head_dim), dtype = refs.q_by_block.shape, refs.q.dtype
    groups, scale = num_heads // refs.k.shape[1], head_dim**-0.5 * LOG2_E
    zeros_TxC = functools.partial(on.full, (_TILE_ROWS, head_dim), 0.0)
    part, row_tile, head_tile = of_prompts.at(program)
    first_row, first_head = row_tile * of_prompts.rows, head_tile * of_prompts.heads
    block = lax.div(row_tile, jnp.int32(of_prompts.row_tiles // refs.prefix_slot.shape[0]))
    head = lax.div(first_head, jnp.int32(groups))
    slot = jnp.minimum(refs.prefix_slot[block], refs.prompt_k.shape[0] - 1)
    length = refs.prefix_length[block]
    q_smem = smem["q_smem"]
    queries = [
        (
            (pl.ds(first_row, of_prompts.rows), first_head + i),
            q_smem.at[pl.ds(i * of_prompts.rows, of_prompts.rows)],
        )
        for i in range(of_prompts.heads)
    ]
    for place, of_head_smem in queries:
        plgpu.copy_gmem_to_smem(refs.q_by_block.at[place], of_head_smem, smem["q_ready"])
    tiles = _Tiles(
        lambda tokens: refs.prompt_k.at[slot, head, tokens],
        lambda tokens: refs.prompt_v.at[slot, head, tokens],
        *_part_of(length, part, of_prompts.parts, sizes.tile),
        sizes,
        smem,
    )
    tiles.begin()
    plgpu.barrier_wait(smem["q_ready"])

    def add(
        sums: tuple[jax.Array, ...], first_key: Any, k_smem: Any, await_values: Callable[[], Any]
    ) -> tuple[jax.Array, ...]:
        weighted_TxC, highest_T, total_T = sums
        (scores_TxU,) = on.accumulate(
            lambda scores_ref: on.multiply_transposed(scores_ref, q_smem, k_smem),
            on.full((_TILE_ROWS, sizes.tile), 0.0),
        )
        keys_TxU = first_key + on.indices(scores_TxU.shape, axis=1)
        scores_TxU = jnp.where(keys_TxU < length, scores_TxU * scale, MASKED_SCORE)
        new_highest_T = jnp.maximum(highest_T, jnp.max(scores_TxU, axis=1))
        shrink_T = jnp.exp2(highest_T - new_highest_T)
        weights_TxU = jnp.exp2(scores_TxU - along(new_highest_T, scores_TxU, 0))
        total_T = total_T * shrink_T + jnp.sum(weights_TxU, axis=1)
        weighted_TxC *= along(shrink_T, weighted_TxC, 0)
        v_smem = await_values()
        (weighted_TxC,) = on.accumulate(
            lambda sum_ref: on.multiply(sum_ref, weights_TxU.astype(dtype), v_smem), weighted_TxC
        )
        return weighted_TxC, new_highest_T, total_T

    weighted_TxC, highest_T, total_T = tiles.add_all(
        add, (zeros_TxC(), on.full((_TILE_ROWS,), NO_SCORE_YET), on.full((_TILE_ROWS,), 0.0))
    )
    refs.prompt_highest[part, row_tile, head_tile] = highest_T
    refs.prompt_total[part, row_tile, head_tile] = total_T
    divisor_T = jnp.where(total_T > 0, total_T, 1.0)  # 0 where the part has no token
    q_smem[...] = (weighted_TxC * along(1 / divisor_T, weighted_TxC, 0)).astype(dtype)
    plgpu.commit_smem()
    for place, of_head_smem in queries:
        plgpu.copy_smem_to_gmem(of_head_smem, refs.prompt_out.at[part, *place])
    plgpu.wait_smem_to_gmem(0)


def _sample_program(
    program: Any, refs: _Refs, of_samples: _Share, sizes: Sizes, on: Machine, smem: dict[str, Any]
) -> None:
    _, num_heads, head_dim = refs.q_by_block.shape
    groups, scale = num_heads // refs.k.shape[1], head_dim**-0.5 * LOG2_E
    zeros_TxC = functools.partial(on.full, (_TILE_ROWS, head_dim), 0.0)
    part, row, head_tile = of_samples.at(program)
    first_head = head_tile * of_samples.heads
    head, group = _divided(first_head, groups)
    slot, length = refs.slot[row], refs.length[row]
    slot_there = jnp.minimum(slot, refs.k.shape[0] - 1)
    tiles = _Tiles(
        lambda tokens: refs.k.at[slot_there, head, tokens],
        lambda tokens: refs.v.at[slot_there, head, tokens],
        *_part_of(length, part, of_samples.parts, sizes.tile),
        sizes,
        smem,
    )
    few, first_of_few = _divided(first_head, _FEW_HEADS)
    q_smem = smem["q_smem"].at[pl.ds(0, _FEW_HEADS)]
    few_heads = pl.ds(few * _FEW_HEADS, _FEW_HEADS)
    plgpu.copy_gmem_to_smem(refs.q.at[row, few_heads], q_smem, smem["few_ready"])
    tiles.begin()
    new_k_C, new_v_C = (on.far_numbers(ref.at[row, head], axis=1) for ref in (refs.new_k, refs.new_v))
    rows_T = on.row_indices(_TILE_ROWS)

    def add(
        of_heads: tuple[tuple[jax.Array, ...], ...], first_key: Any, k_smem: Any, await_values: Callable[[], Any]
    ) -> tuple[tuple[jax.Array, ...], ...]:
        parts_of_tile = range(0, sizes.tile, _TILE_ROWS)
        scores: list[list[jax.Array]] = [[] for _ in queries]
        for at in parts_of_tile:
            keys_smem = k_smem.at[pl.ds(at, _TILE_ROWS)]
            (scores_Tx8,) = on.accumulate(
                lambda scores_ref: on.multiply_transposed(scores_ref, keys_smem, q_smem),  # noqa: B023
                on.full((_TILE_ROWS, _FEW_HEADS), 0.0),
            )
            heads_Tx8 = on.indices(scores_Tx8.shape, axis=1)
            counts_T = first_key + at + rows_T < length
            for i, scores_of_head in enumerate(scores):
                scores_T = jnp.sum(jnp.where(heads_Tx8 == first_of_few + i, scores_Tx8, 0.0), axis=1)
                scores_of_head.append(jnp.where(counts_T, scores_T * scale, MASKED_SCORE))
        shrunk: list[tuple[jax.Array, ...]] = []
        weights: list[list[jax.Array]] = []
        for (weighted_TxC, highest_T, total_T), scores_of_head in zip(of_heads, scores, strict=True):
            new_highest_T = functools.reduce(jnp.maximum, scores_of_head, highest_T)
            shrink_T = jnp.exp2(highest_T - new_highest_T)
            weights.append([jnp.exp2(scores_T - new_highest_T) for scores_T in scores_of_head])
            total_T = functools.reduce(jnp.add, weights[-1], total_T * shrink_T)
            shrunk.append((weighted_TxC * along(shrink_T, weighted_TxC, 0), new_highest_T, total_T))
        v_smem = await_values()
        for i, at in enumerate(parts_of_tile):
            values_TxC = on.matrix(v_smem.at[pl.ds(at, _TILE_ROWS)]).astype(jnp.float32)
            shrunk = [
                (weighted_TxC + values_TxC * along(weights_of_head[i], values_TxC, 0), *others)
                for (weighted_TxC, *others), weights_of_head in zip(shrunk, weights, strict=True)
            ]
        return tuple(shrunk)

    def first_sums(q_C: jax.Array) -> tuple[jax.Array, ...]:
        # The new token counts once, in the first row of the first part; to the others its score is a first guess
        # at their highest.
        new_TxC = zeros_TxC()
        score_T = jnp.sum(along(new_k_C.astype(jnp.float32) * q_C, new_TxC, 1), axis=1)
        total_T = jnp.where(rows_T == jnp.where(part == 0, 0, -1), 1.0, 0.0)
        new_TxC = along(new_v_C.astype(jnp.float32), new_TxC, 1) * along(total_T, new_TxC, 0)
        return new_TxC, score_T, total_T

    queries = [
        on.far_numbers(refs.q.at[row, first_head + i], axis=1).astype(jnp.float32) * scale
        for i in range(of_samples.heads)
    ]
    sums_of_heads = tuple(first_sums(q_C) for q_C in queries)

    # Now, for the registers' sake: whoever reads the tile that it falls into does not count it.
    @pl.when((slot < refs.k.shape[0]) & (part == 0) & (group == 0))
    def _write() -> None:
        refs.k[slot, head, length] = new_k_C
        refs.v[slot, head, length] = new_v_C

    plgpu.barrier_wait(smem["few_ready"])
    of_heads = tiles.add_all(add, sums_of_heads)
    for i, (weighted_TxC, highest_T, total_T) in enumerate(of_heads):
        highest = jnp.max(highest_T)
        shrink_T = jnp.exp2(highest_T - highest)
        refs.highest[part, row, first_head + i] = highest
        refs.total[part, row, first_head + i] = jnp.sum(total_T * shrink_T)
        refs.out[part, row, first_head + i] = jnp.sum(weighted_TxC * along(shrink_T, weighted_TxC, 0), axis=0)


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Tiles of keys and values, `count` from the `first` on, on their way through shared memory."""

    keys_at: Callable[[Any], Any]
    values_at: Callable[[Any], Any]
    first: Any
    count: Any
    sizes: Sizes
    smem: dict[str, Any]

    def begin(self) -> None:
        """Have as many fetched as there is room for."""
        for step in range(self.sizes.stages):
            self._fetch(step)

    def add_all(self, add: Callable[..., Any], sums: Any) -> Any:
        """`sums` after `add` of every tile: of sums, the first key's position, keys in shared memory, and what gives
        the values there once they have come."""

        def add_tile(step: Any, sums: Any) -> Any:
            slot = lax.rem(step, jnp.int32(self.sizes.stages))

            def await_values() -> Any:
                plgpu.barrier_wait(self.smem["v_ready"].at[slot])
                return self.smem["v_smem"].at[slot]

            plgpu.barrier_wait(self.smem["k_ready"].at[slot])
            sums = add(sums, (self.first + step) * self.sizes.tile, self.smem["k_smem"].at[slot], await_values)
            self._fetch(step + self.sizes.stages)
            return sums

        return lax.fori_loop(0, self.count, add_tile, sums)

    def _fetch(self, step: Any) -> None:
        @pl.when(step < self.count)
        def _start() -> None:
            slot = lax.rem(jnp.int32(step), jnp.int32(self.sizes.stages))
            tokens = pl.ds((self.first + step) * self.sizes.tile, self.sizes.tile)
            for source, name in ((self.keys_at(tokens), "k"), (self.values_at(tokens), "v")):
                to_smem, ready = (self.smem[f"{name}_{of}"].at[slot] for of in ("smem", "ready"))
                plgpu.copy_gmem_to_smem(source, to_smem, ready)


def _part_of(length: Any, part: Any, parts: int, tile: int) -> tuple[Any, Any]:
    """(first tile, number of tiles) of one of the equal parts of a length."""
    tiles = lax.div(length + (tile - 1), jnp.int32(tile))
    share = lax.div(tiles + (parts - 1), jnp.int32(parts))
    first = part * share
    return first, jnp.clip(tiles - first, 0, share)


def _divided(number: Any, divisor: int) -> tuple[Any, Any]:
    return lax.div(number, jnp.int32(divisor)), lax.rem(number, jnp.int32(divisor))
