"""Gradient accumulation: the gradient of a batch, computed in parts one after another.

M microbatches   B batch rows   L row length
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cometjax.sharding import constrain, constrain_like_parameters

Batch = Mapping[str, jax.Array]


def value_and_gradient(
    sums_of: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]], params: Any, batch: Batch, microbatches: int
) -> tuple[tuple[jax.Array, Any], Any]:
    """((loss, sums), gradient of the loss) of the whole batch, as `jax.value_and_grad(..., has_aux=True)` gives them.

    `sums_of(params, part, weight)` gives a part's weighted sum of losses over `weight`, and any tree of further sums.
    The weight is that of the whole batch, whatever the parts': so the sum over parts is the loss of the batch, and not
    a mean of means. Sums are added in float32.
    """
    weight = jnp.maximum(jnp.sum(batch["loss_weights_BxL"]), 1.0)
    of_part = jax.value_and_grad(sums_of, has_aux=True)
    if microbatches == 1:
        result, gradient = of_part(params, batch, weight)
        return result, constrain_like_parameters(gradient)

    def add(so_far: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], None]:
        result, gradient = of_part(params, part, weight)
        result, gradient = jax.tree.map(lambda a, b: a + b.astype(a.dtype), so_far, (result, gradient))
        return (result, constrain_like_parameters(gradient)), None

    parts = {name: _split(array, microbatches) for name, array in batch.items()}
    shapes = jax.eval_shape(of_part, params, jax.tree.map(lambda array: array[0], parts), weight)[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # Gradients are float32 here even where parameters are bfloat16: thousands of small terms would round away.
    no_gradient = constrain_like_parameters(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))
    (result, gradient), _ = jax.lax.scan(add, (zeros, no_gradient), parts)
    return result, jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), gradient, params)


def _split(rows_BxL: jax.Array, microbatches: int) -> jax.Array:
    """[M, B/M, L]: every M-th row, so that each device's rows are split evenly and none moves to another device."""
    interleaved = rows_BxL.reshape(rows_BxL.shape[0] // microbatches, microbatches, -1).swapaxes(0, 1)
    return constrain(interleaved, "MBL")
