"""Random packed rows, and what every attention implementation must do with them: agree with the reference."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from cometjax.attention import attention

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@st.composite
def packings(draw: st.DrawFn, rows: int, length: int) -> np.ndarray:
    """segment_ids_BxL: rows of segments of drawn lengths, rising ids, padding at the end (now and then all of it)."""
    segment_ids_BxL = np.zeros((rows, length), np.int32)
    for row in segment_ids_BxL:
        real = draw(st.sampled_from([0, 1, length // 3, length - 1, length, length]))
        cuts = draw(st.lists(st.integers(1, length), max_size=6))
        row[:real] = 1 + np.searchsorted(np.sort(cuts), np.arange(real), side="right")
    return segment_ids_BxL


def random_inputs(
    segment_ids_BxL: np.ndarray, heads: int, kv_heads: int, head_dim: int, dtype: str
) -> tuple[jax.Array, ...]:
    """q, k, v and a weight for each output, in `dtype`."""
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(random.normal(size=(*segment_ids_BxL.shape, n, head_dim)), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def outputs_and_gradients(
    attend: Attend, inputs: tuple[jax.Array, ...], segment_ids_BxL: np.ndarray
) -> dict[str, np.ndarray]:
    """The output, and the gradients of its weighted sum by q, k and v, as float32."""
    (_, out), gradients = _with_gradients(attend)(*inputs, jnp.asarray(segment_ids_BxL))
    return {name: np.asarray(x, np.float32) for name, x in zip(("out", "q", "k", "v"), (out, *gradients), strict=True)}


@functools.cache
def _with_gradients(attend: Attend) -> Callable[..., tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]]:
    """One program for all inputs of a shape."""

    def total(
        q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array, segment_ids_BxL: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, segment_ids_BxL)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


def reference(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
    """The implementation that all others are held to, in float32 whatever it is given."""
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    return attention(*wide, segment_ids_BxL=segment_ids_BxL, implementation="reference").astype(q.dtype)


def assert_agrees_with_reference(
    attend: Attend,
    segment_ids_BxL: np.ndarray,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str = "float32",
    tolerance: float = 3e-5,
) -> None:
    """Outputs and gradients within `tolerance` of the largest of each; padding gets zeros and gives none, no NaN."""
    inputs = random_inputs(segment_ids_BxL, heads, kv_heads, head_dim, dtype)
    wanted = outputs_and_gradients(reference, inputs, segment_ids_BxL)
    got = outputs_and_gradients(attend, inputs, segment_ids_BxL)
    for name in wanted:
        limit = tolerance * max(1.0, float(np.abs(wanted[name]).max()))
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=limit, err_msg=name)
        assert not got[name][segment_ids_BxL == 0].any(), name
