"""The TPU kernel, run as its definition on the CPU, against the reference: both passes, padding, a mesh."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax.attention import attention
from cometjax.splash import LANES, _causal_kernel, _skip_foreign_blocks, splash_attention
from data_pipeline.errors import UserError

LENGTH, HEADS, HEAD_DIM = 3 * LANES, 2, 8
# A row of segments that share blocks, span blocks and fill blocks, and a row that is padding from its first block on.
SEGMENTS_BxL = np.array(
    [
        [1] * 50 + [2] * (LANES - 50) + [3] * (LANES + 9) + [4] * (LANES - 9),
        [1] * 40 + [0] * (LENGTH - 40),
    ],
    np.int32,
)


def inputs(kv_heads: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = [(2, LENGTH, heads, HEAD_DIM) for heads in (HEADS, kv_heads, kv_heads)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_outputs_and_gradients_are_the_references_and_free_of_nan_in_padding(kv_heads: int) -> None:
    qkv = inputs(kv_heads)
    segment_ids_BxL = jnp.asarray(SEGMENTS_BxL)
    target = jnp.asarray(np.random.default_rng(1).normal(size=qkv[0].shape), jnp.float32)

    def both(attend):
        def total(*qkv):
            out = attend(*qkv)
            return jnp.sum(out * target), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv)
        return out, *gradients

    expected = both(lambda *qkv: attention(*qkv, segment_ids_BxL=segment_ids_BxL, implementation="reference"))
    actual = both(lambda *qkv: splash_attention(*qkv, segment_ids_BxL, interpret=True, max_block=LANES))
    for name, wanted, got in zip(("out", "q", "k", "v"), expected, actual, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=name)
        if name != "out":
            assert not np.asarray(got)[SEGMENTS_BxL == 0].any()


def test_only_blocks_with_a_segment_in_common_are_computed() -> None:
    kernel = _skip_foreign_blocks(_causal_kernel(LENGTH, HEADS, LANES, True), jnp.asarray(SEGMENTS_BxL[0]), LANES)
    # The second block starts segment 3, which ends in the third; the first shares no segment with either.
    assert (np.asarray(kernel.fwd_mask_info.block_mask[0]) > 0).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, True, True],
    ]
    # Each block names the next one to fetch: along the keys going forward and for dq, along the queries for dk and dv.
    assert np.asarray(kernel.fwd_mask_info.data_next[0]).tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2]]
    assert np.asarray(kernel.dkv_mask_info.data_next[0]).tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 2]]


def test_it_is_refused_off_tpu_and_for_rows_that_do_not_divide_in_blocks() -> None:
    with pytest.raises(UserError, match=r"'splash' cannot run on cpu.*these can run: reference, blockwise"):
        attention(*inputs(2), segment_ids_BxL=jnp.asarray(SEGMENTS_BxL), implementation="splash")
    short = tuple(x[:, :100] for x in inputs(2))
    with pytest.raises(UserError, match=r"config\.train\.row_length: rows of 100 tokens"):
        splash_attention(*short, jnp.asarray(SEGMENTS_BxL[:, :100]), interpret=True)


ON_A_MESH = f"""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from cometjax.attention import attention
from cometjax.splash import splash_attention
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(2, {LANES}, heads, 8)), jnp.float32) for heads in (4, 1, 1))
segment_ids = jnp.asarray(np.sort(rng.integers(1, 4, (2, {LANES})), axis=1), jnp.int32)
with jax.set_mesh(jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)):
    out = jax.jit(lambda *a: splash_attention(*a, interpret=True))(q, k, v, segment_ids)
wanted = attention(q, k, v, segment_ids_BxL=segment_ids, implementation="reference")
np.testing.assert_allclose(out, wanted, atol=2e-5)
print("devices", len(out.sharding.device_set), "shard", out.sharding.shard_shape(out.shape))
"""


def test_a_mesh_splits_rows_and_heads_also_where_key_heads_are_fewer_than_the_axis() -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "devices 4 shard (1, 128, 2, 8)" in done.stdout
