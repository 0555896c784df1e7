"""The loss from hidden states, in chunks, against log-softmax of all logits; its memory; its split over a mesh."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax import cross_entropy
from cometjax.cross_entropy import weighted_nats

B, L, D, V = 2, 6, 8, 37


def inputs(dtype: str = "float32", scale: float = 1.0) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    x = jnp.asarray(scale * random.normal(size=(B, L, D)), dtype)
    head = jnp.asarray(random.normal(size=(V, D)), dtype)
    weights = jnp.asarray(random.choice([0.0, 0.5, 1.0], (B, L)), jnp.float32)
    return x, head, jnp.asarray(random.integers(0, V, (B, L))), weights


def plain(x: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = jnp.einsum("bld,vd->blv", x.astype(jnp.float32), head.astype(jnp.float32))
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nats * weights), nats


def value_and_gradients(function, arguments):
    def halved(*arguments):
        total, nats = function(*arguments)
        return total / 2, nats

    (total, nats), gradients = jax.jit(jax.value_and_grad(halved, argnums=(0, 1), has_aux=True))(*arguments)
    return [np.asarray(array, np.float32) for array in (total, nats, *gradients)]


@pytest.mark.parametrize("positions", [1, 4, 100])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_losses_and_gradients_are_those_of_log_softmax_whatever_the_chunk(monkeypatch, positions, scale):
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", positions * 4 * V)
    arguments = inputs(scale=scale)
    for wanted, got in zip(
        value_and_gradients(plain, arguments), value_and_gradients(weighted_nats, arguments), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * scale)


def test_chunks_that_positions_do_not_fill_change_nothing(monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", 3 * 4 * V)  # five positions: chunks of three, one of padding
    x, head, targets, weights = inputs()
    arguments = (x[:1, :5], head, targets[:1, :5], weights[:1, :5] + 1.0)
    for wanted, got in zip(
        value_and_gradients(plain, arguments), value_and_gradients(weighted_nats, arguments), strict=True
    ):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("positions", [1, 2, 7, 1021, 1024, 2 * 1021, 8192])
@pytest.mark.parametrize("fitting", [1, 7, 295])
def test_a_chunk_is_over_half_of_what_fits_whatever_divides_the_positions(positions, fitting):
    chunks = cross_entropy._chunks(positions, 10, 10 * fitting + 9)
    size = -(-positions // chunks)
    assert min(fitting, positions) / 2 <= size <= fitting
    assert chunks * size - positions < size  # no chunk of padding alone


def test_bfloat16_agrees_within_its_precision():
    arguments = inputs("bfloat16")
    for wanted, got in zip(
        value_and_gradients(plain, arguments), value_and_gradients(weighted_nats, arguments), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=5e-2)


def test_without_a_gradient_the_losses_are_the_same():
    total, nats = jax.jit(weighted_nats)(*inputs())
    wanted_total, wanted_nats = plain(*inputs())
    np.testing.assert_allclose(nats, wanted_nats, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, wanted_total, rtol=1e-5)


def test_logits_of_a_whole_batch_are_never_held():
    tokens, vocabulary = (8, 1024), 8192
    abstract = (
        jax.ShapeDtypeStruct((*tokens, 16), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, 16), jnp.float32),
        jax.ShapeDtypeStruct(tokens, jnp.int32),
        jax.ShapeDtypeStruct(tokens, jnp.float32),
    )

    def temporaries(function):
        gradient = jax.jit(jax.grad(lambda *arguments: function(*arguments)[0], argnums=(0, 1)))
        return gradient.lower(*abstract).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = 4 * 8 * 1024 * vocabulary
    assert temporaries(plain) > logits_bytes
    assert temporaries(weighted_nats) < logits_bytes / 4


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from cometjax.cross_entropy import weighted_nats
random = np.random.default_rng(0)
x, head = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 6, 8), (37, 8)))
targets, weights = jnp.asarray(random.integers(0, 37, (4, 6))), jnp.asarray(random.random((4, 6)), jnp.float32)
def both():
    function = jax.jit(jax.value_and_grad(weighted_nats, argnums=(0, 1), has_aux=True))
    return function(x, head, targets, weights)
wanted = both()
with jax.set_mesh(jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)):
    got = both()
for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
print("devices", len(got[1][0].sharding.device_set), "shard", got[1][0].sharding.shard_shape(x.shape))
"""


def test_a_mesh_splits_rows_and_of_each_row_its_positions():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "devices 4 shard (2, 3, 8)" in done.stdout
