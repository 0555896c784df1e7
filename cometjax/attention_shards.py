"""What the implementations of attention have in common: each device's own share of rows and heads, a residual's name.

Dimensions: B batch rows, L row length, H query heads, K key/value heads, C head dim.
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
