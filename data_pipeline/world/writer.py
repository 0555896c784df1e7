"""Write the world as a MEDS 0.4 data set, the same bytes whatever the number of worker processes."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import meds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar
from data_pipeline.world import catalogue, simulation, tables
from data_pipeline.world.draws import mix

DATASET_NAME = "cometjax-world"
SPLITS = (meds.train_split, meds.tuning_split, meds.held_out_split)
# Of each ten consecutive subjects, one tunes and one is held out.
TEN = 10
SUBJECTS_PER_SHARD = 5_000
# Subjects simulated together: enough for wide columns, few enough for the cache. No byte depends on it.
BLOCK = 1_024
ROWS_PER_GROUP = 1 << 18
_MICROSECONDS_PER_MINUTE = 60_000_000
_CODE_TEXTS = pa.array([code.code for code in catalogue.CODES])


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written."""

    subjects: int
    events: int
    shards: int


@dataclasses.dataclass(frozen=True)
class _Shard:
    path: pathlib.Path
    subject_ids_P: np.ndarray
    seed: int


def split_of(subject_ids_P: np.ndarray, seed: int) -> np.ndarray:
    """Index into SPLITS for each subject id (from 1), a pure function of (subject, seed)."""
    tens_P, place_P = np.divmod(subject_ids_P.astype(np.int64) - 1, TEN)
    hash_P = mix(mix(np.array([seed], np.uint64)) ^ mix(tens_P.astype(np.uint64) + np.uint64(1)))
    tuning_P = (hash_P % np.uint64(TEN)).astype(np.int64)
    # One of the nine other places.
    held_out_P = (tuning_P + 1 + (hash_P // np.uint64(TEN) % np.uint64(TEN - 1)).astype(np.int64)) % TEN
    return np.where(place_P == tuning_P, 1, np.where(place_P == held_out_P, 2, 0))


def write_world(
    out: pathlib.Path,
    patients: int,
    seed: int,
    shards: int | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Summary:
    """Write the MEDS data set of `patients` subjects to the folder `out`, which must be missing or empty.

    Its bytes depend on (patients, seed, shards) alone. `shards` is the number of train files (default: one for each
    5,000 subjects, at least two); the other splits have an eighth of that, at least one. `workers` processes (default:
    one for each core, started afresh: a script that calls this needs its `if __name__ == "__main__"`).
    Raises UserError if an argument is out of range or the folder holds something.
    """
    shards = max(2, -(-patients // SUBJECTS_PER_SHARD)) if shards is None else shards
    _check(out, patients, seed, shards)
    with _whole_folder(out) as folder:
        subject_ids_P = np.arange(1, patients + 1)
        split_P = split_of(subject_ids_P, seed)
        tasks = list(_shards(folder, subject_ids_P, split_P, seed, shards))
        _write_metadata(folder, subject_ids_P, split_P, patients, seed)
        if workers is None:
            # Below this a new process costs more than it saves.
            workers = (os.cpu_count() or 1) if patients >= 2 * BLOCK else 1
        events = _write_all(tasks, min(workers, len(tasks)), progress)
    return Summary(patients, events, len(tasks))


def _check(out: pathlib.Path, patients: int, seed: int, shards: int) -> None:
    if not TEN <= patients < 2**31:
        raise UserError(f"{patients} is not from {TEN} to 2^31 - 1", where="patients")
    if not 0 <= seed < 2**63:
        raise UserError(f"{seed} is not from 0 to 2^63 - 1", where="seed")
    if not 1 <= shards <= patients // TEN:
        raise UserError(f"{shards} is not from 1 to a tenth of the patients", where="shards")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists and is not an empty folder", where=str(out), fix="choose another or remove it")


@contextlib.contextmanager
def _whole_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `out` that takes its name once the block has ended well, and is gone if it has not.

    What a killed run has left of it is removed. Raises UserError where it cannot be written.
    """
    out = out.absolute()
    folder = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise UserError(reason, where=str(out), fix="check space and rights") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shards(
    folder: pathlib.Path, subject_ids_P: np.ndarray, split_P: np.ndarray, seed: int, shards: int
) -> Iterator[_Shard]:
    for index, split in enumerate(SPLITS):
        number = shards if index == 0 else max(1, shards // (TEN - 2))
        for shard, members in enumerate(np.array_split(subject_ids_P[split_P == index], number)):
            yield _Shard(folder / meds.data_subdirectory / split / f"{shard}.parquet", members, seed)


def _write_all(tasks: list[_Shard], workers: int, progress: bool) -> int:
    total = sum(len(task.subject_ids_P) for task in tasks)
    with progress_bar(total=total, unit=" subjects", desc="world", enabled=progress) as bar:
        if workers <= 1:
            return sum(_write_shard(task, bar.update) for task in tasks)
        events = 0
        # spawn: a fork would copy the locks of whatever threads the caller runs.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            largest_first = sorted(tasks, key=lambda task: -len(task.subject_ids_P))
            sizes = {pool.submit(_write_shard, task): len(task.subject_ids_P) for task in largest_first}
            for future in concurrent.futures.as_completed(sizes):
                events += future.result()
                bar.update(sizes[future])
    return events


def _write_shard(task: _Shard, done: Callable[[int], object] = lambda _: None) -> int:
    task.path.parent.mkdir(parents=True, exist_ok=True)
    events = 0
    with pq.ParquetWriter(task.path, meds.DataSchema.schema().remove(4), compression="zstd") as writer:
        for start in range(0, len(task.subject_ids_P), BLOCK):
            subject_ids_P = task.subject_ids_P[start : start + BLOCK]
            table = to_table(simulation.simulate(subject_ids_P, task.seed))
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            events += table.num_rows
            done(len(subject_ids_P))
    return events


def to_table(events: simulation.Events) -> pa.Table:
    """The events as a table of MEDS's data schema, without text_value."""
    static_E = events.time_E == simulation.NO_TIME
    time_E = np.where(static_E, 0, events.time_E) * _MICROSECONDS_PER_MINUTE
    code_E = pa.DictionaryArray.from_arrays(pa.array(events.code_E.astype(np.int32)), _CODE_TEXTS)
    columns = [
        pa.array(events.subject_id_E, pa.int64()),
        pa.array(time_E, pa.timestamp("us"), mask=static_E),
        code_E.cast(pa.string()),
        pa.array(events.value_E, pa.float32(), mask=np.isnan(events.value_E)),
    ]
    return pa.table(columns, schema=meds.DataSchema.schema().remove(4))


def _write_metadata(
    folder: pathlib.Path, subject_ids_P: np.ndarray, split_P: np.ndarray, patients: int, seed: int
) -> None:
    metadata = folder / "metadata"
    metadata.mkdir()
    names = pa.array(SPLITS)
    splits = pa.DictionaryArray.from_arrays(pa.array(split_P.astype(np.int32)), names).cast(pa.string())
    columns = [pa.array(subject_ids_P, pa.int64()), splits]
    pq.write_table(pa.table(columns, schema=meds.SubjectSplitSchema.schema()), folder / meds.subject_splits_filepath)
    codes = sorted(catalogue.CODES, key=lambda code: code.code)
    rows = [
        pa.array([code.code for code in codes]),
        pa.array([code.description for code in codes]),
        pa.nulls(len(codes), pa.list_(pa.string())),
    ]
    pq.write_table(pa.table(rows, schema=meds.CodeMetadataSchema.schema()), folder / meds.code_metadata_filepath)
    content = {
        "dataset_name": DATASET_NAME,
        "dataset_version": f"patients={patients},seed={seed},rules={tables.fingerprint()}",
        "etl_name": "data_pipeline.world",
        "etl_version": importlib.metadata.version("cometjax"),
        "meds_version": "0.4.1",
    }
    (folder / meds.dataset_metadata_filepath).write_text(json.dumps(content, indent=2) + "\n")
