"""The Hopper kernels: interpreted against the reference, lowered for CUDA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # exported from jax 0.11 on
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from cometjax.attention import attention
from cometjax.hopper_kernels import _key_blocks, _query_blocks, default_target
from cometjax.hopper_programs import Blocks, Target
from cometjax.packed import hopper_attention, segment_starts
from tests.cometjax.packings import assert_agrees_with_reference, outputs_and_gradients, random_inputs

pytestmark = pytest.mark.usefixtures("hurried_compiler")


def interpreted(target: Target, **how):
    target = dataclasses.replace(target, interpret=InterpretGPUParams(**how))
    return functools.partial(hopper_attention, target=target)


def assert_agrees(target: Target, segment_ids_BxL: np.ndarray, heads: int, kv_heads: int, head_dim: int) -> None:
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    assert_agrees_with_reference(interpreted(target), segment_ids_BxL, **sizes, dtype="bfloat16", tolerance=2e-2)


def rows_of(*rows: tuple[int, ...]) -> np.ndarray:
    """segment_ids_BxL of rows of segments, by length; the last of a row is padding."""
    return np.stack([np.repeat([*range(1, len(row)), 0], row) for row in rows]).astype(np.int32)


LONG, SHORT = (200, 184, 0), (5, 60, 1, 130, 100, 88)
SMALL = Target(
    *(Blocks(block=64, stages=2, tile_in_registers=True),) * 3, programs=2
)  # several tiles a program, rings that go round


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "target"),
    [
        ((LONG, SHORT), 1, 1, 64, dataclasses.replace(default_target(64), programs=1)),
        ((LONG,), 2, 1, 64, SMALL),
        (((5, 60, 1, 130, 100, 74),), 1, 1, 128, default_target(128)),  # to be filled up to whole tiles
    ],
)
def test_outputs_and_gradients_are_the_references(rows, heads, kv_heads, head_dim, target):
    assert_agrees(target, rows_of(*rows), heads, kv_heads, head_dim)


@pytest.mark.parametrize("take_turns", [True, False])
def test_no_copy_overtakes_those_who_still_read(take_turns, capfd):
    target = dataclasses.replace(SMALL, forward=dataclasses.replace(SMALL.forward, take_turns=take_turns), programs=1)
    segment_ids_BxL = rows_of(LONG)
    inputs = random_inputs(segment_ids_BxL, 1, 1, 64, "bfloat16")
    outputs_and_gradients(interpreted(target, detect_races=True), inputs, segment_ids_BxL)
    assert "RACE DETECTED" not in capfd.readouterr().out  # what the interpreter prints


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_they_are_on_random_packings(seed):
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, 513, (2, random.integers(1, 8))), axis=1)
    rows = [tuple(np.diff(row, prepend=0, append=512).tolist()) for row in cuts]
    heads, kv_heads = [(1, 1), (2, 1), (2, 2)][seed % 3]
    head_dim = [64, 128][seed % 2]
    target = default_target(head_dim) if seed % 4 < 2 else SMALL
    assert_agrees(target, rows_of(*rows), heads, kv_heads, head_dim)


def test_huge_scores_in_rows_with_padding_give_no_nan():
    segment_ids_BxL = rows_of((100, 156), (256,))
    inputs = tuple(1e3 * x for x in random_inputs(segment_ids_BxL, 1, 1, 64, "bfloat16"))
    for part, array in outputs_and_gradients(interpreted(SMALL), inputs, segment_ids_BxL).items():
        assert np.isfinite(array).all(), part


def test_a_tile_meets_the_blocks_that_share_a_segment_with_it_those_that_need_a_mask_first():
    tiles_of_two = Blocks(rows=1, block=1)  # two blocks on the diagonal
    starts_BxL = segment_starts(jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0, 0]]))
    assert starts_BxL.tolist() == [[0, 0, 0, 3, 3, 3, 3, 3, 8, 8, 12, 12]]
    # Of each tile: the far block, steps, masked steps. Tile 1 (positions 2 and 3) needs keys 0 to 3; 3 masks all.
    assert _key_blocks(starts_BxL, tiles_of_two).tolist() == [
        [[0, 2, 2], [0, 4, 3 + 1], [3, 3, 2], [3, 5, 2], [8, 2, 2], [10, 2, 2]]
    ]
    # Keys 0 and 1 are needed by the queries up to 2, keys 2 and 3 up to 7: those from 4 on start at 3, behind key 2.
    assert _query_blocks(starts_BxL, tiles_of_two).tolist() == [
        [[2, 3, 2], [7, 6, 6], [7, 4, 2], [7, 2, 2], [9, 2, 2], [11, 2, 2]]
    ]


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(2, 64), (4, 128)])
def test_auto_lowers_to_them_for_an_h100(kv_heads, head_dim):
    q, k = (jax.ShapeDtypeStruct((2, 500, heads, head_dim), jnp.bfloat16) for heads in (4, kv_heads))
    ids = jax.ShapeDtypeStruct((2, 500), jnp.int32)

    def total(q, k, v, segment_ids_BxL):
        out = attention(q, k, v, segment_ids_BxL=segment_ids_BxL, implementation="auto")
        return jnp.sum(out.astype(jnp.float32))

    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=h100)):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 3  # outputs, gradients of queries, of keys and values
