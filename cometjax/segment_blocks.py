"""Which blocks of queries and keys of a packed row must be looked at, and running attention on each device's share.

A row of L positions is cut in blocks. Queries of block I may attend to keys of block J when J is not after I and the
two blocks have a segment in common; everything else is skipped, so cost follows the sum of squared segment lengths,
up to whole blocks, and not the square of the row.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim, I query blocks, J key blocks.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

# Batch rows and heads are split over these axes of the mesh, as in cometjax.sharding.
_ROW_AXES = ("data", "fsdp")
_HEAD_AXIS = "tensor"

# Name (jax.ad_checkpoint) of an implementation's output and log-sum-exp. The backward pass needs them, and recomputing
# them is the whole forward pass of attention: a remat policy keeps them by this name (cometjax.model).
RESIDUAL_NAME = "attention_residual"

AttendRows = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def shared_blocks(segment_ids_BxL: jax.Array, block: int) -> jax.Array:
    """shared_BxIxJ: whether query block I needs key block J. L must be a multiple of `block`.

    A pair is kept when the ranges of the two blocks' ids overlap: exact where ids rise along a row, as the loader packs
    them, and for any other arrangement never too few. Padding (id 0) needs nothing.
    """
    rows, length = segment_ids_BxL.shape
    ids_BxIxT = segment_ids_BxL.reshape(rows, length // block, block)
    lowest_BxI = jnp.min(jnp.where(ids_BxIxT == 0, jnp.iinfo(jnp.int32).max, ids_BxIxT), axis=-1)
    highest_BxI = jnp.max(ids_BxIxT, axis=-1)
    overlap_BxIxJ = lowest_BxI[:, :, None] <= highest_BxI[:, None, :]
    causal_IxJ = jnp.tril(jnp.ones((length // block,) * 2, bool))
    return overlap_BxIxJ & overlap_BxIxJ.swapaxes(1, 2) & causal_IxJ


def pad_rows(arrays: tuple[jax.Array, ...], block: int) -> tuple[jax.Array, ...]:
    """Each [B, L, ...], lengthened by zeros (padding: segment id 0) to a multiple of `block`."""
    missing = -arrays[0].shape[1] % block
    return tuple(jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays) if missing else arrays


def on_each_device(
    attend_rows: AttendRows,
    q_BxLxHxC: jax.Array,
    k_BxLxKxC: jax.Array,
    v_BxLxKxC: jax.Array,
    segment_ids_BxL: jax.Array,
) -> jax.Array:
    """`attend_rows(q, k, v, segment_ids)`, by each device of the mesh for its own rows and heads: no communication.

    Heads that the tensor axis does not divide are not split, as the sharding rules have it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Axes of one device too: over an axis that is not named the gradients are summed, and XLA copies them for that.
    rows = tuple(axis for axis in _ROW_AXES if axis in mesh.shape)
    heads = _HEAD_AXIS if _HEAD_AXIS in mesh.shape else None
    if q_BxLxHxC.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()
    if heads:
        shards = mesh.shape[heads]
        if q_BxLxHxC.shape[2] % shards:
            heads = None
        else:
            k_BxLxKxC, v_BxLxKxC = (_repeat_heads(x, shards) for x in (k_BxLxKxC, v_BxLxKxC))
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend_rows(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)
    by_head = P(rows or None, None, heads, None)
    # check_vma: a kernel does not say over which axes its output varies.
    sharded = jax.shard_map(
        attend_rows, in_specs=(by_head, by_head, by_head, P(rows or None, None)), out_specs=by_head, check_vma=False
    )
    return sharded(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segment_ids_BxL)


def _repeat_heads(x_BxLxKxC: jax.Array, shards: int) -> jax.Array:
    """Key/value heads, each repeated as often as it takes to split them over `shards`; query groups shrink to match."""
    return jnp.repeat(x_BxLxKxC, shards // math.gcd(shards, x_BxLxKxC.shape[2]), axis=2)
