"""RMSNorm, SwiGLU and biases: values and derivatives are those of their plain definitions; only inputs are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax import sharding
from cometjax.elementwise import add_bias, rms_norm, swiglu

EPS = 1e-6


def plain_rms_norm(x, scale_D):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS) * scale_D


def plain_swiglu(gate, up):
    return gate * jax.nn.sigmoid(gate) * up


CASES = {
    "rms_norm": (lambda x, scale: rms_norm(x, scale, EPS), plain_rms_norm, ((2, 3, 8), (8,))),
    "swiglu": (swiglu, plain_swiglu, ((2, 3, 8), (2, 3, 8))),
}


def inputs(shapes, dtype):
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(3 * random.normal(size=shape), dtype) for shape in shapes)


@pytest.fixture(params=["cpu", "gpu"])
def traced_for(request):
    with sharding.traced_for(request.param):
        yield


@pytest.mark.usefixtures("traced_for")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_the_definitions(name, dtype, tolerance):
    ours, plain, shapes = CASES[name]
    arguments = inputs(shapes, dtype)
    exact = tuple(x.astype(jnp.float32) for x in arguments)
    weight = np.random.default_rng(1).normal(size=shapes[0]).astype(np.float32)
    for got, wanted in zip(
        (ours(*arguments), *jax.grad(lambda *x: jnp.sum(ours(*x) * weight), (0, 1))(*arguments)),
        (plain(*exact), *jax.grad(lambda *x: jnp.sum(plain(*x) * weight), (0, 1))(*exact)),
        strict=True,
    ):
        assert got.dtype == dtype
        assert float(jnp.abs(got.astype(jnp.float32) - wanted).max()) <= tolerance * float(jnp.abs(wanted).max())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_values_are_rounded_once(name):
    ours, plain, shapes = CASES[name]
    arguments = inputs(shapes, "bfloat16")
    exact = plain(*(x.astype(jnp.float32) for x in arguments))
    np.testing.assert_allclose(jax.jit(ours)(*arguments).astype(jnp.float32), exact, rtol=2**-8)


@pytest.mark.parametrize(("name", "numbers_beside_inputs"), [("rms_norm", 6), ("swiglu", 0)])
def test_the_backward_pass_keeps_the_inputs_and_at_most_a_number_for_each_vector(name, numbers_beside_inputs):
    ours, _, shapes = CASES[name]
    arguments = inputs(shapes, "bfloat16")
    _, pullback = jax.vjp(ours, *arguments)
    kept = jax.tree.leaves(pullback)
    assert sum(x.size for x in kept) == sum(x.size for x in arguments) + numbers_beside_inputs
    assert sum(x.nbytes for x in kept) == sum(x.nbytes for x in arguments) + 4 * numbers_beside_inputs


def test_extreme_gates_give_no_nan():
    gate, up = jnp.asarray([-1e30, -100.0, 0.0, 100.0, 1e30]), jnp.ones(5)
    for array in (swiglu(gate, up), *jax.grad(lambda *x: jnp.sum(swiglu(*x)), (0, 1))(gate, up)):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_biases_are_summed_in_float32(dtype):
    d_out_RxO = jnp.full((2048, 8), 0.5, dtype).at[::32].set(256)  # 256 + 0.5 is 256 in bfloat16
    out_RxO, derivative = jax.vjp(add_bias, jnp.ones((2048, 8), dtype), jnp.full(8, 2, dtype))
    d_x_RxO, d_bias_O = jax.jit(derivative)(d_out_RxO)
    assert out_RxO.dtype == d_x_RxO.dtype == d_bias_O.dtype == dtype
    np.testing.assert_array_equal(out_RxO, 3)
    np.testing.assert_array_equal(d_x_RxO, d_out_RxO)
    exact_O = np.asarray(d_out_RxO, np.float64).sum(0)
    np.testing.assert_allclose(np.asarray(d_bias_O, np.float64), exact_O, rtol=2**-8)
