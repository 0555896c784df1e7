"""Products in the compute dtype, and their gradients, against float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cometjax.products import product, turned_product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 37, 96, 256, 384])  # sharing 1, 1, 32, 64 and 64 with the 64 of a transposition
def test_product_and_its_gradients(rows: int, dtype: type) -> None:
    rng = np.random.default_rng(rows)
    x_RxI, w_IxO, d_out_RxO = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, 24), (24, 40), (rows, 40))
    )
    out_RxO, derivative = jax.vjp(jax.jit(product), x_RxI, w_IxO)
    x, w, d_out = (np.asarray(array, np.float64) for array in (x_RxI, w_IxO, d_out_RxO))
    # Summed up in float32: no more than the result's own rounding away.
    of_rounding = jnp.finfo(dtype).eps
    for ours, exact in zip((out_RxO, *derivative(d_out_RxO)), (x @ w, d_out @ w.T, x.T @ d_out), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=of_rounding, atol=1e-4)


def test_bfloat16_products_have_the_form_of_the_cpus_kernel() -> None:
    """float32 from bfloat16, the left operand's last axis summed over: forward, by the inputs, by the weights."""

    def with_gradients(x: jax.Array, w: jax.Array, d_out: jax.Array) -> tuple[jax.Array, ...]:
        out, derivative = jax.vjp(product, x, w)
        return out, *derivative(d_out)

    shapes = ((256, 64), (64, 128), (256, 128))
    text = jax.jit(with_gradients).lower(*(jnp.ones(shape, jnp.bfloat16) for shape in shapes)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3 and "dims = [1, 0]" not in text  # a plain transposition would be a layout
    for line in products:
        assert re.search(r"contracting_dims = \[1\] x \[[01]\]", line)
        assert re.search(r"\(tensor<\w+xbf16>, tensor<\w+xbf16>\) -> tensor<\w+xf32>", line)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 24, 32, 128, 129, 256])
def test_product_with_turned_weights(rows: int, dtype: type) -> None:
    rng = np.random.default_rng(rows)
    x_RxI, w_OxI = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, 40), (24, 40)))
    out_RxO = jax.jit(turned_product)(x_RxI, w_OxI)
    x, w = (np.asarray(array, np.float64) for array in (x_RxI, w_OxI))
    assert out_RxO.dtype == jnp.float32
    np.testing.assert_allclose(out_RxO, x @ w.T, rtol=1e-5, atol=1e-4)


def test_few_rows_are_the_right_operand_on_cpu() -> None:
    def shapes(rows: int) -> str:
        arrays = (jnp.ones((rows, 16)), jnp.ones((48, 16)))
        (line,) = [line for line in jax.jit(turned_product).lower(*arrays).as_text().splitlines() if "dot_gen" in line]
        return line[line.rindex("(") :]

    assert shapes(32).startswith("(tensor<48x16xf32>, tensor<16x32xf32>)")
    assert shapes(129).startswith("(tensor<129x16xf32>, tensor<48x16xf32>)")
