"""A training run on a topology that is not here: configuration, model and mesh, refused where training would."""

import dataclasses
from collections.abc import Mapping

import ml_collections
from jax.sharding import AbstractMesh, AxisType

from cometjax import attention, chips, sharding
from cometjax import config as configs
from cometjax.model import ModelConfig
from data_pipeline.mixture import open_corpus

# Where neither the configuration nor a corpus gives a vocabulary: CoMET's (arXiv 2508.12104).
PAPER_VOCABULARY = 7_105


@dataclasses.dataclass(frozen=True)
class PodRun:
    """What is planned. `sizes` are devices per mesh axis, `vocabulary` says where the model's size was taken from."""

    config: ml_collections.ConfigDict
    model: ModelConfig
    topology: chips.Topology
    sizes: Mapping[str, int]
    vocabulary: str

    @property
    def batch_shards(self) -> int:
        """Parts in which the batch's rows lie on different chips."""
        return self.sizes["data"] * self.sizes["fsdp"]

    @property
    def microbatch_rows(self) -> int:
        """Rows that a chip computes at a time."""
        return self.config.train.batch_rows // (self.batch_shards * self.config.train.microbatches)

    @property
    def tokens_per_step(self) -> int:
        """Positions of the global batch, padding included."""
        return self.config.train.batch_rows * self.config.train.row_length


@dataclasses.dataclass(frozen=True)
class PlannedDevice:
    """What the checks of a mesh read of a device."""

    platform: str
    slice_index: int
    process_index: int


def pod_run(config: ml_collections.ConfigDict, topology: chips.Topology) -> PodRun:
    """The run of `config` on `topology`; "auto" becomes what it is there: bfloat16, the platform's attention.

    Raises:
      UserError: what training would refuse: a wrong configuration, a mesh or a batch that does not fit the chips, an
        attention implementation that cannot run on them, or not on such rows.
    """
    configs.validate(config)
    config = config.copy_and_resolve_references()
    if config.model.compute_dtype == "auto":
        config.model.compute_dtype = "bfloat16"
    vocab_size, vocabulary = _vocabulary(config)
    model = ModelConfig.from_config(config.model, vocab_size)
    device = sharding.Device(topology.chip.platform, topology.chip.device_kinds[0])
    config.model.attention = attention.resolve(model.attention, model.attention_heads, device)
    attention.IMPLEMENTATIONS[config.model.attention].check_rows(config.train.row_length, model.attention_heads)
    model = dataclasses.replace(model, attention=config.model.attention)
    sizes = sharding.axis_sizes(config.mesh, topology.chips)
    sharding.check_slices(config.mesh.slices, sizes[0], planned_devices(topology))
    run = PodRun(config, model, topology, dict(zip(sharding.AXES, sizes, strict=True)), vocabulary)
    sharding.check_batch_rows(abstract_mesh(run.sizes), config.train.batch_rows, config.train.microbatches)
    return run


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these sizes over no devices."""
    return AbstractMesh(tuple(sizes[axis] for axis in sharding.AXES), sharding.AXES, (AxisType.Auto,) * 3)


def _vocabulary(config: ml_collections.ConfigDict) -> tuple[int, str]:
    if config.corpus:
        return len(open_corpus(config.corpus).vocabulary), f"of {config.corpus}"
    if config.model.vocab_size:
        return config.model.vocab_size, "config.model.vocab_size"
    return PAPER_VOCABULARY, "assumed: CoMET's; set config.corpus or config.model.vocab_size for yours"


def planned_devices(topology: chips.Topology) -> list[PlannedDevice]:
    """All chips of a topology, slice after slice (GPU: host after host)."""
    platform, per_slice = topology.chip.platform, topology.chips // topology.slices
    return [
        PlannedDevice(platform, index // per_slice if platform == "tpu" else 0, index // per_slice)
        for index in range(topology.chips)
    ]
