"""Causal self-attention over packed rows, by a named implementation.

A row holds several segments (patients) one after another; a token sees itself and what came before it in its own
segment, nothing else. The implementation is named in the configuration and never replaced silently: one that cannot
run here is refused, and the refusal names those that can.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, G = H / K, C head dim, M key positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from data_pipeline.errors import UserError

# Added to the score of a pair that may not attend. Finite, so that a row of padding, where every pair is masked,
# stays free of NaN in the gradient too; far beyond any score, so that exp() of it is exactly zero elsewhere.
MASKED_SCORE = -1e30


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
    return _implementation(implementation)(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def available_implementations() -> tuple[str, ...]:
    """Names of the implementations that can run on this device."""
    return tuple(IMPLEMENTATIONS)


def attend_masked(
    q_BxLxHxC: jax.Array, k_BxMxKxC: jax.Array, v_BxMxKxC: jax.Array, allowed_BxLxM: jax.Array
) -> jax.Array:
    """Attend to the key positions that `allowed_BxLxM` names; returns out_BxLxHxC in the dtype of `q`.

    The arithmetic under every mask: float32 scores and softmax, grouped heads without repeating keys or values.
    A query that is allowed nothing gets the plain mean of the values: the caller must not use it.
    """
    batch, length, heads, head_dim = q_BxLxHxC.shape
    kv_heads = k_BxMxKxC.shape[2]
    q_BxLxKxGxC = q_BxLxHxC.reshape(batch, length, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    scores_BxKxGxLxM = jnp.einsum("blkgc,bmkc->bkglm", q_BxLxKxGxC, k_BxMxKxC, preferred_element_type=jnp.float32)
    bias_BxLxM = jnp.where(allowed_BxLxM, 0.0, MASKED_SCORE)
    weights_BxKxGxLxM = jax.nn.softmax(scores_BxKxGxLxM + bias_BxLxM[:, None, None], axis=-1).astype(v_BxMxKxC.dtype)
    out_BxLxKxGxC = jnp.einsum("bkglm,bmkc->blkgc", weights_BxKxGxLxM, v_BxMxKxC)
    return out_BxLxKxGxC.reshape(q_BxLxHxC.shape)


def _reference(
    q_BxLxHxC: jax.Array, k_BxLxKxC: jax.Array, v_BxLxKxC: jax.Array, segment_ids_BxL: jax.Array
) -> jax.Array:
    length = q_BxLxHxC.shape[1]
    same_BxLxL = segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None, :]
    allowed_BxLxL = same_BxLxL & jnp.tril(jnp.ones((length, length), dtype=bool))
    out_BxLxHxC = attend_masked(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, allowed_BxLxL)
    return jnp.where((segment_ids_BxL != 0)[:, :, None, None], out_BxLxHxC, 0)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"reference": _reference}


def _implementation(name: str) -> Callable[..., jax.Array]:
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"unknown attention implementation {name!r}",
            where="config.model.attention",
            fix=f"on this device ({jax.default_backend()}) these can run: {', '.join(available_implementations())}",
        )
    return IMPLEMENTATIONS[name]
