"""Where arrays lie: the device mesh, one table of rules for parameters, and batches split by rows.

Mesh axes: `data` (replicas, across slices), `fsdp` (parameters, optimizer and batch split), `tensor` (heads, mlp and
vocabulary split).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cometjax.optimizer import path_name
from data_pipeline.errors import UserError

AXES = ("data", "fsdp", "tensor")

# The first pattern found in an array's path gives its spec. Adam's moments have their parameter's path as the end of
# theirs, and so lie where it lies.
# N layers   D embed   H query heads   K key/value heads   C head dim   F mlp   V vocabulary
RULES: tuple[tuple[str, P], ...] = (
    (r"(embedding|lm_head)$", P("tensor", "fsdp")),  # VxD
    (r"layers/(query|key|value)$", P(None, "fsdp", "tensor", None)),  # NxDxHxC, NxDxKxC
    (r"layers/(query|key|value)_bias$", P(None, "tensor", None)),  # NxHxC, NxKxC
    (r"layers/attention_out$", P(None, "tensor", None, "fsdp")),  # NxHxCxD
    (r"layers/(mlp_gate|mlp_up)$", P(None, "fsdp", "tensor")),  # NxDxF
    (r"layers/mlp_down$", P(None, "tensor", "fsdp")),  # NxFxD
    (r"_norm$", P()),  # NxD, D
    (r"(step|count)$", P()),  # scalars
    (r"guard/\w+$", P()),  # scalars, and a short window of them
)


def make_mesh(mesh: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` over `devices` (None: all there are); -1 takes what the other axes leave.

    Raises UserError when the axes do not multiply to the number of devices.
    """
    sizes = [mesh[axis] for axis in AXES]
    devices = jax.devices() if devices is None else devices
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"{' x '.join(f'{axis} {size}' for axis, size in zip(AXES, sizes, strict=True))} is "
            f"{math.prod(sizes)} devices, and there are {len(devices)}",
            where="config.mesh",
            fix="set one axis to -1 to take what remains",
        )
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def state_sharding(mesh: Mesh, abstract: Any) -> Any:
    """A NamedSharding for every array of a tree (parameters, or a whole TrainState), by RULES.

    A dimension that its mesh axis does not divide stays whole (a vocabulary of odd size, fewer key/value heads than
    the tensor axis). Raises ValueError for an array that no rule names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, mesh)), abstract
    )


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    for pattern, spec in RULES:
        if re.search(pattern, name):
            fitting = (axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape))  # noqa: B905
            return P(*fitting)
    raise ValueError(f"no rule in cometjax/sharding.py names {name} {shape}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp` together; row positions whole."""
    return NamedSharding(mesh, P(("data", "fsdp"), None))


def check_batch_rows(mesh: Mesh, rows: int) -> None:
    """Raise UserError unless `rows` split evenly over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"{rows} rows cannot be split over {shards} devices (data x fsdp)",
            where="config.train.batch_rows",
            fix=f"use a multiple of {shards}, or another config.mesh",
        )


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows, on the devices, as parts of the global batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
