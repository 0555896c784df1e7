"""Norms of gradients and updates by groups of parameters: which part of the model moves, or explodes.

Two views of the same numbers: by kind (embedding, head, norm, attention, mlp), and by layer, all kinds together. In
either view the squares add up to the square of the whole norm (by layer, without embedding, head and final norm).

N layers
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from cometjax.sharding import path_name

# The first pattern found in a parameter's path names its kind.
_KINDS = (
    ("norm", re.compile(r"norm$")),
    ("embedding", re.compile(r"^embedding$")),
    ("head", re.compile(r"^lm_head$")),
    ("attention", re.compile(r"^layers/(query|key|value|attention_out)")),
    ("mlp", re.compile(r"^layers/mlp_")),
)
_LAYERS = "layers/"  # parameters of all layers, stacked along axis N
LAYER = "layer"


def kind_of(name: str) -> str:
    """The kind of the parameter at path `name`. Raises ValueError for one that no pattern names."""
    for kind, pattern in _KINDS:
        if pattern.search(name):
            return kind
    raise ValueError(f"no pattern in cometjax/group_norms.py names {name}")


def group_norms(tree: Any) -> dict[str, jax.Array]:
    """Euclidean norms of a tree like the parameters, float32: a scalar for each kind, and `layer`, one [N].

    Under a mesh these are norms of the whole arrays, wherever their parts lie.
    """
    squares: dict[str, jax.Array] = {}
    layers_N = jnp.zeros((), jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, squared = path_name(path), jnp.square(leaf.astype(jnp.float32))
        if name.startswith(_LAYERS):
            squared = jnp.sum(squared, axis=range(1, squared.ndim))
            layers_N = layers_N + squared
        kind = kind_of(name)
        squares[kind] = squares.get(kind, jnp.zeros((), jnp.float32)) + jnp.sum(squared)
    return {group: jnp.sqrt(total) for group, total in (squares | {LAYER: layers_N}).items()}


def named(prefix: str, norms: dict[str, Any]) -> dict[str, float]:
    """Fetched norms as figures of a line: `prefix/attention`, ..., `prefix/layer_0`, ..."""
    values = {f"{prefix}/{kind}": float(norm) for kind, norm in norms.items() if kind != LAYER}
    width = len(str(len(norms[LAYER]) - 1))
    return values | {f"{prefix}/{LAYER}_{n:0{width}}": float(norm) for n, norm in enumerate(norms[LAYER])}
