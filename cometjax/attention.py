"""Causal self-attention over packed rows, by a named implementation.

A row holds several segments (patients) one after another; a token sees itself and what came before it in its own
segment, nothing else. The implementation is named in the configuration and never replaced silently: one that cannot
run here is refused, and the refusal names those that can.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, C head dim, M key positions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cometjax.blockwise import blockwise_attention
from cometjax.packed import (
    Heads,
    hopper_attention,
    hopper_refuses,
    pallas_gpu_attention,
    pallas_gpu_refuses,
    pallas_tpu_attention,
    pallas_tpu_check_rows,
)
from cometjax.sharding import Device, traced_device
from cometjax.splash import splash_attention, splash_check_rows
from data_pipeline.errors import UserError

# Added to the score of a pair that may not attend. Finite, so that a row of padding, where every pair is masked,
# stays free of NaN in the gradient too; far beyond any score, so that exp() of it is exactly zero elsewhere.
MASKED_SCORE = -1e30

# Query blocks of the reference: more skip more of the half above the diagonal (9/16 is left at 8), and compile longer.
# Two CPU cores, [16, 512, 4, 32] float32, forward and backward: softmax over the full square 160 ms, dividing after
# the values are summed 112 ms, that in 4 blocks 69 ms, in 8 blocks 70 ms; jax.nn.dot_product_attention 164 ms.
MIN_QUERY_BLOCK = 128
MAX_QUERY_BLOCKS = 8


def attention(
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    *,
    segment_ids_BxL: jax.Array,
    implementation: str,
) -> jax.Array:
    """Attend causally within segments; returns out_BxLxHxC in the dtype of `q`.

    Segment id 0 is padding: its outputs are zero, and it receives no attention. Scores are scaled by 1/sqrt(C), the
    softmax is float32. H must be a multiple of K; query head h reads key/value head h // (H / K).

    Raises:
      UserError: `implementation` is unknown, or cannot run on this device.
    """
    name = resolve(implementation, Heads(q_BxLxHxC.shape[3], str(q_BxLxHxC.dtype)))
    return IMPLEMENTATIONS[name].attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def resolve(implementation: str, heads: Heads, on: Device | None = None) -> str:
    """The name of what `attention` will run on a device (None: the one traced for); "auto" is a row of DEFAULTS.

    Raises:
      UserError: `implementation` is unknown, or cannot run such heads on this device; those that can are named.
    """
    on = on or traced_device()
    can = available_implementations(heads, on)
    if implementation == AUTO:
        return next(name for name in DEFAULTS[on.platform] if name in can)
    if implementation not in can:
        known = IMPLEMENTATIONS.get(implementation)
        if known is None:
            problem = "is not known"
        elif on.platform not in known.platforms:
            problem = f"cannot run on {on.platform}"
        else:
            problem = f"cannot run here: {known.refuses(heads, on.kind)}"
        raise UserError(
            f"attention implementation {implementation!r} {problem}",
            where="config.model.attention",
            fix=f"on {on.kind or on.platform} these can run: {', '.join(can)}",
        )
    return implementation


def available_implementations(heads: Heads, on: Device | None = None) -> tuple[str, ...]:
    """Names of those that can run such heads on a device; None: the one traced for."""
    on = on or traced_device()
    return tuple(
        name
        for name, known in IMPLEMENTATIONS.items()
        if on.platform in known.platforms and not known.refuses(heads, on.kind)
    )


def attend_masked(
    q_BxLxHxC: jax.Array, k_BxMxKxC: jax.Array, v_BxMxKxC: jax.Array, allowed_BxLxM: jax.Array
) -> jax.Array:
    """Attend to the key positions that `allowed_BxLxM` names; returns out_BxLxHxC in the dtype of `q`.

    The arithmetic under every mask: float32 scores and softmax, grouped heads without repeating keys or values, and
    the division by the softmax's sum after the values are summed (on L x C numbers instead of L x M).
    A query that is allowed nothing gets the plain mean of the values: the caller must not use it.
    """
    batch, length, heads, head_dim = q_BxLxHxC.shape
    kv_heads = k_BxMxKxC.shape[2]
    q_BxLxKxGxC = q_BxLxHxC.reshape(batch, length, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    scores_BxKxGxLxM = jnp.einsum("blkgc,bmkc->bkglm", q_BxLxKxGxC, k_BxMxKxC, preferred_element_type=jnp.float32)
    scores_BxKxGxLxM += jnp.where(allowed_BxLxM, 0.0, MASKED_SCORE)[:, None, None]
    # The maximum cancels out of the result, so no gradient goes through it.
    highest_BxKxGxLx1 = jax.lax.stop_gradient(jnp.max(scores_BxKxGxLxM, axis=-1, keepdims=True))
    weights_BxKxGxLxM = jnp.exp(scores_BxKxGxLxM - highest_BxKxGxLx1)
    sums_BxKxGxLx1 = jnp.sum(weights_BxKxGxLxM, axis=-1, keepdims=True)
    weighted_BxKxGxLxC = jnp.einsum(
        "bkglm,bmkc->bkglc", weights_BxKxGxLxM.astype(v_BxMxKxC.dtype), v_BxMxKxC, preferred_element_type=jnp.float32
    )
    out_BxKxGxLxC = (weighted_BxKxGxLxC / sums_BxKxGxLx1).astype(q_BxLxHxC.dtype)
    return out_BxKxGxLxC.transpose(0, 3, 1, 2, 4).reshape(q_BxLxHxC.shape)


def _reference(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array
) -> jax.Array:
    """Plain XLA. Queries go in a few blocks, each against the keys up to its own end: no work above the diagonal."""
    length = q_BxLxHxC.shape[1]
    block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    blocks = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        same_BxLxM = segment_ids_BxL[:, start:stop, None] == segment_ids_BxL[:, None, :stop]
        causal_LxM = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)
        q_block = q_BxLxHxC[:, start:stop]
        blocks.append(attend_masked(q_block, k_BxLxKxC[:, :stop], v_BxLxKxC[:, :stop], same_BxLxM & causal_LxM))
    out_BxLxHxC = jnp.concatenate(blocks, axis=1)
    return jnp.where((segment_ids_BxL != 0)[:, :, None, None], out_BxLxHxC, 0)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """`attend(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL) -> out_BxLxHxC`, and where it can run.

    `refuses(heads, kind)` tells why it cannot run such heads on that kind of device; nothing where it can.
    `check_rows(length, heads)` raises UserError for rows that it cannot take.
    """

    attend: Callable[..., jax.Array]
    platforms: tuple[str, ...]
    refuses: Callable[[Heads, str], str] = lambda heads, kind: ""
    check_rows: Callable[[int, Heads], None] = lambda length, heads: None


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(_reference, ("cpu", "gpu", "tpu")),
    "blockwise": Implementation(blockwise_attention, ("cpu", "gpu", "tpu")),
    "splash": Implementation(splash_attention, ("tpu",), check_rows=lambda length, heads: splash_check_rows(length)),
    "pallas_tpu": Implementation(pallas_tpu_attention, ("tpu",), check_rows=pallas_tpu_check_rows),
    "pallas_gpu": Implementation(pallas_gpu_attention, ("gpu",), pallas_gpu_refuses),
    "hopper": Implementation(hopper_attention, ("gpu",), hopper_refuses),
}

# What "auto" means: the first that can run. On CPU and GPU measured (docs/performance.md); on TPU nothing has been
# timed yet, and this is what is predicted to be fastest.
AUTO = "auto"
DEFAULTS = {"cpu": ("blockwise",), "gpu": ("hopper", "pallas_gpu", "blockwise"), "tpu": ("pallas_tpu",)}
