"""Products of two matrices in the compute dtype, summed up in float32, as each platform does them fast.

XLA's CPU backend has a kernel for bfloat16 (AVX512-BF16, AMX; twice float32's speed) for products that give float32,
whose left operand has its summed axis last; any other product of bfloat16 it converts to float32 first. Hence a
derivative of our own: jax's takes the weights' gradient by a product that sums over the left operand's first axis.

Its kernels (YNNPACK) lay out the right operand anew in each call. For the few rows of a decoding step that should be
the rows, and not the weights: `turned_product`, of weights that are kept as outputs x inputs.

Elsewhere the compiler's own choice is the fast one, for few rows too (docs/decisions.md).

Dimensions: R rows (batch and position), I inputs, O outputs.
"""

import math

import jax
import jax.numpy as jnp

from cometjax.sharding import traced_platform

_AHEAD = 64  # rows, at most, of the middle axis of a transposition by way of three
_FEW_ROWS = 128  # beyond, the weights' new layout costs less than transposing rows


def product(x_RxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    """x @ w, in their common dtype, differentiable by both."""
    if x_RxI.dtype == jnp.bfloat16 and traced_platform() == "cpu":
        return _bfloat16_product(x_RxI, w_IxO)
    return x_RxI @ w_IxO


def turned_product(x_RxI: jax.Array, w_OxI: jax.Array) -> jax.Array:
    """x @ w.T in float32."""
    if are_few(len(x_RxI)):
        return transposed(contract(w_OxI, transposed(x_RxI), 0))
    return contract(x_RxI, w_OxI, 1)


def are_few(rows: int) -> bool:
    """Whether so many rows are better the right operand of a product with weights."""
    return rows <= _FEW_ROWS and traced_platform() == "cpu"


def summed_over_rows(x_RxI: jax.Array, y_RxO: jax.Array) -> jax.Array:
    """The transpose of x times y, I x O in float32: what weights' gradients are."""
    if x_RxI.dtype == jnp.bfloat16 and traced_platform() == "cpu":
        return contract(transposed(x_RxI), y_RxO, 0)
    return contract(x_RxI.T, y_RxO, 0)


@jax.custom_vjp
def _bfloat16_product(x_RxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    return contract(x_RxI, w_IxO, 0).astype(x_RxI.dtype)


def _forward(x_RxI: jax.Array, w_IxO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _bfloat16_product(x_RxI, w_IxO), (x_RxI, w_IxO)


def _backward(kept: tuple[jax.Array, jax.Array], d_out_RxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_RxI, w_IxO = kept
    return (
        contract(d_out_RxO, w_IxO, 1).astype(x_RxI.dtype),
        summed_over_rows(x_RxI, d_out_RxO).astype(w_IxO.dtype),
    )


_bfloat16_product.defvjp(_forward, _backward)


def contract(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    """The sum over the last axis of `x` and `axis` of `y`, in float32."""
    return jax.lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def transposed(x_RxI: jax.Array) -> jax.Array:
    """x_IxR, copied, so that a product may sum over R. A plain transposition is a layout, whose product the kernel does
    not do: hence by way of three axes."""
    rows, inputs = x_RxI.shape
    ahead = math.gcd(rows, _AHEAD)
    return x_RxI.reshape(-1, ahead, inputs).transpose(2, 0, 1).reshape(inputs, rows)
