"""Where the time of CoMET-L's training step goes, by the TPU compiler's own account of each part: no TPU needed.

    python -m benchmarks.step_costs
    python -m benchmarks.step_costs --topology=v6e:2x2 --rows=2

Compiles, for one chip: a layer without attention, the loss from hidden states, AdamW's update, embedding and final
norm, each with its gradient and no remat, and reads the compiler's FLOPs and bytes. Kernels are closed to the compiler:
attention is counted (two products forward, seven backward, over segments of 1,280 tokens on average in whole blocks of
512). A layer is multiplied by the number of layers, because a loop's body is counted once. The roofline is the larger
of FLOPs over the chip's peak and bytes over its bandwidth (cometjax/chips.py). Needs libtpu (setup.cfg's extra `plan`).
Three minutes on two CPU cores. Prints one JSON object as its last line; `ratio` is model FLOPs over what the chip could
do in the sum of the parts: the MFU that no step can exceed.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.attention import packed_segments, sum_segment_squared
from cometjax import chips, flops, model, optimizer, pod_compiler
from cometjax.cross_entropy import weighted_nats
from cometjax.elementwise import rms_norm
from cometjax.train_step import init_state
from data_pipeline import command_line
from experiments.configs import comet_l

VOCABULARY, ROW_LENGTH, MEAN_SEGMENT, BLOCK = 7168, 8192, 1280, 512


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_string("topology", "v5p:2x2x1", "the chip whose compiler is asked; one chip of it is used")
    flags.DEFINE_integer("rows", 4, "rows of 8,192 on the chip", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """One part of a step, all its repetitions together, at the roofline."""

    part: str
    flops: float
    bytes: float

    def seconds(self, chip: chips.Chip) -> float:
        """The larger of the two clocks."""
        return max(self.flops / chip.peak_flops, self.bytes / chip.hbm_bandwidth)


def _compiled_cost(part: str, repeats: int, function: Callable[..., Any], *arguments: Any) -> Cost:
    counted = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return Cost(part, repeats * counted["flops"], repeats * counted["bytes accessed"])


def _costs(config: model.ModelConfig, settings: Any, rows: int, place: NamedSharding) -> list[Cost]:
    def array(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    state = jax.tree.map(
        lambda leaf: array(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: init_state(config, optimizer.make_optimizer(settings), 0)),
    )
    weights = {name: array(leaf.shape[1:], leaf.dtype) for name, leaf in state.params["layers"].items()}
    x_BxLxD = array((rows, ROW_LENGTH, config.width))
    rotation = (array((rows, ROW_LENGTH, config.head_dim // 2), jnp.float32),) * 2
    ids_BxL = array((rows, ROW_LENGTH), jnp.int32)

    def layer(weights: Any, x_BxLxD: jax.Array, rotation: Any, d_out_BxLxD: jax.Array) -> Any:
        # Attention is counted apart; a product of all three keeps every projection and its gradient alive.
        def forward(weights: Any, x_BxLxD: jax.Array) -> jax.Array:
            attend = lambda q, k, v, cache: (q * k * v, cache)  # noqa: E731
            return model._layer(config, weights, x_BxLxD, rotation, attend, None)[0]

        out_BxLxD, gradient = jax.vjp(forward, weights, x_BxLxD)
        return out_BxLxD, gradient(d_out_BxLxD)

    def loss(x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array) -> jax.Array:
        return weighted_nats(x_BxLxD, head_VxD, targets_BxL, weights_BxL)[0]

    def ends(table_VxD: jax.Array, scale_D: jax.Array, tokens_BxL: jax.Array) -> jax.Array:
        x_BxLxD = table_VxD[tokens_BxL].astype(jnp.bfloat16)
        return jnp.sum(rms_norm(x_BxLxD, scale_D, config.norm_eps).astype(jnp.float32))

    def update(params: Any, moments: Any, gradients: Any) -> Any:
        gradients = jax.tree.map(lambda g: g / jnp.maximum(1.0, optax.tree.norm(gradients)), gradients)
        directions, moments = optimizer.make_optimizer(settings).update(gradients, moments, params)
        return jax.tree.map(lambda p, d: p - 1e-4 * d, params, directions), moments

    layer_cost = _compiled_cost("layers without attention", config.layers, layer, weights, x_BxLxD, rotation, x_BxLxD)
    head_VxD, weights_BxL = array((VOCABULARY, config.width)), array((rows, ROW_LENGTH), jnp.float32)
    table_VxD, scale_D = array((VOCABULARY, config.width), jnp.float32), array((config.width,), jnp.float32)
    loss_cost = _compiled_cost(
        "head and loss", 1, jax.grad(loss, argnums=(0, 1)), x_BxLxD, head_VxD, ids_BxL, weights_BxL
    )
    # The loop over chunks is counted once; the products are known.
    head_flops = 6 * rows * ROW_LENGTH * VOCABULARY * config.width
    loops = max(1.0, head_flops / loss_cost.flops)
    return [
        layer_cost,
        dataclasses.replace(loss_cost, flops=loops * loss_cost.flops, bytes=loops * loss_cost.bytes),
        _compiled_cost("optimizer", 1, update, state.params, state.optimizer, state.params),
        _compiled_cost("embedding, final norm", 1, jax.grad(ends, argnums=(0, 1)), table_VxD, scale_D, ids_BxL),
        _attention_cost(config, rows),
    ]


def _attention_cost(config: model.ModelConfig, rows: int) -> Cost:
    """What the kernels do: two products forward, seven backward (scores and their gradient in both kernels)."""
    ids_BxL = packed_segments(rows, ROW_LENGTH, MEAN_SEGMENT)
    by_block = ids_BxL.reshape(rows, -1, BLOCK)
    first, last = by_block[:, :, 0], by_block[:, :, -1]
    needs = (first[:, :, None] <= last[:, None, :]) & (last[:, :, None] >= first[:, None, :])
    pairs = int(np.sum(needs & np.tri(first.shape[1], dtype=bool))) * BLOCK * BLOCK
    per_pair = 2 * config.heads * config.head_dim
    arrays = rows * ROW_LENGTH * config.heads * config.head_dim * 2
    return Cost("attention", config.layers * 9 * per_pair * pairs, config.layers * 14 * arrays)


def main() -> None:
    """Compile and print."""
    if importlib.util.find_spec("libtpu") is None:
        print(json.dumps({"benchmark": "step_costs", "skipped": "no libtpu: pip install libtpu"}))
        return
    rows, topology = flags.FLAGS.rows, chips.parse_topology(flags.FLAGS.topology)
    chip, devices = topology.chip, pod_compiler.pod_devices(topology)
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    settings = comet_l.get_config()
    settings.model.compute_dtype = "bfloat16"
    config = model.ModelConfig.from_config(settings.model, VOCABULARY)
    with jax.set_mesh(mesh):
        costs = _costs(config, settings, rows, NamedSharding(mesh, P()))
    total = sum(cost.seconds(chip) for cost in costs)
    for cost in sorted(costs, key=lambda cost: -cost.seconds(chip)):
        bound = "FLOPs" if cost.flops / chip.peak_flops > cost.bytes / chip.hbm_bandwidth else "bytes"
        print(
            f"{cost.part:26} {cost.flops / 1e12:8.2f} TFLOP {cost.bytes / 1e9:8.1f} GB"
            f" {1e3 * cost.seconds(chip):8.1f} ms {cost.seconds(chip) / total:6.1%}  bound by {bound}"
        )
    squared = sum_segment_squared(packed_segments(rows, ROW_LENGTH, MEAN_SEGMENT))
    counted = flops.train_flops(config, tokens=rows * ROW_LENGTH, sum_segment_squared=squared)
    figures = {
        "benchmark": "step_costs",
        "topology": topology.name,
        "jax": jax.__version__,
        "tokens": rows * ROW_LENGTH,
        "model_flops": counted,
        "parts": {cost.part: dataclasses.asdict(cost) | {"seconds": cost.seconds(chip)} for cost in costs},
        "tokens_per_s": round(rows * ROW_LENGTH / total),
        "ratio": round(counted / chip.peak_flops / total, 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    command_line.run(main, define_flags)
