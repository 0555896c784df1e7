"""The packed Pallas kernels: interpreted against the reference, compiled for TPUs, lowered for CUDA."""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from cometjax.attention import attention
from cometjax.packed import pallas_gpu_attention, pallas_tpu_attention, segment_starts
from cometjax.packed_kernels import _last_query_block
from data_pipeline.errors import UserError
from tests.cometjax.packings import assert_agrees_with_reference, outputs_and_gradients, packings, random_inputs

BLOCK, LENGTH = 16, 56  # a partial last block
KERNELS = {
    "pallas_tpu": functools.partial(pallas_tpu_attention, block=BLOCK, interpret=True),
    "pallas_gpu": functools.partial(pallas_gpu_attention, block=BLOCK, interpret=True),
}
by_kernel = pytest.mark.parametrize("name", KERNELS)


@by_kernel
@settings(max_examples=4, deadline=None, derandomize=True)
@given(segment_ids_BxL=packings(rows=2, length=LENGTH), kv_heads=st.sampled_from([1, 2]))
def test_outputs_and_gradients_are_the_references_on_random_packings(name, segment_ids_BxL, kv_heads):
    assert_agrees_with_reference(KERNELS[name], segment_ids_BxL, heads=2, kv_heads=kv_heads, head_dim=16)


@pytest.mark.slow
@by_kernel
@settings(max_examples=60, deadline=None)
@given(
    segment_ids_BxL=packings(rows=3, length=200),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([64, 128]),
)
def test_they_are_in_bfloat16_too_on_many_packings(name, segment_ids_BxL, kv_heads, head_dim):
    assert_agrees_with_reference(
        KERNELS[name], segment_ids_BxL, heads=4, kv_heads=kv_heads, head_dim=head_dim, dtype="bfloat16", tolerance=2e-2
    )


@by_kernel
@pytest.mark.parametrize("head_dim", [64, 128])
def test_bfloat16_agrees_within_its_precision(name, head_dim):
    segment_ids_BxL = np.repeat(np.array([[1, 2, 2, 3, 0]], np.int32), 20, axis=1)
    assert_agrees_with_reference(
        KERNELS[name], segment_ids_BxL, heads=2, kv_heads=1, head_dim=head_dim, dtype="bfloat16", tolerance=2e-2
    )


@by_kernel
def test_huge_scores_in_rows_with_padding_give_no_nan(name):
    segment_ids_BxL = np.array([[1] * 20 + [0] * 30, [0] * 50], np.int32)
    inputs = tuple(1e3 * x for x in random_inputs(segment_ids_BxL, 2, 2, 16, "float32"))
    for part, array in outputs_and_gradients(KERNELS[name], inputs, segment_ids_BxL).items():
        assert np.isfinite(array).all(), part


def test_a_query_block_goes_from_its_first_segments_start_and_a_key_block_to_the_last_query_that_needs_it():
    segment_ids_BxL = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0, 0]])
    starts_BxL = segment_starts(segment_ids_BxL)
    assert starts_BxL.tolist() == [[0, 0, 0, 3, 3, 3, 3, 3, 8, 8, 12, 12]]
    first_BxI = starts_BxL.reshape(1, 6, 2).min(axis=-1) // 2
    assert first_BxI.tolist() == [[0, 0, 1, 1, 4, 6]]
    assert _last_query_block(first_BxI).tolist() == [[1, 3, 3, 3, 4, 4]]  # the last: none, one before itself


@by_kernel
def test_off_their_device_they_are_refused_naming_those_that_can_run(name):
    segment_ids_BxL = np.ones((1, 16), np.int32)
    q, k, v, _ = random_inputs(segment_ids_BxL, 2, 2, 16, "float32")
    with pytest.raises(UserError, match=rf"'{name}' cannot run on cpu.*can run: reference, blockwise"):
        attention(q, k, v, segment_ids_BxL=jnp.asarray(segment_ids_BxL), implementation=name)


def test_rows_that_a_device_cannot_hold_are_refused():
    long = jax.ShapeDtypeStruct((1, 65536, 1, 64), jnp.bfloat16)
    with pytest.raises(UserError, match=r"rows of 65536 tokens do not fit.*use 43008 or less"):
        jax.eval_shape(pallas_tpu_attention, long, long, long, jax.ShapeDtypeStruct((1, 65536), jnp.int32))


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(2, 64), (4, 128)])
def test_the_gpu_kernels_lower_to_triton_for_cuda(kv_heads, head_dim):
    q, k = (jax.ShapeDtypeStruct((2, 500, heads, head_dim), jnp.bfloat16) for heads in (4, kv_heads))

    def total(q, k, v, segment_ids_BxL):
        return jnp.sum(pallas_gpu_attention(q, k, v, segment_ids_BxL).astype(jnp.float32))

    ids = jax.ShapeDtypeStruct((2, 500), jnp.int32)
    # From jax 0.11 on, Pallas asks the mesh for the GPU that it lowers for where none is at hand.
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=h100)):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3  # outputs, gradients of queries, gradients of keys and values


COMPILE = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from cometjax.attention import Heads, attention, resolve
for topology in ("v5p:2x2x1", "v6e:2x2"):
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    at = NamedSharding(mesh, P())
    for kv_heads, head_dim, length in ((2, 64, 8192), (4, 128, 1000)):
        q, k = (jax.ShapeDtypeStruct((2, length, h, head_dim), jnp.bfloat16, sharding=at) for h in (4, kv_heads))
        ids = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=at)
        def total(q, k, v, ids):
            out = attention(q, k, v, segment_ids_BxL=ids, implementation="auto")
            return jnp.sum(out.astype(jnp.float32))
        with jax.set_mesh(mesh):
            assert resolve("auto", Heads(head_dim, "bfloat16")) == "pallas_tpu"
            jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k, ids).compile()
            print("compiled", topology, head_dim)
"""


@pytest.mark.slow
def test_both_passes_compile_for_v5p_and_v6e():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("SKIPPED FOR LACK OF THE TPU COMPILER: pip install libtpu (setup.cfg's extra `plan`)")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=1200, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled") == 4
