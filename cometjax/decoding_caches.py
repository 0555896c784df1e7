"""Keys and values of a decoding step: how a chunk's loop reads the pools of `cometjax.decoding`, and writes to them.

`InPlace` leaves it to a kernel for Hopper GPUs. `Copies` is for every device: one softmax spans three score blocks, the
prompt, the sample's earlier chunks, and the chunk at hand (kept apart because it alone is written in the loop).

Dimensions as in cometjax/decoding.py.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from cometjax import hopper_decoding

if TYPE_CHECKING:
    from cometjax.decoding import Rows

Cache = tuple[jax.Array, jax.Array]
# One per layer: the decoder's layers then run unrolled, and no layer's cache is copied to stack it.
Pool = list[Cache]


def pool_dtype(cache_dtype: str, platform: str) -> str:
    """The type in which `Copies` has its pools: on CPU the bits of bfloat16 stand there as integers.

    XLA's CPU backend writes into a bfloat16 array by converting all of it to float32 and back.
    """
    return "uint16" if platform == "cpu" and cache_dtype == "bfloat16" else cache_dtype


def as_stored(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keys or values in a pool's type."""
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), dtype)
    return values.astype(dtype)


def _as_numbers(stored: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored


class Copies:
    """What the rows need of the pools, copied once for a chunk; what they add is kept apart until `written`.

    `constant` and `first` have an entry for each layer: what `attend` reads, and what it changes.
    """

    def __init__(self, prefixes: Pool, suffixes: Pool, rows: "Rows", earlier_chunks: int) -> None:
        kv_heads, _, steps, head_dim = suffixes[0][0].shape[1:]

        def copies(pools: Pool, take: Callable[[jax.Array], jax.Array]) -> Pool:
            return [_keys_across(_as_numbers(take(pool)) for pool in layer) for layer in pools]

        prefix = copies(prefixes, lambda pool: pool.at[rows.prefix_slot_Q].get(mode="clip"))
        earlier = copies(suffixes, lambda pool: _gather_earlier(pool, rows.slot_R, earlier_chunks))
        self.constant = list(zip(prefix, earlier, strict=True))
        shape = (len(rows.slot_R), kv_heads, steps, head_dim)
        self.first = [_keys_across(jnp.zeros(shape, pool.dtype) for pool in layer) for layer in suffixes]
        self.attend = _attend


def written(suffixes: Pool, changed: Pool, rows: "Rows") -> Pool:
    """The sample pool after a chunk of `Copies`."""
    chunk_R = rows.length_R // suffixes[0][0].shape[3]
    return jax.tree.map(
        lambda pooled, new: pooled.at[rows.slot_R, :, chunk_R].set(new, mode="drop"),
        suffixes,
        [_keys_across(layer) for layer in changed],
    )


class InPlace:
    """As `Copies` for the kernel, which reads the pools and writes the sample pool."""

    def __init__(self, prefixes: Pool, suffixes: Pool, sizes: hopper_decoding.Sizes) -> None:
        self.shape = suffixes[0][0].shape
        slots, kv_heads, _, _, head_dim = self.shape
        self.constant = prefixes
        self.first = jax.tree.map(lambda pool: pool.reshape(slots, kv_heads, -1, head_dim), suffixes)
        self.sizes = sizes

    def attend(
        self,
        q_Rx1xHxC: jax.Array,
        k_Rx1xKxC: jax.Array,
        v_Rx1xKxC: jax.Array,
        caches: tuple[Cache, Cache],
        *,
        rows: "Rows",
        step: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Attention of one new token per row to its prompt, and to its sample's tokens and itself."""
        places = hopper_decoding.Places(
            rows.prefix_slot_Q, rows.prefix_length_Q, rows.slot_R, jnp.asarray(rows.length_R) + step
        )
        new = (array_Rx1xAxC[:, 0] for array_Rx1xAxC in (q_Rx1xHxC, k_Rx1xKxC, v_Rx1xKxC))
        out_RxHxC, samples = hopper_decoding.attend(*new, *caches, places, self.sizes)
        return out_RxHxC[:, None], samples

    def written(self, changed: Pool) -> Pool:
        """The sample pool after the chunk."""
        return jax.tree.map(lambda pool: pool.reshape(self.shape), changed)


def _keys_across(keys_and_values: Iterable[jax.Array]) -> Cache:
    """(keys [..., L, C], values [..., L, C]) with the keys as [..., C, L], or back.

    A step's product of queries and keys is up to five times faster on CPU where it need not transpose the keys; a chunk
    does so once for all its steps.
    """
    keys, values = keys_and_values
    return jnp.swapaxes(keys, -1, -2), values


def _gather_earlier(pool: jax.Array, slot_R: jax.Array, chunks: int) -> jax.Array:
    _, kv_heads, _, steps, head_dim = pool.shape
    earlier = pool[:, :, :chunks].at[slot_R].get(mode="clip")
    return earlier.reshape(len(slot_R), kv_heads, chunks * steps, head_dim)


def _attend(
    q_Rx1xHxC: jax.Array, k_Rx1xKxC: jax.Array, v_Rx1xKxC: jax.Array, caches: Any, *, rows: "Rows", step: jax.Array
) -> tuple[jax.Array, Cache]:
    # Attention of one new token per row to its prompt, its earlier chunks and this chunk (itself included).
    ((pk_QxKxCxX, pv_QxKxXxC), (ek_RxKxCxY, ev_RxKxYxC)), (rk_RxKxCxT, rv_RxKxTxC) = caches
    k_RxKxCx1, v_RxKx1xC = k_Rx1xKxC.transpose(0, 2, 3, 1), jnp.swapaxes(v_Rx1xKxC, 1, 2)
    put = jax.lax.dynamic_update_slice_in_dim
    stored_RxKxCxT = put(rk_RxKxCxT, as_stored(k_RxKxCx1, rk_RxKxCxT.dtype), step, axis=3)
    stored_RxKxTxC = put(rv_RxKxTxC, as_stored(v_RxKx1xC, rv_RxKxTxC.dtype), step, axis=2)
    rk_RxKxCxT, rv_RxKxTxC = _as_numbers(stored_RxKxCxT), _as_numbers(stored_RxKxTxC)
    num_rows, _, heads, head_dim = q_Rx1xHxC.shape
    blocks, kv_heads = pk_QxKxCxX.shape[:2]
    groups, block = heads // kv_heads, num_rows // blocks

    def by_block(x):  # [R, K, G, A] -> [Q, K, SG, A]: only small arrays change their order, scores never
        x = jnp.swapaxes(x.reshape(blocks, block, kv_heads, groups, x.shape[-1]), 1, 2)
        return x.reshape(blocks, kv_heads, block * groups, x.shape[-1])

    def by_row(x):  # the inverse
        x = jnp.swapaxes(x.reshape(blocks, kv_heads, block, groups, x.shape[-1]), 1, 2)
        return x.reshape(num_rows, kv_heads, groups, x.shape[-1])

    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    q_RxKxGxC = (q_Rx1xHxC * head_dim**-0.5).reshape(num_rows, kv_heads, groups, head_dim)
    prompt_QxKxSGxX = _masked(product("qkmc,qkcx->qkmx", by_block(q_RxKxGxC), pk_QxKxCxX), rows.prefix_length_Q)
    earlier_RxKxGxY = _masked(product("rkgc,rkcy->rkgy", q_RxKxGxC, ek_RxKxCxY), rows.length_R)
    recent_RxKxGxT = _masked(product("rkgc,rkct->rkgt", q_RxKxGxC, rk_RxKxCxT), jnp.full(num_rows, step + 1))

    tops = [
        by_row(prompt_QxKxSGxX.max(-1, keepdims=True)),
        earlier_RxKxGxY.max(-1, keepdims=True),
        recent_RxKxGxT.max(-1, keepdims=True),
    ]
    top_RxKxGx1 = functools.reduce(jnp.maximum, tops)
    prompt_QxKxSGxX = jnp.exp(prompt_QxKxSGxX - by_block(top_RxKxGx1))
    earlier_RxKxGxY, recent_RxKxGxT = jnp.exp(earlier_RxKxGxY - top_RxKxGx1), jnp.exp(recent_RxKxGxT - top_RxKxGx1)
    total_RxKxGx1 = by_row(prompt_QxKxSGxX.sum(-1, keepdims=True))
    total_RxKxGx1 += earlier_RxKxGxY.sum(-1, keepdims=True) + recent_RxKxGxT.sum(-1, keepdims=True)
    dtype = pv_QxKxXxC.dtype
    out_RxKxGxC = by_row(product("qkmx,qkxc->qkmc", prompt_QxKxSGxX.astype(dtype), pv_QxKxXxC))
    out_RxKxGxC += product("rkgy,rkyc->rkgc", earlier_RxKxGxY.astype(dtype), ev_RxKxYxC)
    out_RxKxGxC += product("rkgt,rktc->rkgc", recent_RxKxGxT.astype(dtype), rv_RxKxTxC)
    out_Rx1xHxC = (out_RxKxGxC / total_RxKxGx1).astype(q_Rx1xHxC.dtype).reshape(q_Rx1xHxC.shape)
    return out_Rx1xHxC, (stored_RxKxCxT, stored_RxKxTxC)


def _masked(scores: jax.Array, length: jax.Array) -> jax.Array:
    # scores [A, ..., L]: only the first length[a] columns count.
    shape = (-1, *[1] * (scores.ndim - 1))
    return jnp.where(jnp.arange(scores.shape[-1]) < jnp.reshape(length, shape), scores, -jnp.inf)
