"""How fast a run could be on a topology, from its shapes and the chip's data sheet: no compiler, no device.

Four clocks run at once: matrix products at the chip's peak, traffic to its memory, parameters gathered and gradients
scattered over `fsdp`, gradients summed over `data`. The slowest is the step, and the all-reduces of tensor parallelism,
which the next product waits for, come on top. Latencies and input are ignored: what a run reaches is less.

`Plan.mfu_bound` is the model FLOP utilization at that speed: counted FLOPs (`cometjax.flops`) over what the chips could
do meanwhile, so recomputation, attention's own repetitions and waiting all lower it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import ml_collections

from cometjax import chips, flops, hopper_programs, memory_model
from cometjax.attention import MAX_QUERY_BLOCKS, MIN_QUERY_BLOCK
from cometjax.blockwise import BLOCK
from cometjax.interconnect import all_reduce_seconds, axis_bandwidth, gather_seconds
from cometjax.memory_model import Memory
from cometjax.model import ModelConfig, num_parameters
from cometjax.packed import GPU_BLOCK, TPU_BLOCK
from cometjax.pod_run import PodRun, pod_run
from cometjax.splash import LANES, MAX_BLOCK

# Tokens of a subject: 151B tokens of 118M patients (arXiv 2508.12104).
PAPER_SEGMENT = 1_280
# Read and written per parameter by AdamW's update: parameter, two moments and gradient in, the first three out.
_OPTIMIZER_PASSES = 7

# Products of attention in the backward pass. The reference has kept its weights; a kernel works scores out again, and
# in two passes (one for queries, one for keys and values), the scores and the weights' gradient twice.
_BACKWARD_PRODUCTS = {"reference": 4, "splash": 7, "pallas_tpu": 7, "pallas_gpu": 7, "hopper": 7}
# Run again under remat "dots". The others name what their backward pass needs (`attention_shards.RESIDUAL_NAME`): the
# policy keeps it.
_REPEATED_UNDER_DOTS = ("reference", "splash")
# Tokens of a block, in which pairs of different segments are computed too.
_BLOCKS = {
    "splash": MAX_BLOCK,
    "blockwise": BLOCK,
    "pallas_tpu": TPU_BLOCK,
    "pallas_gpu": GPU_BLOCK,
    "hopper": hopper_programs.Blocks().tile,
}

_parameters = functools.lru_cache(num_parameters)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An analytic plan: the memory of a chip, and a step at the roofline.

    `seconds` has the clocks by name; `model_flops` and `hardware_flops` are of one step on all chips, without and with
    what is computed more than once. `tokens_per_step` are positions of the batch.
    """

    topology: str
    chips: int
    sizes: Mapping[str, int]
    parameters: int
    tokens_per_step: int
    memory: Memory
    hbm_bytes: float
    model_flops: int
    hardware_flops: float
    peak_flops: float
    seconds: Mapping[str, float]

    @property
    def memory_per_chip_bytes(self) -> int:
        """The peak of a step."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        """Whether the peak is below what a program gets of a chip's memory."""
        return self.memory.total <= self.hbm_bytes

    @property
    def step_seconds(self) -> float:
        """The slowest clock, and the tensor-parallel all-reduces."""
        return max(value for name, value in self.seconds.items() if name != "tensor") + self.seconds["tensor"]

    @property
    def bound_by(self) -> str:
        """The slowest clock's name."""
        return max((value, name) for name, value in self.seconds.items())[1]

    @property
    def tokens_per_second(self) -> float:
        """Of all chips together."""
        return self.tokens_per_step / self.step_seconds

    @property
    def mfu_bound(self) -> float:
        """Counted FLOPs over what the chips could do in a step."""
        return self.model_flops / (self.step_seconds * self.peak_flops * self.chips)

    def hours(self, tokens: float, mfu: float | None = None) -> float:
        """Hours to train on `tokens` tokens, at the roofline or at a model FLOP utilization of `mfu`."""
        slowdown = 1.0 if mfu is None else self.mfu_bound / mfu
        return tokens / self.tokens_per_second * slowdown / 3600

    def chip_hours(self, tokens: float, mfu: float | None = None) -> float:
        """Chip-hours to train on `tokens` tokens; arguments as in `hours`."""
        return self.hours(tokens, mfu) * self.chips


def analytic_plan(
    config: ml_collections.ConfigDict, topology: str | chips.Topology, mean_segment: float = PAPER_SEGMENT
) -> Plan:
    """The plan of `config` on a topology such as "v5p:4x4x4" or "h100:64".

    Attention is counted as if every segment had `mean_segment` tokens, at most a row. Where lengths differ, that is the
    sum of their squares over their sum.

    Raises UserError for whatever training there would refuse (`cometjax.pod_run`).
    """
    named = chips.parse_topology(topology) if isinstance(topology, str) else topology
    return plan_of(pod_run(config, named), mean_segment)


def plan_of(run: PodRun, mean_segment: float = PAPER_SEGMENT) -> Plan:
    """The analytic plan of a run."""
    chip, tokens = run.topology.chip, run.tokens_per_step
    segment = min(mean_segment, run.config.train.row_length)
    executed = hardware_flops(run, segment)
    return Plan(
        topology=run.topology.name,
        chips=run.topology.chips,
        sizes=run.sizes,
        parameters=_parameters(run.model),
        tokens_per_step=tokens,
        memory=memory_model.chip_memory(run),
        hbm_bytes=chip.hbm_usable,
        model_flops=flops.train_flops(run.model, tokens=tokens, sum_segment_squared=round(tokens * segment)),
        hardware_flops=executed,
        peak_flops=chip.peak_flops,
        seconds={
            "compute": executed / (chip.peak_flops * run.topology.chips),
            "memory": _traffic_bytes(run) / chip.hbm_bandwidth,
            **_collective_seconds(run),
        },
    )


def hardware_flops(run: PodRun, segment: float) -> float:
    """FLOPs of a step's matrix products as they are computed, segments being `segment` tokens long.

    With remat the layers' forward pass is done again ("full"), or that of attention alone ("dots"), by implementations
    that do not keep what their backward pass needs.
    """
    model, tokens, length = run.model, run.tokens_per_step, run.config.train.row_length
    forward = flops.forward_flops(model, tokens=tokens, sum_segment_squared=0)
    head = 2 * tokens * model.width * model.vocab_size
    repeated = forward - head if model.remat == "full" else 0
    # Scores or weighted values: 2 * H * C for each pair of a query and a key.
    product = 2 * model.layers * model.heads * model.head_dim * tokens * _keys_per_query(model, segment, length)
    attended_again = model.remat == "full" or (model.remat == "dots" and model.attention in _REPEATED_UNDER_DOTS)
    products = 2 + _BACKWARD_PRODUCTS.get(model.attention, 5) + (2 if attended_again else 0)
    return 3 * forward + repeated + products * product


def _keys_per_query(model: ModelConfig, segment: float, length: int) -> float:
    """Keys that a query is multiplied with, on average."""
    if model.attention == "reference":  # blocks of queries, each against all keys up to its end
        block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
        return (length + block) / 2
    # Half the segment, and half a block of those around it at either end.
    block = min(_BLOCKS.get(model.attention, LANES), length)
    return min(segment / 2 + block, (length + block) / 2)


def _weight_counts(model: ModelConfig) -> tuple[int, int]:
    """(elements of the layers' matrices, of embedding and head)."""
    query, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layers = model.layers * model.width * (2 * query + 2 * kv + 3 * model.mlp_width)
    return layers, model.width * model.vocab_size * (1 if model.tied_embeddings else 2)


def _traffic_bytes(run: PodRun) -> float:
    """Bytes that a chip moves to and from its memory in a step, where each result of a layer is written once.

    Forward: written and read. Backward: read, and their gradients written and read. Recomputed: as forward.
    """
    model, length = memory_model.share_of_chip(run.model, run.sizes["tensor"]), run.config.train.row_length
    rows = run.microbatch_rows * run.config.train.microbatches
    unfused = memory_model.saved_bytes(dataclasses.replace(model, remat="none"), rows, length, tiled=False)
    saved = memory_model.saved_bytes(model, rows, length, tiled=False)
    recomputed = 0 if model.remat == "none" else unfused - saved
    itemsize = jnp.dtype(model.compute_dtype).itemsize
    # The loss splits positions over `tensor`, not the vocabulary (cometjax.cross_entropy).
    scored = rows * length // (1 if length % run.sizes["tensor"] else run.sizes["tensor"])
    logits = scored * run.model.vocab_size * (3 * 4 + 3 * itemsize)
    layers, embeddings = _weight_counts(model)
    weight_passes = 3 + (model.remat == "full")
    weights = run.config.train.microbatches * weight_passes * (layers + embeddings) * itemsize
    shard = _parameters(run.model) / (run.sizes["fsdp"] * run.sizes["tensor"])
    optimizer = _OPTIMIZER_PASSES * shard * jnp.dtype(model.param_dtype).itemsize
    return 5 * unfused + 2 * recomputed + logits + weights + optimizer


def _collective_seconds(run: PodRun) -> dict[str, float]:
    """Seconds of a chip's collectives in a step, by mesh axis."""
    sizes, model = run.sizes, memory_model.share_of_chip(run.model, run.sizes["tensor"])
    bandwidth = {axis: axis_bandwidth(run.topology, sizes, axis) for axis in sizes}
    itemsize, microbatches = jnp.dtype(model.compute_dtype).itemsize, run.config.train.microbatches
    weights = sum(_weight_counts(model)) * itemsize
    # Gathered for the forward pass, again for the backward pass unless it keeps everything, and the gradient scattered,
    # in the compute dtype.
    passes = 2 if model.remat == "none" else 3
    fsdp = passes * microbatches * gather_seconds(weights, sizes["fsdp"], bandwidth["fsdp"])
    gradient = sum(_weight_counts(model)) * 4 / sizes["fsdp"]
    data = microbatches * all_reduce_seconds(gradient, sizes["data"], bandwidth["data"])
    hidden = run.microbatch_rows * run.config.train.row_length * model.width * itemsize
    # After attention and after the mlp, in the forward and the backward pass; what is recomputed needs the first anew.
    reductions = model.layers * (4 + (model.remat == "full"))
    tensor = microbatches * reductions * all_reduce_seconds(hidden, sizes["tensor"], bandwidth["tensor"])
    return {"fsdp": fsdp, "data": data, "tensor": tensor}
