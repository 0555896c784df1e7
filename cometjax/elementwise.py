"""RMSNorm, SwiGLU and biases with derivatives of their own.

All that the backward pass keeps of norm and SwiGLU is their inputs. JAX's derivatives would keep each factor of each
product too: of SwiGLU the sigmoid and the gated half beside both inputs, of the norm its input once more in float32. On
an accelerator these arrays cost as much as the arithmetic saves many times over: they are written, and read again, at
the memory's speed. A bias's gradient is summed in float32. JAX's derivative sums in the bias's own type, and a backend
that takes bfloat16 literally (XLA's on CPU) then rounds after each of some thousand additions.

Dimensions: D width, F mlp width, R rows (batch and position), O outputs, whatever axes come before.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cometjax import sharding


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, elementwise (arXiv 2002.05202); float32 inside: rounded once, not five times."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, Any]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(kept: Any, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up, d_out = (x.astype(jnp.float32) for x in (*kept, d_out))
    sigmoid = jax.nn.sigmoid(gate)
    d_gate, d_up = d_out * up * sigmoid * (1 + gate * (1 - sigmoid)), d_out * gate * sigmoid
    return d_gate.astype(kept[0].dtype), d_up.astype(kept[1].dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x over the root of its mean square along the last axis, times scale; float32 inside (arXiv 1910.07467)."""
    return _normed(x, scale_D, _inverse_rms(x, eps))


def _rms_norm_forward(x: jax.Array, scale_D: jax.Array, eps: float) -> tuple[jax.Array, Any]:
    inverse = _inverse_rms(x, eps)
    return _normed(x, scale_D, inverse), (x, scale_D, inverse)


def _rms_norm_backward(eps: float, kept: Any, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale_D, inverse = kept
    d_out32 = d_out.astype(jnp.float32)
    unit = x.astype(jnp.float32) * inverse
    d_unit = d_out32 * scale_D.astype(jnp.float32)
    d_x = inverse * (d_unit - unit * _mean_product(d_unit, unit))
    d_scale_D = jnp.sum(d_out32 * unit, axis=tuple(range(x.ndim - 1)))
    return d_x.astype(x.dtype), d_scale_D.astype(scale_D.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _inverse_rms(x: jax.Array, eps: float) -> jax.Array:
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + eps)


def _mean_product(x: jax.Array, y: jax.Array) -> jax.Array:
    if sharding.traced_platform() == "cpu":
        # Of one row a device, XLA's CPU backend makes sum and what takes it one slow loop (docs/performance.md); a
        # product's sum stays apart. A TPU would round the operands of a product to bfloat16.
        return jnp.einsum("...d,...d->...", x, y)[..., None] / x.shape[-1]
    return jnp.mean(x * y, axis=-1, keepdims=True)


def _normed(x: jax.Array, scale_D: jax.Array, inverse: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) * inverse * scale_D.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def add_bias(x_RxO: jax.Array, bias_O: jax.Array) -> jax.Array:
    """x + bias, both of one type."""
    return x_RxO + bias_O


def _add_bias_forward(x_RxO: jax.Array, bias_O: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(x_RxO, bias_O), None


def _add_bias_backward(kept: None, d_out_RxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    return d_out_RxO, jnp.sum(d_out_RxO, axis=0, dtype=jnp.float32).astype(d_out_RxO.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
