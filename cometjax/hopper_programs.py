"""Programs of a Hopper GPU that go over tiles one after another: two warpgroups compute, a third copies ahead of them.

What the kernels of cometjax/hopper_kernels.py have in common: their sizes, the order of their work, the rings of shared
memory through which blocks come in, and what they ask of the machine, be it a device or the interpreter.

Shared memory is filled by the tensor memory unit (TMA). Each slot of a ring has two barriers: `ready`, when its copies
have come, and `used`, when both compute warpgroups need them no more and the slot may be filled again.
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
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# Scores are in units of log2, so that the exponential is one instruction.
LOG2_E = math.log2(math.e)
# Finite, and below NO_SCORE_YET, so that a query that has met no key of its own yet sums zeros and no NaN.
MASKED_SCORE = -1e30
NO_SCORE_YET = -1e20

# jax 0.10 wants to be told which part of a reference to load; from 0.11 on that warns.
_ALL = ((),) if inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty else ()

COMPUTE_WARPGROUPS = 2
_MEMORY_WARPGROUP = COMPUTE_WARPGROUPS
_COMPUTE_REGISTERS, _MEMORY_REGISTERS = 240, 24  # of a thread; 3 x 168 at launch

Copy = tuple[Any, Any, Any]  # from, to, and the barrier that tells


@dataclasses.dataclass(frozen=True)
class Blocks:
    """One kernel's sizes.

    Positions of a warpgroup (`rows`; a tile is two) and of a step's block; how many steps' blocks (`stages`) and how
    many tiles shared memory holds at a time, those on their way included. `tile_in_registers`: gradients of keys and
    values multiply their tile from registers, and read less shared memory. `take_turns`: forward, one warpgroup
    multiplies while the other computes its softmax.
    """

    rows: int = 64
    block: int = 128
    stages: int = 2
    tiles: int = 1
    tile_in_registers: bool = False
    take_turns: bool = True

    def __post_init__(self) -> None:
        if self.tile % self.block:
            raise ValueError(f"a tile of {self.tile} positions is no multiple of blocks of {self.block}")

    @property
    def tile(self) -> int:
        """Positions of a program."""
        return COMPUTE_WARPGROUPS * self.rows

    @property
    def diagonal(self) -> int:
        """Blocks of the other side that lie on a tile's diagonal."""
        return self.tile // self.block


@dataclasses.dataclass(frozen=True)
class Target:
    """Sizes of the three kernels, and how many `programs` share the tiles.

    132: one for each multiprocessor of an H100 or H200; with as many as there are tiles, each does one.
    `interpret` (plgpu.InterpretGPUParams) runs the kernels' definition on a CPU, for tests.
    """

    forward: Blocks = Blocks(block=128, stages=2)
    query_gradient: Blocks = Blocks(block=64, stages=3)
    key_value_gradient: Blocks = Blocks(block=64, stages=2)
    programs: int = 132
    interpret: Any = None

    @property
    def tile(self) -> int:
        """What a row's length must be a multiple of."""
        return math.lcm(*(blocks.tile for blocks in (self.forward, self.query_gradient, self.key_value_gradient)))


@dataclasses.dataclass(frozen=True)
class Work:
    """One tile of one head, the `count`th of its program, and where in the rings of shared memory it finds its blocks.

    `groups` times its `steps` are done, for as many heads, after the `before` steps of the program's earlier tiles.
    """

    row: Any
    tile: Any
    head: Any
    far: Any
    steps: Any
    masked_steps: Any
    count: Any
    before: Any
    groups: int
    back: int
    blocks: Blocks

    @property
    def after(self) -> Any:
        """The program's steps when the tile is done."""
        return self.before + self.groups * self.steps

    @property
    def slot(self) -> Any:
        """Where the tile's own arrays lie."""
        return lax.rem(self.count, jnp.int32(self.blocks.tiles))

    def half(self, warpgroup: Any) -> Any:
        """Where a warpgroup's half of them lies."""
        return self.slot * COMPUTE_WARPGROUPS + warpgroup

    def first(self, warpgroup: Any) -> Any:
        """The first position of a warpgroup's half."""
        return self.tile * self.blocks.tile + warpgroup * self.blocks.rows

    def slot_of(self, step: Any) -> Any:
        """Where the block of a step lies."""
        return lax.rem(self.before + step, jnp.int32(self.blocks.stages))

    def block_of(self, step: Any) -> Any:
        """The block of a step: those on the diagonal, then from `far` in steps of `back` (1 or -1)."""
        diagonal = self.blocks.diagonal
        return jnp.where(step < diagonal, self.tile * diagonal + step, self.far + self.back * (step - diagonal))

    def copies_of_halves(self, sources: dict[str, Callable[[Any], Any]], smem: dict[str, Any]) -> tuple[Copy, ...]:
        """Copies of the tile's own arrays, half by half, each source given its positions."""
        ready = smem["tile_ready"].at[self.slot]
        return tuple(
            (source(pl.ds(self.first(warpgroup), self.blocks.rows)), smem[name].at[self.half(warpgroup)], ready)
            for name, source in sources.items()
            for warpgroup in range(COMPUTE_WARPGROUPS)
        )


def share(
    numbers_ref: Any, *, heads: int, programs: int, groups: int, back: int, blocks: Blocks
) -> tuple[Any, Callable[[Any, Any], Work]]:
    """How many tiles a program does, and which is the `count`th, after `before` steps.

    Tiles go round the programs, heads fastest: those that run at one time read the same blocks, or as many.
    """
    rows, tiles, _ = numbers_ref.shape
    program = lax.axis_index("program")
    mine = lax.div(rows * tiles * heads - 1 - program, jnp.int32(programs)) + 1

    def work_at(count: Any, before: Any) -> Work:
        index = program + count * programs
        place, head = lax.div(index, jnp.int32(heads)), lax.rem(index, jnp.int32(heads))
        row, tile = lax.div(place, jnp.int32(tiles)), lax.rem(place, jnp.int32(tiles))
        far, steps, masked_steps = (numbers_ref[row, tile, i] for i in range(3))
        return Work(row, tile, head, far, steps, masked_steps, count, before, groups, back, blocks)

    return mine, work_at


def compute_and_copy(
    mine: Any,
    work_at: Callable[[Any, Any], Work],
    blocks: Blocks,
    compute: Callable[[Work], None],
    tile_copies: Callable[[Work], tuple[Copy, ...]],
    step_copies: Callable[[Work, Any], tuple[tuple[Copy, ...], ...]],
    tile_used: Any,
    used: tuple[Any, ...],
) -> None:
    """A program: two warpgroups `compute` the tiles that are `mine`, one after another; a third copies what they need.

    It runs ahead of them, beyond a tile's end too, as far as there is room: a slot is filled again when it is `used`.
    """
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < COMPUTE_WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")

        def compute_tile(count: Any, before: Any) -> Any:
            work = work_at(count, before)
            compute(work)
            return work.after

        lax.fori_loop(0, mine, compute_tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    def await_slot(slots: Any, number: Any, count: int) -> None:
        """Before the `number`th filling of a ring of `count` slots."""

        @pl.when(number >= count)
        def _wait() -> None:
            plgpu.barrier_wait(slots.at[lax.rem(number, jnp.int32(count))])

    @pl.when(warpgroup == _MEMORY_WARPGROUP)
    def _copy() -> None:
        plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")

        def copy_tile(count: Any, before: Any) -> Any:
            work = work_at(count, before)
            await_slot(tile_used, count, blocks.tiles)
            _start(tile_copies(work))

            @pl.loop(0, work.after - before)
            def _copy_step(step: Any) -> None:
                for i, slots in enumerate(used):
                    await_slot(slots, before + step, blocks.stages)
                    _start(step_copies(work, step)[i])

            return work.after

        # To the end, so that nothing is under way, and no arrival unseen, when the program ends.
        all_steps = lax.fori_loop(0, mine, copy_tile, jnp.int32(0))
        for i in range(blocks.tiles):
            await_slot(tile_used, mine + i, blocks.tiles)
        for i in range(blocks.stages):
            for slots in used:
                await_slot(slots, all_steps + i, blocks.stages)


def _start(copies: tuple[Copy, ...]) -> None:
    for source, to_smem, ready in copies:
        plgpu.copy_gmem_to_smem(source, to_smem, ready)


def write_out(*parts: tuple[jax.Array, Any, Any]) -> None:
    """Begin to write (array, by way of shared memory, to): while the next tile is under way."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what the tile before has left there
    for array, smem_ref, _ in parts:
        smem_ref[...] = array.astype(smem_ref.dtype)
    plgpu.commit_smem()
    for _, smem_ref, to_ref in parts:
        plgpu.copy_smem_to_gmem(smem_ref, to_ref)


class Machine:
    """What the kernels ask of the machine."""

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        """As jnp.full; of one axis: a number for each row of an accumulator."""
        layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def indices(self, shape: tuple[int, ...], axis: int) -> jax.Array:
        """Of an accumulator's rows (axis 0) or columns (axis 1)."""
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def row_indices(self, rows: int) -> jax.Array:
        """Of an accumulator's rows, a number for each row."""
        return plgpu.broadcasted_iota(jnp.int32, (rows,), 0, layout=plgpu.Layout.WGMMA.reduce(1))

    def numbers(self, ref: Any, axis: int) -> jax.Array:
        """Load a number for each row (axis 0) or column (axis 1) of an accumulator."""
        return plgpu.load(ref, *_ALL, layout=plgpu.Layout.WGMMA.reduce(1 - axis))

    def far_numbers(self, ref: Any, axis: int) -> jax.Array:
        """`numbers` from the device's memory, not from shared memory."""
        return plgpu.load(ref, *_ALL, layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)

    def accumulate(self, add: Callable[..., None], *sums: jax.Array) -> tuple[jax.Array, ...]:
        """The sums after `add`, which gets an accumulator for each, has added products to them."""
        return pl.run_state(lambda accumulators: add(*accumulators))(tuple(plgpu.ACC.init(x) for x in sums))

    def matrix(self, ref: Any) -> jax.Array:
        """Load a left operand of products into registers."""
        return plgpu.load(ref, *_ALL, layout=plgpu.Layout.WGMMA)

    def multiply(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        """Begin to add x · y; x may lie in registers."""
        plgpu.wgmma(accumulator, x, y_ref)

    def multiply_transposed(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        """Begin to add x · yᵀ."""
        plgpu.wgmma(accumulator, x, y_ref.transpose((1, 0)))

    def finished(self, accumulator: Any, still_running: int = 0) -> jax.Array:
        """What the accumulator holds once no more than the `still_running` last products are under way."""
        # The barrier keeps the compiler from moving arithmetic on the registers before the wait.
        return lax.optimization_barrier(plgpu.wgmma_accumulator_load(accumulator, wait_n=still_running))


class _Interpreter(Machine):
    """Products at once, in jax.numpy: the interpreter knows no accumulator with a value and no product from registers.

    An accumulator is a list of its one value. Layouts of registers mean nothing here.
    """

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        return jnp.full(shape, value, jnp.float32)

    def indices(self, shape: tuple[int, ...], axis: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, shape, axis)

    def row_indices(self, rows: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (rows,), 0)

    def numbers(self, ref: Any, axis: int) -> jax.Array:
        return self._read(ref)

    def far_numbers(self, ref: Any, axis: int) -> jax.Array:
        return ref[...]

    def accumulate(self, add: Callable[..., None], *sums: jax.Array) -> tuple[jax.Array, ...]:
        accumulators = [[x] for x in sums]
        add(*accumulators)
        return tuple(accumulator[0] for accumulator in accumulators)

    def multiply(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        accumulator[0] += jnp.dot(x, self._read(y_ref), preferred_element_type=jnp.float32)

    def multiply_transposed(self, accumulator: Any, x: Any, y_ref: Any) -> None:
        x = x if isinstance(x, jax.Array) else self._read(x)
        accumulator[0] += jnp.dot(x, self._read(y_ref).T, preferred_element_type=jnp.float32)

    def matrix(self, ref: Any) -> jax.Array:
        return self._read(ref)

    def _read(self, ref: Any) -> jax.Array:
        x = ref[...]
        plgpu.commit_smem()  # so that a copy to there, later on, is no race: wgmma's own reads are none
        return x

    def finished(self, accumulator: Any, still_running: int = 0) -> jax.Array:
        return accumulator[0]


def machine(interpret: Any) -> Machine:
    """What runs the kernels: a device, or (`interpret` as of `Target`) the interpreter."""
    return _Interpreter() if interpret else Machine()


def run(
    kernel: Callable[..., None],
    target: Target,
    blocks: Blocks,
    heads: int,
    arrays: tuple[jax.Array, ...],
    outputs: tuple[Any, ...],
    scratch: dict[str, Any],
) -> tuple[jax.Array, ...]:
    """`kernel` of `arrays`, of which the first holds the tiles' numbers; gives arrays like `outputs`."""
    works = math.prod(arrays[0].shape[:2]) * heads
    programs = min(target.programs, works)
    on = machine(target.interpret)
    return plgpu.kernel(
        functools.partial(kernel, blocks=blocks, programs=programs, on=on),
        out_type=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs),
        scratch_types=scratch | {"tile_used": used(blocks.tiles)},
        grid=(programs,),
        grid_names=("program",),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=target.interpret,
    )(*arrays)


def matrices(count: int, rows: int, columns: int, dtype: Any) -> Any:
    """Shared memory as wgmma reads it."""
    return _matrices((count, rows, columns), dtype)


def matrix(rows: int, columns: int, dtype: Any) -> Any:
    """One of `matrices`."""
    return _matrices((rows, columns), dtype)


def _matrices(shape: tuple[int, ...], dtype: Any) -> Any:
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def used(slots: int) -> Any:
    """Barriers that both compute warpgroups arrive at when they need a slot no more."""
    return plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS, num_barriers=slots)


def along(x: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    """A number for each row (axis 0) or column (axis 1), in the shape of `like`."""
    return lax.broadcast_in_dim(x, like.shape, [axis])
