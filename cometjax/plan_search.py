"""Try meshes, remat policies, batches and microbatches on a topology, analytically, and rank those that fit."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import ml_collections

from cometjax import roofline
from cometjax.chips import Topology
from cometjax.model import REMAT_POLICIES
from cometjax.pod_run import pod_run
from data_pipeline.errors import UserError

TENSOR = (1, 2, 4, 8)
MICROBATCHES = (1, 2, 4, 8)
BATCH_FACTORS = (1, 2, 4)
# How far below the chip's memory a plan must stay to count as fitting: the analytic model's error.
MARGIN = 0.15


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a configuration, and its plan."""

    config: ml_collections.ConfigDict
    plan: roofline.Plan

    @property
    def fits(self) -> bool:
        """Whether it fits with room for the memory model's error."""
        return self.plan.memory.total * (1 + MARGIN) <= self.plan.hbm_bytes

    @property
    def name(self) -> str:
        """The flags that make it of the configuration that was searched from."""
        config = self.config
        flags = {
            **{f"mesh.{axis}": config.mesh[axis] for axis in ("slices", "data", "fsdp", "tensor")},
            "model.remat": config.model.remat,
            "train.batch_rows": config.train.batch_rows,
            "train.microbatches": config.train.microbatches,
        }
        return " ".join(f"--config.{key}={value}" for key, value in flags.items())


def search(
    config: ml_collections.ConfigDict,
    topology: Topology,
    *,
    batch_rows: Sequence[int] = (),
    mean_segment: float = roofline.PAPER_SEGMENT,
) -> list[Candidate]:
    """All that training would accept, those that fit first, by tokens per second of model FLOPs; then by memory.

    `batch_rows` are the global batches to try; none given: the configuration's, twice and four times that, and the
    least that gives every chip a row.

    Raises UserError when nothing can be run at all.
    """
    candidates, refusal = [], None
    for changed in _changes(config, topology, batch_rows):
        try:
            run = pod_run(changed, topology)
        except UserError as error:
            refusal = error
            continue
        candidates.append(Candidate(changed, roofline.plan_of(run, mean_segment)))
    if not candidates:
        assert refusal is not None
        raise refusal
    return sorted(candidates, key=lambda one: (not one.fits, -one.plan.tokens_per_second, one.plan.memory.total))


def _changes(
    config: ml_collections.ConfigDict, topology: Topology, batch_rows: Sequence[int]
) -> Iterator[ml_collections.ConfigDict]:
    slices = topology.slices if topology.chip.platform == "tpu" else config.mesh.slices
    rows = batch_rows or sorted({*(config.train.batch_rows * factor for factor in BATCH_FACTORS), topology.chips})
    per_slice = topology.chips // topology.slices
    replicas = [size for size in (topology.slices, 2 * topology.slices, topology.chips) if topology.chips % size == 0]
    for data, tensor in itertools.product(sorted(set(replicas)), TENSOR):
        # As training would have it: tensor groups within a host or slice, and no head split between chips.
        if topology.chips % (data * tensor) or config.model.heads % tensor or tensor > per_slice:
            continue
        for remat, batch, microbatches in itertools.product(REMAT_POLICIES, rows, MICROBATCHES):
            changed = ml_collections.ConfigDict(config.to_dict())
            changed.mesh.update(slices=slices, data=data, fsdp=topology.chips // (data * tensor), tensor=tensor)
            changed.model.remat = remat
            changed.train.update(batch_rows=batch, microbatches=microbatches)
            yield changed
