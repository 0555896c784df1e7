"""Where arrays lie: the device mesh, one table of rules for parameters, one for activations, batches split by rows.

Mesh axes: `data` (replicas, across slices), `fsdp` (parameters, optimizer and batch split), `tensor` (heads, mlp and
vocabulary split).
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import UserError

AXES = ("data", "fsdp", "tensor")

_planned_platform: contextvars.ContextVar[str] = contextvars.ContextVar("planned_platform", default="")

# The first pattern found in an array's path gives its spec. An optimizer's moments have their parameter's path as the
# end of theirs, and so lie where it lies.
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

# Where a dimension of an activation lies, by its letter; what is not here is whole.
# B batch rows   H query heads   K key/value heads   F mlp   V vocabulary
ACTIVATION_RULES: Mapping[str, tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "H": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
}


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as `a/b/c`: the name by which optimizer, sharding rules and messages call a parameter."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_mesh(mesh: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` over `devices` (None: all there are); -1 takes what the other axes leave.

    With `mesh.slices` above 1, neighbours along `fsdp` and `tensor` are of one slice, and `data` alone crosses slices.

    Raises UserError when the axes do not multiply to the number of devices, or do not fit the slices that there are.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(mesh, len(devices))
    check_slices(mesh.slices, sizes[0], devices)
    types = (AxisType.Auto,) * len(AXES)
    if mesh.slices == 1:
        return jax.make_mesh(sizes, AXES, devices=devices, axis_types=types)
    return Mesh(order_devices(mesh.slices, sizes, devices), AXES, axis_types=types)


def axis_sizes(mesh: ml_collections.ConfigDict, devices: int) -> list[int]:
    """Devices along each of AXES by `config.mesh`; -1 takes what the other axes leave of `devices`.

    Raises UserError when they do not multiply to the number of devices.
    """
    sizes = [mesh[axis] for axis in AXES]
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, devices // math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != devices:
        raise UserError(
            f"{' x '.join(f'{axis} {size}' for axis, size in zip(AXES, sizes, strict=True))} is "
            f"{math.prod(sizes)} devices, and there are {devices}",
            where="config.mesh",
            fix="set one axis to -1 to take what remains",
        )
    return sizes


def order_devices(slices: int, sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices of several slices in an array of `sizes`, slice after slice along the first axis."""
    return mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]),
        (slices, *(1 for _ in sizes[1:])),
        devices,
        process_is_granule=_count(devices, "slice_index") != slices,
    )


def check_slices(slices: int, data: int, devices: Sequence[Any]) -> None:
    """Raise UserError unless `data` splits over `slices`, and the devices form that many.

    A slice is what devices give as their `slice_index`; where they give one alone, each process is a slice. Off TPU,
    one flat mesh (`slices` 1) may span nodes.
    """
    found, tpu = _count(devices, "slice_index"), devices[0].platform == "tpu"
    granules = found if found > 1 or tpu else _count(devices, "process_index")
    if slices != granules and (slices != 1 or tpu):
        raise UserError(
            f"{slices}, and the devices form {granules}", where="config.mesh.slices", fix=f"set it to {granules}"
        )
    if data % slices:
        raise UserError(
            f"{slices} slices cannot split data {data}",
            where="config.mesh.slices",
            fix=f"set config.mesh.data to a multiple of {slices}: only this axis crosses slices",
        )


def _count(devices: Sequence[Any], attribute: str) -> int:
    return len({getattr(device, attribute, None) or 0 for device in devices})


def state_sharding(mesh: Mesh | AbstractMesh, abstract: Any) -> Any:
    """A NamedSharding for every array of a tree (parameters, or a whole TrainState), by RULES.

    A dimension that its mesh axis does not divide stays whole (a vocabulary of odd size, fewer key/value heads than
    the tensor axis). Raises ValueError for an array that no rule names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, mesh)), abstract
    )


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    for pattern, spec in RULES:
        if re.search(pattern, name):
            fitting = (axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape))  # noqa: B905
            return P(*fitting)
    raise ValueError(f"no rule in cometjax/sharding.py names {name} {shape}")


def constrain(x: jax.Array, dimensions: str) -> jax.Array:
    """Keep an activation where ACTIVATION_RULES say, in a computation under a mesh; `dimensions` has a letter for each.

    Without it the partitioner may split the width and gather the batch, because parameters are split by width. A
    dimension that its axes do not divide stays whole. Outside of any mesh nothing is done.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names) or mesh.size == 1 or set(AXES) & set(mesh.manual_axes):
        return x
    spec = P(*(_axes_of(letter, size, mesh) for letter, size in zip(dimensions, x.shape, strict=True)))
    return jax.lax.with_sharding_constraint(x, spec)


def _axes_of(letter: str, size: int, mesh: AbstractMesh) -> tuple[str, ...] | None:
    axes = ACTIVATION_RULES.get(letter, ())
    return axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def gather_weights(weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A layer's weights as its products take them: whole along `fsdp`, still split along `tensor`.

    What is said of a weight holds for its gradient too, which is summed over each device's own rows and then scattered.
    Left to the partitioner, the gradient's split along `fsdp` reaches its product, and then each device gathers the
    activations of the whole batch to compute its part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names) or mesh.shape["fsdp"] == 1 or set(AXES) & set(mesh.manual_axes):
        return dict(weights)

    def gathered(name: str, weight: jax.Array) -> jax.Array:
        axes = tuple(_spec(f"layers/{name}", (1, *weight.shape), mesh))[1:]  # without that of the layers
        whole = P(*(None if axis == "fsdp" else axis for axis in axes))
        return jax.lax.with_sharding_constraint(weight, whole)

    return {name: gathered(name, weight) for name, weight in weights.items()}


def constrain_like_parameters(tree: Any) -> Any:
    """Keep gradients where RULES keep their parameters: summed over the batch by scattering, not gathered whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names) or mesh.size == 1:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(leaf, _spec(path_name(path), leaf.shape, mesh)), tree
    )


def share_layers(stack_Nx: jax.Array) -> jax.Array:
    """Give each device of `fsdp` and `tensor` whole layers of a stack, for a computation in which no two layers meet.

    Where there are more devices than layers some have none; a number that does not divide is padded by the partitioner.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names) or mesh.size == 1:
        return stack_Nx
    return jax.lax.with_sharding_constraint(stack_Nx, P(("fsdp", "tensor")))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp` together; row positions whole."""
    return NamedSharding(mesh, P(("data", "fsdp"), None))


def check_batch_rows(mesh: Mesh | AbstractMesh, rows: int, microbatches: int = 1) -> None:
    """Raise UserError unless `rows` split evenly over the mesh, in each microbatch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (shards * microbatches):
        parts = f" in {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"{rows} rows cannot be split over {shards} devices (data x fsdp){parts}",
            where="config.train.batch_rows",
            fix=f"use a multiple of {shards * microbatches}, or another config.mesh",
        )


def share_of(devices: np.ndarray, process: int) -> tuple[int, int]:
    """(index, parts): of so many equal parts of the global batch's rows, which `process` reads for its devices.

    `devices` is a mesh's array [data, fsdp, tensor]. Processes whose devices hold the same rows, along `tensor`, read
    the same part. Where the devices of a process are no neighbours in the mesh, its part lies elsewhere in the global
    array than in the loader's batch: a batch has the same rows on every mesh, and their order counts for nothing.

    Raises UserError when two processes share a part of their rows and not all.
    """
    held: dict[int, set[int]] = {}
    for shard, along_tensor in enumerate(devices.reshape(-1, devices.shape[-1])):
        for device in along_tensor:
            held.setdefault(device.process_index, set()).add(shard)
    parts = sorted({tuple(sorted(shards)) for shards in held.values()})
    if sum(map(len, parts)) != math.prod(devices.shape[:-1]) or len(set(map(len, parts))) != 1:
        raise UserError(
            "the devices of two processes hold some rows together and others alone",
            where="config.mesh",
            fix="let tensor divide, or be a multiple of, the devices of a process",
        )
    return parts.index(tuple(sorted(held[process]))), len(parts)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's part of the rows (`share_of`), on its devices, as its part of the global batch."""
    sharding, parts = batch_sharding(mesh), _parts(mesh)
    # Meant, but not by jax.device_put, which the guard of the training loop would let pass.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, part, (parts * part.shape[0], *part.shape[1:]))
            for name, part in batch.items()
        }


@functools.lru_cache(maxsize=1)
def _parts(mesh: Mesh) -> int:
    return share_of(mesh.devices, jax.process_index())[1]


@dataclasses.dataclass(frozen=True)
class Device:
    """What is traced for: `platform` is `cpu`, `gpu` or `tpu`; `kind` JAX's `device_kind`, empty where not known."""

    platform: str
    kind: str = ""


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace as on `platform` (a planner's, that has no device of it)."""
    token = _planned_platform.set(platform)
    try:
        yield
    finally:
        _planned_platform.reset(token)


def traced_platform() -> str:
    """That of `traced_device`."""
    return traced_device().platform


def traced_device() -> Device:
    """That of `traced_for`, of the mesh in use (perhaps only compiled for), or this process's."""
    if planned := _planned_platform.get():
        return Device(planned)
    device = jax.sharding.get_abstract_mesh().abstract_device
    return described(jax.devices()[0] if device is None else device)


def described(device: Any) -> Device:
    """A jax device, or an abstract one."""
    return Device("gpu" if device.platform in ("cuda", "rocm") else device.platform, device.device_kind)
