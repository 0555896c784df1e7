"""Packed batches: the global batch of a step is a pure function of (corpus split, config, step).

Batch(step) is rows [step * batch_rows, (step + 1) * batch_rows) of the endless stream of `packing.stream_row`, or as
many of those that a group of steps shares (`length_groups`). A host reads its share of them only, so the batches depend
neither on the number of hosts nor on the number of workers, and starting at any step costs nothing.

B batch rows of this host   L row length   S segments of all B rows, in order
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from data_pipeline import loader_workers, plan_cache, row_tokens
from data_pipeline.errors import UserError
from data_pipeline.length_groups import places_of_steps
from data_pipeline.mixture import MixedPlan, MixedSplit
from data_pipeline.packing import PackingPlan, RowPlan
from data_pipeline.row_tokens import RecordSource, RowTokens
from data_pipeline.vocabulary import PREFIX_LENGTH

# Evaluation packs the same way whatever the run's seed, so that its losses compare across runs.
EVALUATION_SEED = 0
# More steps than any run has; Grain's ranges have an end.
_ENDLESS = 1 << 62

Batch = dict[str, np.ndarray]
TrainingPlan = PackingPlan | MixedPlan
BATCH_DTYPES = {
    "tokens_BxL": np.int32,
    "targets_BxL": np.int32,
    "segment_ids_BxL": np.int32,
    "positions_BxL": np.int32,
    "loss_weights_BxL": np.float32,
}


_NO_SEGMENTS = RowPlan(*(np.zeros(0, np.uint32) for _ in RowPlan._fields))


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_rows: rows of the global batch, of all hosts together.
        row_length: positions in a row.
        seed: seed of packing and order, 0 .. 2**32 - 1.
        workers: processes that make batches; 0 makes them in a thread of this process.
        prefetch: batches made ahead, by each worker; 0 makes each when it is asked for.
        group_by_length: steps among which training rows are dealt so that those of one step cost attention alike; 1
            only orders a step's rows so that devices' shares do; 0 takes them as they come.
    """

    batch_rows: int
    row_length: int
    seed: int
    workers: int = 0
    prefetch: int = 2
    group_by_length: int = 0


def training_plan(split: RecordSource, config: LoaderConfig) -> TrainingPlan:
    """The plan of `train_batches`, for a mixture of each part. Raises UserError for an empty split."""
    if isinstance(split, MixedSplit):
        plans = tuple(_plan(part, config.row_length, config.seed) for part in split.parts)
        return MixedPlan(plans, split.first_records, split.schedule)
    return _plan(split, config.row_length, config.seed)


def train_batches(
    split: RecordSource,
    config: LoaderConfig,
    *,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    plan: TrainingPlan | None = None,
) -> Iterator[Batch]:
    """Endless batches of this host, from `start_step` on.

    Args:
        split: the records, of one corpus or of a mixture.
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

    places_of = places_of_steps(plan, config.batch_rows, config.group_by_length, config.seed)

    def rows_at(step: int) -> list[RowPlan]:
        return _training_rows(plan, _share(places_of(step), host, hosts))

    return _iterate(split, plan, rows_at, range(start_step, _ENDLESS), config)


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
    has it already. Batches of a mixture have int32 `sources_BxL` besides: the number of the corpus that a token is of.
    """
    _validate(config, host, hosts)
    plan = evaluation_plan(split, config) if plan is None else plan
    batches = -(-plan.num_rows // config.batch_rows)
    batches = batches if max_batches is None else min(batches, max_batches)

    def rows_at(index: int) -> list[RowPlan]:
        places = range(index * config.batch_rows, (index + 1) * config.batch_rows)
        return _evaluation_rows(plan, _share(places, host, hosts))

    first_records = split.first_records if isinstance(split, MixedSplit) else ()
    return _iterate(split, plan, rows_at, range(batches), config, first_records)


def evaluation_plan(split: RecordSource, config: LoaderConfig) -> PackingPlan:
    """The plan of `evaluation_batches`. Raises UserError for an empty split."""
    return _plan(split, config.row_length, EVALUATION_SEED)


def batch_at(
    split: RecordSource, plan: TrainingPlan, config: LoaderConfig, step: int, *, host: int = 0, hosts: int = 1
) -> Batch:
    """The host's share of the training batch of `step`, by random access."""
    places = places_of_steps(plan, config.batch_rows, config.group_by_length, config.seed)(step)
    return _batch(split, plan, _training_rows(plan, _share(places, host, hosts)))


def refuse_empty(split: RecordSource) -> None:
    """Raise UserError where a split has no subjects."""
    if len(split.lengths_R) == 0:
        raise UserError("has no subjects", where=f"split {split}", fix="build a corpus with subjects in it")


def _plan(split: RecordSource, row_length: int, seed: int) -> PackingPlan:
    refuse_empty(split)
    return plan_cache.plan(split.lengths_R, row_length=row_length, prefix_length=PREFIX_LENGTH, seed=seed)


def _validate(config: LoaderConfig, host: int, hosts: int) -> None:
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}")
    if config.batch_rows < 1 or config.batch_rows % hosts:
        raise UserError(
            f"{config.batch_rows} rows do not divide among {hosts} hosts",
            where="batch_rows",
            fix=f"choose a positive multiple of {hosts}",
        )
    for key in ("workers", "prefetch", "group_by_length"):
        if getattr(config, key) < 0:
            raise UserError(f"{getattr(config, key)} is negative", where=key, fix="choose 0 or more")


def _share(places: Sequence[int], host: int, hosts: int) -> Sequence[int]:
    size = len(places) // hosts
    return places[host * size : (host + 1) * size]


def _training_rows(plan: TrainingPlan, places: Sequence[int]) -> list[RowPlan]:
    return [plan.stream(place) for place in places]


def _evaluation_rows(plan: PackingPlan, places: Sequence[int]) -> list[RowPlan]:
    return [plan.row(place) if place < plan.num_rows else _NO_SEGMENTS for place in places]


def _iterate(
    split: RecordSource,
    plan: TrainingPlan,
    rows_at: Callable[[int], list[RowPlan]],
    steps: range,
    config: LoaderConfig,
    first_records: Sequence[int] = (),
) -> Iterator[Batch]:
    if config.workers:
        return loader_workers.iterate(
            split,
            steps,
            rows_at=rows_at,
            row_length=plan.row_length,
            prefix_length=plan.prefix_length,
            expand=lambda rows, tokens: _expand(rows, tokens, plan.prefix_length, first_records),
            workers=config.workers,
            prefetch=config.prefetch,
        )
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(
        lambda step: _batch(split, plan, rows_at(step), first_records)
    )
    options = grain.ReadOptions(num_threads=min(1, config.prefetch), prefetch_buffer_size=config.prefetch)
    return iter(dataset.to_iter_dataset(options))


def _batch(split: RecordSource, plan: TrainingPlan, rows: list[RowPlan], first_records: Sequence[int] = ()) -> Batch:
    content = row_tokens.read(split, rows, plan.row_length, plan.prefix_length)
    return _expand(rows, content, plan.prefix_length, first_records)


def _expand(
    rows: Sequence[RowPlan], content: RowTokens, prefix_length: int, first_records: Sequence[int] = ()
) -> Batch:
    """The batch of rows whose tokens were read; with `first_records`, of a mixture, the corpus of each token too."""
    num_rows, row_length = content.tokens_BxL.shape
    batch = {name: np.zeros((num_rows, row_length), dtype) for name, dtype in BATCH_DTYPES.items()}
    batch["tokens_BxL"][:] = content.tokens_BxL
    batch["targets_BxL"][:, :-1] = content.tokens_BxL[:, 1:]
    count_L = np.arange(row_length, dtype=np.int32)
    first = 0
    for place, row in enumerate(rows):
        targets_L, segment_ids_L, positions_L, loss_weights_L = (
            batch[name][place] for name in ("targets_BxL", "segment_ids_BxL", "positions_BxL", "loss_weights_BxL")
        )
        begin = 0
        for segment, (start, length) in enumerate(zip(row.start_S.tolist(), row.length_S.tolist(), strict=True)):
            end = begin + length
            segment_ids_L[begin:end] = segment + 1
            positions_L[begin:end] = count_L[:length]
            # A later window's static prefix carries no loss; its targets are what comes next in the row.
            loss_weights_L[begin + (prefix_length if start else 0) : end] = 1
            targets_L[end - 1] = content.last_target_S[first + segment]
            begin = end
        targets_L[begin:] = 0
        first += len(row.record_S)
    if first_records:
        batch["sources_BxL"] = _sources(rows, num_rows, row_length, first_records)
    return batch


def _sources(rows: Sequence[RowPlan], num_rows: int, row_length: int, first_records: Sequence[int]) -> np.ndarray:
    sources_BxL = np.zeros((num_rows, row_length), np.int32)
    for sources_L, row in zip(sources_BxL, rows, strict=True):
        part_S = np.searchsorted(first_records, row.record_S, side="right") - 1
        told_L = np.repeat(part_S, row.length_S)
        sources_L[: len(told_L)] = told_L
    return sources_BxL
