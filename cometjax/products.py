"""Products of two matrices in the compute dtype, summed up in float32, as each platform does them fast.

XLA's CPU backend has a kernel for bfloat16 (AVX512-BF16, AMX; twice float32's speed) for products that give float32,
whose left operand has its summed axis last; any other product of bfloat16 it converts to float32 first. Hence a
derivative of our own: jax's takes the weights' gradient by a product that sums over the left operand's first axis.

On a GPU a product of few rows, as in decoding, has too few tiles of output for all multiprocessors: the sum over the
inputs is split between several. Elsewhere the compiler's own choice is the fast one.

Dimensions: R rows (batch and position), I inputs, O outputs; P parts of the inputs, J inputs of a part.
"""

import math

import jax
import jax.numpy as jnp

from cometjax.sharding import traced_platform

_AHEAD = 128  # rows, at most, of the middle axis of a transposition by way of three
# GPU: rows that are few; columns of a tile; tiles that keep all multiprocessors (132 on Hopper) busy; the least inputs
# of a part, below which the parts' sums cost more than they save.
_FEW_ROWS, _TILE, _TILES, _LEAST_INPUTS = 256, 64, 256, 256


def product(x_RxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    """x @ w, in their common dtype, differentiable by both."""
    if x_RxI.dtype == jnp.bfloat16 and traced_platform() == "cpu":
        return _bfloat16_product(x_RxI, w_IxO)
    if traced_platform() == "gpu" and x_RxI.shape[0] <= _FEW_ROWS:
        return _few_rows_product(x_RxI, w_IxO)
    return x_RxI @ w_IxO


def _few_rows_product(x_RxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    (rows, inputs), outputs = x_RxI.shape, w_IxO.shape[1]
    parts = 1
    while parts * outputs < _TILES * _TILE and inputs % (2 * parts) == 0 and inputs // (2 * parts) >= _LEAST_INPUTS:
        parts *= 2
    x_RxPxJ, w_PxJxO = x_RxI.reshape(rows, parts, -1), w_IxO.reshape(parts, -1, outputs)
    out_PxRxO = jnp.einsum("rpj,pjo->pro", x_RxPxJ, w_PxJxO, preferred_element_type=jnp.float32)
    return jnp.sum(out_PxRxO, axis=0).astype(x_RxI.dtype)


@jax.custom_vjp
def _bfloat16_product(x_RxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    return _contract(x_RxI, w_IxO, 0)


def _forward(x_RxI: jax.Array, w_IxO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _contract(x_RxI, w_IxO, 0), (x_RxI, w_IxO)


def _backward(kept: tuple[jax.Array, jax.Array], d_out_RxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_RxI, w_IxO = kept
    return _contract(d_out_RxO, w_IxO, 1), _contract(_transposed(x_RxI), d_out_RxO, 0)


_bfloat16_product.defvjp(_forward, _backward)


def _contract(x: jax.Array, y: jax.Array, axis: int) -> jax.Array:
    """The sum over the last axis of `x` and `axis` of `y`."""
    return jax.lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)


def _transposed(x_RxI: jax.Array) -> jax.Array:
    """x_IxR, copied. By way of three axes: a plain transposition is a layout, whose product the kernel does not do."""
    rows, inputs = x_RxI.shape
    ahead = math.gcd(rows, _AHEAD)
    return x_RxI.reshape(-1, ahead, inputs).transpose(2, 0, 1).reshape(inputs, rows)
