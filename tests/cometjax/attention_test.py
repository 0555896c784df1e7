"""Packed causal attention against a definition in numpy, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

from cometjax.attention import MIN_QUERY_BLOCK, attend_masked, attention
from data_pipeline.errors import UserError

HEADS, HEAD_DIM = 4, 8
SEGMENTS_BxL = np.array([[1] * 5 + [2] * 7 + [3] * 4, [1] * 9 + [0] * 7, [0] * 16])


def inputs(batch: int, length: int, kv_heads: int, dtype: str = "float32") -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(batch, length, heads, HEAD_DIM)), dtype) for heads in (HEADS, kv_heads, kv_heads)
    )


@jax.jit
def reference(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
    return attention(q, k, v, segment_ids_BxL=segment_ids_BxL, implementation="reference")


def by_definition(q: ArrayLike, k: ArrayLike, v: ArrayLike, segments_BxL: np.ndarray) -> np.ndarray:
    """softmax(q . k / sqrt(C)) v over the earlier tokens of the same segment, in float64 loops."""
    q, k, v = np.asarray(q, np.float64), np.asarray(k, np.float64), np.asarray(v, np.float64)
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(*q.shape[:3]):
        keys = [j for j in range(i + 1) if segments_BxL[b, j] == segments_BxL[b, i] != 0]
        if keys:
            kv_head = h // (q.shape[2] // k.shape[2])
            scores = k[b, keys, kv_head] @ q[b, i, h] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights / weights.sum() @ v[b, keys, kv_head]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_token_attends_to_what_came_before_in_its_segment(kv_heads: int) -> None:
    q, k, v = inputs(3, 16, kv_heads)
    out = reference(q, k, v, jnp.asarray(SEGMENTS_BxL))
    np.testing.assert_allclose(out, by_definition(q, k, v, SEGMENTS_BxL), atol=1e-5)


def test_rows_of_several_query_blocks_and_a_partial_one_agree_with_the_definition() -> None:
    length = 2 * MIN_QUERY_BLOCK + 37
    segments_BxL = np.sort(np.random.default_rng(1).integers(1, 4, (1, length)), axis=1)
    segments_BxL[:, -20:] = 0
    q, k, v = inputs(1, length, 2)
    out = reference(q, k, v, jnp.asarray(segments_BxL))
    np.testing.assert_allclose(out, by_definition(q, k, v, segments_BxL), atol=1e-5)


def test_gradients_are_those_of_a_plain_softmax() -> None:
    q, k, v = inputs(3, 16, 2)
    segments_BxL = jnp.asarray(SEGMENTS_BxL)
    target = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(array, 2, axis=2) for array in (k, v))
        allowed = (segments_BxL[:, :, None] == segments_BxL[:, None]) & jnp.tril(jnp.ones((16, 16), bool))
        scores = jnp.einsum("blhc,bmhc->bhlm", q, k) / np.sqrt(HEAD_DIM)
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e9), axis=-1)
        return jnp.einsum("bhlm,bmhc->blhc", weights, v) * (segments_BxL != 0)[..., None, None]

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return reference(q, k, v, segments_BxL)

    expected, actual = (
        jax.jit(jax.grad(lambda *qkv, f=f: jnp.sum(f(*qkv) * target), argnums=(0, 1, 2)))(q, k, v)
        for f in (plain, ours)
    )
    for name, wanted, got in zip("qkv", expected, actual, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)


def test_padding_gives_zeros_and_finite_gradients() -> None:
    q, k, v = inputs(3, 16, 2)
    padding_BxL = SEGMENTS_BxL == 0

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = reference(q, k, v, jnp.asarray(SEGMENTS_BxL))
        return jnp.sum(jnp.square(out)), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(1e3 * q, 1e3 * k, v)
    assert not np.asarray(out)[padding_BxL].any()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[padding_BxL].any()


def test_bfloat16_inputs_give_bfloat16_within_its_precision() -> None:
    q, k, v = inputs(3, 16, 2, "bfloat16")
    out = reference(q, k, v, jnp.asarray(SEGMENTS_BxL))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), by_definition(q, k, v, SEGMENTS_BxL), atol=3e-2)


def test_an_unknown_implementation_is_refused_naming_those_that_can_run() -> None:
    q, k, v = inputs(1, 16, 4)
    with pytest.raises(UserError, match=r"'flash9' is not known.*can run: reference"):
        attention(q, k, v, segment_ids_BxL=jnp.ones((1, 16), jnp.int32), implementation="flash9")


def test_a_query_attends_to_exactly_the_keys_that_the_mask_allows() -> None:
    q, _, _ = inputs(1, 2, 2)
    _, k, v = inputs(1, 16, 2)
    allowed_BxLxM = jnp.zeros((1, 2, 16), bool).at[0, 0, 3].set(True).at[0, 1, 11].set(True)
    out = attend_masked(q, k, v, allowed_BxLxM)
    np.testing.assert_allclose(out[0, 0], np.repeat(v[0, 3], 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(out[0, 1], np.repeat(v[0, 11], 2, axis=0), atol=1e-6)
