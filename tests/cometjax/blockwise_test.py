"""Attention that skips blocks, in XLA: the reference's results, and no array of a row's length squared."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cometjax import attention, blockwise
from cometjax.blockwise import BLOCK, blockwise_attention
from cometjax.sharding import Device
from data_pipeline.errors import UserError
from tests.cometjax.packings import assert_agrees_with_reference, outputs_and_gradients, packings, random_inputs

attend_by_16 = functools.partial(blockwise_attention, block=16)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(segment_ids_BxL=packings(rows=2, length=56), kv_heads=st.sampled_from([1, 4]))
def test_outputs_and_gradients_are_the_references_on_random_packings(segment_ids_BxL, kv_heads):
    assert_agrees_with_reference(attend_by_16, segment_ids_BxL, heads=4, kv_heads=kv_heads, head_dim=8)


def test_segments_in_several_pieces_agree_too():
    segment_ids_BxL = np.random.default_rng(0).integers(0, 4, (2, 60)).astype(np.int32)
    assert_agrees_with_reference(attend_by_16, segment_ids_BxL, heads=2, kv_heads=1, head_dim=8)


def test_bfloat16_agrees_within_its_precision():
    segment_ids_BxL = np.repeat(np.array([[1, 2, 2, 3, 0]], np.int32), 20, axis=1)
    assert_agrees_with_reference(
        attend_by_16, segment_ids_BxL, heads=2, kv_heads=1, head_dim=8, dtype="bfloat16", tolerance=2e-2
    )


def test_huge_scores_in_rows_with_padding_give_no_nan():
    segment_ids_BxL = np.array([[1] * 20 + [0] * 30, [0] * 50], np.int32)
    inputs = tuple(1e3 * x for x in random_inputs(segment_ids_BxL, 2, 2, 8, "float32"))
    for name, array in outputs_and_gradients(attend_by_16, inputs, segment_ids_BxL).items():
        assert np.isfinite(array).all(), name


def tiles_of(segment_ids_BxL, block):
    """(row, low, high, first) of each tile in turn."""

    def note(tile, so_far):
        tiles_Nx4, count = so_far
        return tiles_Nx4.at[count].set(jnp.stack([jnp.asarray(x, jnp.int32) for x in tile])), count + 1

    start = jnp.zeros((segment_ids_BxL.size, 4), jnp.int32), jnp.int32(0)
    tiles_Nx4, count = blockwise._over_tiles(segment_ids_BxL, block, note, start)
    return tiles_Nx4[:count].tolist()


def test_long_segments_begin_a_tile_and_a_tiles_keys_begin_with_its_first_segment():
    segment_ids_BxL = jnp.asarray(
        [[1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 0, 0], [1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0], [0] * 12]
    )
    assert tiles_of(segment_ids_BxL, 4) == [[0, 0, 3, 0], [0, 3, 7, 3], [0, 7, 10, 3], [1, 0, 4, 0]]


def test_an_id_below_an_earlier_one_may_have_keys_from_the_rows_beginning():
    assert tiles_of(jnp.asarray([[1, 1, 3, 3, 2, 2, 3, 3, 4, 4]]), 2) == [
        [0, 0, 2, 0], [0, 2, 4, 2], [0, 4, 6, 0], [0, 6, 8, 2], [0, 8, 10, 8],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["blockwise", "reference"])
def test_only_the_reference_holds_scores_that_grow_with_the_row_squared(name):
    def temporaries(length: int) -> int:
        q = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def total(q, ids):
            return jnp.sum(attention.attention(q, q, q, segment_ids_BxL=ids, implementation=name))

        return jax.jit(jax.grad(total)).lower(q, ids).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(16 * BLOCK), temporaries(64 * BLOCK)
    assert (long < 6 * short) == (name == "blockwise")


def test_bfloat16_products_have_the_form_of_the_cpus_kernel():
    # As in products_test: float32 from bfloat16, the left operand's last axis summed over.
    q, k = (jnp.ones((1, 256, heads, 64), jnp.bfloat16) for heads in (2, 1))
    ids = jnp.ones((1, 256), jnp.int32)

    def total(*qkv):
        return jnp.sum(blockwise_attention(*qkv, ids).astype(jnp.float32))

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "xbf16>" in line]
    assert len(products) == 7, text  # two forward, five backward
    for line in products:
        assert re.search(r"contracting_dims = \[2\] x ", line), line
        assert re.search(r"\(tensor<\w+xbf16>, tensor<\w+xbf16>\) -> tensor<\w+xf32>", line), line


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from cometjax.attention import attention
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(4, 96, heads, 8)), jnp.float32) for heads in (4, 1, 1))
ids = jnp.asarray(np.sort(rng.integers(1, 4, (4, 96)), axis=1), jnp.int32)
def gradients(name):
    total = lambda *qkv: jnp.sum(jnp.square(attention(*qkv, segment_ids_BxL=ids, implementation=name)))
    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
wanted = gradients("reference")
with jax.set_mesh(jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)):
    got = gradients("blockwise")
for a, b in zip(wanted, got): np.testing.assert_allclose(a, b, atol=3e-5)
print("devices", len(got[0].sharding.device_set), "shard", got[0].sharding.shard_shape(q.shape))
"""


def test_a_mesh_splits_rows_and_heads():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "devices 4 shard (2, 96, 2, 8)" in done.stdout


def test_auto_is_the_first_default_that_can_run_there():
    on_h100, on_a100 = (Device("gpu", f"NVIDIA {name}") for name in ("H100 80GB HBM3", "A100-SXM4-80GB"))
    usual = attention.Heads(64, "bfloat16")
    assert attention.resolve("auto", usual) == "blockwise"
    assert attention.resolve("auto", usual, Device("tpu", "TPU v5p")) == "pallas_tpu"
    assert attention.resolve("auto", usual, on_h100) == "hopper"
    assert attention.resolve("auto", usual, on_a100) == "pallas_gpu"
    for heads in (attention.Heads(32, "bfloat16"), attention.Heads(64, "float32")):
        assert attention.resolve("auto", heads, on_h100) == "pallas_gpu"
    for device in (on_h100, on_a100):
        assert attention.resolve("auto", attention.Heads(96, "bfloat16"), device) == "blockwise"


def test_triton_is_refused_where_its_blocks_are_not_powers_of_two():
    for head_dim in (8, 24, 96):
        why = rf"'pallas_gpu' cannot run here: head_dim is {head_dim}, .*can run: reference, blockwise$"
        with pytest.raises(UserError, match=why):
            attention.resolve("pallas_gpu", attention.Heads(head_dim, "float32"), Device("gpu", "NVIDIA A100"))


def test_hopper_is_refused_where_it_cannot_run_telling_why():
    for heads, kind, why in [
        (attention.Heads(64, "bfloat16"), "NVIDIA B200", "it needs an H100 or H200"),
        (attention.Heads(32, "bfloat16"), "NVIDIA H200", "head_dim is 32, it takes 64 and 128"),
        (attention.Heads(64, "float32"), "NVIDIA H200", "compute_dtype is float32, it takes bfloat16"),
    ]:
        with pytest.raises(UserError, match=rf"'hopper' cannot run here: {why}; on {kind} these can run: .*pallas_gpu"):
            attention.resolve("hopper", heads, Device("gpu", kind))
