"""Packed batches: the global batch of a step is a pure function of (corpus split, config, step).

Batch(step) is rows [step * batch_rows, (step + 1) * batch_rows) of the endless stream of `packing.stream_row`. A host
reads its share of them only, so the batches depend neither on the number of hosts nor on the number of workers, and
starting at any step costs nothing. Grain does prefetch and worker processes.

B batch rows of this host   L row length   S segments of a row
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Protocol

import grain
import numpy as np
from absl import flags

from data_pipeline import packing
from data_pipeline.corpus import SubjectRecord
from data_pipeline.errors import UserError
from data_pipeline.packing import PackingPlan
from data_pipeline.vocabulary import PREFIX_LENGTH

# Evaluation packs the same way whatever the run's seed, so that its losses compare across runs.
EVALUATION_SEED = 0
# More steps than any run has; Grain's ranges have an end.
_ENDLESS = 1 << 62

Batch = dict[str, np.ndarray]
BATCH_DTYPES = {
    "tokens_BxL": np.int32,
    "targets_BxL": np.int32,
    "segment_ids_BxL": np.int32,
    "positions_BxL": np.int32,
    "loss_weights_BxL": np.float32,
}


class RecordSource(Protocol):
    """What the loader needs of a split; `data_pipeline.corpus.SplitReader` is one."""

    name: str

    @property
    def lengths_R(self) -> np.ndarray:
        """uint32 tokens of each record."""

    def record(self, index: int) -> SubjectRecord:
        """The record numbered `index`."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_rows: rows of the global batch, of all hosts together.
        row_length: positions in a row.
        seed: seed of packing and order, 0 .. 2**32 - 1.
        workers: processes that make batches; 0 makes them in a thread of this process.
        prefetch: batches made ahead, by each worker; 0 makes each when it is asked for.
    """

    batch_rows: int
    row_length: int
    seed: int
    workers: int = 0
    prefetch: int = 2


def training_plan(split: RecordSource, config: LoaderConfig) -> PackingPlan:
    """The plan of `train_batches`: tells rows and tokens of an epoch. Raises UserError for an empty split."""
    return _plan(split, config.row_length, config.seed)


def train_batches(
    split: RecordSource,
    config: LoaderConfig,
    *,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    plan: PackingPlan | None = None,
) -> Iterator[Batch]:
    """Endless batches of this host, from `start_step` on.

    Args:
        split: the records.
        config: see `LoaderConfig`.
        start_step: step of the first batch.
        host, hosts: number of this host, and of all.
        plan: `training_plan(split, config)`, where the caller has it already.

    Returns:
        Iterator of dicts, arrays [batch_rows / hosts, row_length]: int32 `tokens_BxL`, `targets_BxL`, `segment_ids_BxL`
        (1, 2, ... in each row, 0 padding), `positions_BxL` (from 0 in each segment) and float32 `loss_weights_BxL`.
        Padding is token 0 with weight 0.

    Raises:
        UserError: an empty split, rows that do not divide among hosts, a row shorter than a static prefix; while
            reading, a damaged file.
    """
    _validate(config, host, hosts)
    plan = training_plan(split, config) if plan is None else plan
    make = functools.partial(batch_at, split, batch_rows=config.batch_rows, host=host, hosts=hosts)
    return _iterate(plan, make, range(start_step, _ENDLESS), config)


def evaluation_batches(
    split: RecordSource,
    config: LoaderConfig,
    *,
    host: int = 0,
    hosts: int = 1,
    max_batches: int | None = None,
    plan: PackingPlan | None = None,
) -> Iterator[Batch]:
    """Every row of the split once, the last batch filled up with empty rows; otherwise as `train_batches`.

    The packing does not depend on `config.seed`. Rows lie in random order, so the first `max_batches` are a fair
    sample. Every host gets the same number of batches. `plan` is `evaluation_plan(split, config)`, where the caller
    has it already.
    """
    _validate(config, host, hosts)
    plan = evaluation_plan(split, config) if plan is None else plan
    batches = -(-plan.num_rows // config.batch_rows)
    batches = batches if max_batches is None else min(batches, max_batches)
    make = functools.partial(evaluation_batch_at, split, batch_rows=config.batch_rows, host=host, hosts=hosts)
    return _iterate(plan, make, range(batches), config)


def evaluation_plan(split: RecordSource, config: LoaderConfig) -> PackingPlan:
    """The plan of `evaluation_batches`. Raises UserError for an empty split."""
    return _plan(split, config.row_length, EVALUATION_SEED)


def batch_at(
    split: RecordSource, plan: PackingPlan, step: int, *, batch_rows: int, host: int = 0, hosts: int = 1
) -> Batch:
    """The host's share of the training batch of `step`, by random access."""
    rows = [packing.stream_row(plan, place) for place in _places(step, batch_rows, host, hosts)]
    return _assemble(split, plan, rows)


def evaluation_batch_at(
    split: RecordSource, plan: PackingPlan, index: int, *, batch_rows: int, host: int = 0, hosts: int = 1
) -> Batch:
    """The host's share of evaluation batch `index`, by random access; rows after the last are empty."""
    return _assemble(split, plan, list(_places(index, batch_rows, host, hosts)))


def _plan(split: RecordSource, row_length: int, seed: int) -> PackingPlan:
    if len(split.lengths_R) == 0:
        raise UserError("has no subjects", where=f"split {split.name}", fix="build a corpus with subjects in it")
    return packing.plan(split.lengths_R, row_length=row_length, prefix_length=PREFIX_LENGTH, seed=seed)


def _validate(config: LoaderConfig, host: int, hosts: int) -> None:
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}")
    if config.batch_rows < 1 or config.batch_rows % hosts:
        raise UserError(
            f"{config.batch_rows} rows do not divide among {hosts} hosts",
            where="batch_rows",
            fix=f"choose a positive multiple of {hosts}",
        )
    for key in ("workers", "prefetch"):
        if getattr(config, key) < 0:
            raise UserError(f"{getattr(config, key)} is negative", where=key, fix="choose 0 or more")


def _places(step: int, batch_rows: int, host: int, hosts: int) -> range:
    share = batch_rows // hosts
    begin = step * batch_rows + host * share
    return range(begin, begin + share)


def _iterate(
    plan: PackingPlan, make: Callable[[PackingPlan, int], Batch], steps: range, config: LoaderConfig
) -> Iterator[Batch]:
    if config.workers:
        return _iterate_with_workers(plan, make, steps, config)
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(functools.partial(make, plan))
    return iter(dataset.to_iter_dataset(_read_options(config)))


def _iterate_with_workers(
    plan: PackingPlan, make: Callable[[PackingPlan, int], Batch], steps: range, config: LoaderConfig
) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():
        # Grain reads its own flags when it starts workers; in a program without absl flags their defaults hold.
        flags.FLAGS.mark_as_parsed()
    # The workers map one copy of the plan: at 118 million subjects a copy for each would not fit.
    with tempfile.TemporaryDirectory(prefix="packing_plan_") as folder:
        plan.save(pathlib.Path(folder))
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(_InWorker(make, pathlib.Path(folder)))
        options = grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(1, config.prefetch)
        )
        batches = iter(dataset.to_iter_dataset(_read_options(config)).mp_prefetch(options))
        try:
            yield from batches
        finally:
            batches.close()


def _read_options(config: LoaderConfig) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=min(1, config.prefetch), prefetch_buffer_size=config.prefetch)


@dataclasses.dataclass(frozen=True)
class _InWorker:
    """Makes batches in a worker process, which opens the saved plan when it makes its first."""

    make: Callable[[PackingPlan, int], Batch]
    folder: pathlib.Path

    @functools.cached_property
    def plan(self) -> PackingPlan:
        return PackingPlan.load(self.folder)

    def __call__(self, step: int) -> Batch:
        return self.make(self.plan, step)


def _assemble(split: RecordSource, plan: PackingPlan, rows: list[int]) -> Batch:
    batch = {name: np.zeros((len(rows), plan.row_length), dtype) for name, dtype in BATCH_DTYPES.items()}
    count_L = np.arange(plan.row_length, dtype=np.int32)
    for place, row in enumerate(rows):
        if row < plan.num_rows:
            _fill_row(split, plan, row, count_L, *(array[place] for array in batch.values()))
    return batch


def _fill_row(
    split: RecordSource,
    plan: PackingPlan,
    row: int,
    count_L: np.ndarray,
    tokens_L: np.ndarray,
    targets_L: np.ndarray,
    segment_ids_L: np.ndarray,
    positions_L: np.ndarray,
    loss_weights_L: np.ndarray,
) -> None:
    """Write a row's segments into arrays of zeros."""
    records_S, starts_S, lengths_S = (values.tolist() for values in plan.row(row))
    begin = 0
    for segment, (index, start, length) in enumerate(zip(records_S, starts_S, lengths_S, strict=True), start=1):
        record = split.record(index)
        end = begin + length
        fresh = begin  # where the positions that carry loss begin
        if start:
            fresh += plan.prefix_length
            prefix = record.prefix_at(start)
            tokens_L[begin:fresh] = prefix
            # What comes next in the row, as everywhere; its weight is 0.
            targets_L[begin : fresh - 1] = prefix[1:]
            targets_L[fresh - 1] = record.tokens_T[start]
        stop = start + end - fresh
        tokens_L[fresh:end] = record.tokens_T[start:stop]
        targets_L[fresh:end] = record.tokens_T[start + 1 : stop + 1]
        segment_ids_L[begin:end] = segment
        positions_L[begin:end] = count_L[:length]
        loss_weights_L[fresh:end] = 1
        begin = end
