"""Measure the loader: packed training batches from ArrayRecord files on local disk.

python -m benchmarks.loader --records 50000 --row_length 8192 --batch_rows 64 --workers 0

Writes a corpus split of random records (log-normal lengths) to a temporary folder, plans it, reads it for --seconds,
and removes it. The last line is one JSON object: tokens_per_s (targets with weight 1), the same for a floor that only
reads and decodes the records in random order in one thread, their ratio, fill, plan_seconds, and seconds to the first
batch from a step far away. Expect at least 20,000,000 tokens_per_s at rows of 8192.

python -m benchmarks.loader --plan_records 118000000

Only plans that many lengths, and reports seconds, fill and peak memory. Expect less than 60 seconds and 4 GiB.
"""

import json
import pathlib
import resource
import tempfile
import time

import numpy as np
from absl import flags

from data_pipeline import command_line, corpus, loader, packing
from data_pipeline.vocabulary import PREFIX_LENGTH

_RECORDS = flags.DEFINE_integer("records", 50_000, "records to write", lower_bound=1)
_MEAN = flags.DEFINE_integer("mean_length", 1280, "mean tokens of a record", lower_bound=8)
_SIGMA = flags.DEFINE_float("sigma", 1.0, "standard deviation of the logarithm of the lengths", lower_bound=0)
_SHARDS = flags.DEFINE_integer("shards", 8, "ArrayRecord files", lower_bound=1)
_ROW_LENGTH = flags.DEFINE_integer("row_length", 8192, "positions in a row")
_BATCH_ROWS = flags.DEFINE_integer("batch_rows", 64, "rows in a batch")
_WORKERS = flags.DEFINE_integer("workers", 0, "loader processes; 0 makes batches in this one")
_SECONDS = flags.DEFINE_float("seconds", 10, "how long to read")
_PLAN_RECORDS = flags.DEFINE_integer("plan_records", 0, "only plan this many lengths")

FAR_STEP = 1_000_000


def main() -> None:
    """Entry point."""
    if _PLAN_RECORDS.value:
        print(json.dumps(_measure_plan(_lengths(_PLAN_RECORDS.value))))
        return
    with tempfile.TemporaryDirectory() as folder:
        split = _write_split(pathlib.Path(folder), _lengths(_RECORDS.value))
        print(json.dumps(_measure_loader(split)))


def _lengths(records: int) -> np.ndarray:
    random = np.random.default_rng(0)
    lengths_R = np.empty(records, np.uint32)
    step = 1 << 20
    for begin in range(0, records, step):
        normal = random.normal(np.log(_MEAN.value) - _SIGMA.value**2 / 2, _SIGMA.value, min(step, records - begin))
        lengths_R[begin : begin + step] = np.clip(np.exp(normal), PREFIX_LENGTH + 1, 1 << 20)
    return lengths_R


def _write_split(root: pathlib.Path, lengths_R: np.ndarray) -> corpus.SplitReader:
    random = np.random.default_rng(1)
    (root / "train").mkdir()
    np.save(root / "train" / "lengths.npy", lengths_R)
    np.save(root / "train" / "subject_ids.npy", np.arange(len(lengths_R), dtype=np.int64))
    shards = []
    for number, records_S in enumerate(np.array_split(np.arange(len(lengths_R)), _SHARDS.value)):
        file = f"train/{number:05d}.array_record"
        corpus.write_shard(root / file, (_random_record(random, index, lengths_R) for index in records_S))
        shards.append({"file": file, "records": len(records_S)})
    return corpus.SplitReader(root, "train", shards)


def _random_record(random: np.random.Generator, index: int, lengths_R: np.ndarray) -> corpus.SubjectRecord:
    # Zipf-like, so that compression in the files is about what real codes allow.
    tokens_T = (7105 ** random.random(int(lengths_R[index]))).astype(np.uint16)
    return corpus.SubjectRecord(int(index), tokens_T, np.zeros(1, np.uint32), tokens_T[None, :PREFIX_LENGTH])


def _measure_loader(split: corpus.SplitReader) -> dict[str, float]:
    config = loader.LoaderConfig(_BATCH_ROWS.value, _ROW_LENGTH.value, seed=0, workers=_WORKERS.value)
    begin = time.perf_counter()
    plan = loader.training_plan(split, config)
    plan_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    batches = loader.train_batches(split, config, start_step=FAR_STEP, plan=plan)
    next(batches)
    first_batch_seconds = time.perf_counter() - begin
    tokens = 0
    begin = time.perf_counter()
    while (seconds := time.perf_counter() - begin) < _SECONDS.value:
        tokens += int(np.count_nonzero(next(batches)["loss_weights_BxL"]))
    tokens_per_s = tokens / seconds
    floor = _read_only_tokens_per_s(split)
    return {
        "tokens_per_s": tokens_per_s,
        "floor_tokens_per_s": floor,
        "share_of_floor": tokens_per_s / floor,
        "fill": plan.fill,
        "plan_seconds": plan_seconds,
        "first_batch_seconds": first_batch_seconds,
        "workers": config.workers,
        "row_length": config.row_length,
        "batch_rows": config.batch_rows,
    }


def _read_only_tokens_per_s(split: corpus.SplitReader) -> float:
    order = np.random.default_rng(2).permutation(len(split))
    tokens = 0
    begin = time.perf_counter()
    for index in order:
        tokens += len(split.record(int(index)).tokens_T)
        if (seconds := time.perf_counter() - begin) > _SECONDS.value / 2:
            break
    return tokens / seconds


def _measure_plan(lengths_R: np.ndarray) -> dict[str, float]:
    begin = time.perf_counter()
    plan = packing.plan(lengths_R, row_length=_ROW_LENGTH.value, prefix_length=PREFIX_LENGTH, seed=0)
    return {
        "plan_seconds": time.perf_counter() - begin,
        "records": len(lengths_R),
        "rows": plan.num_rows,
        "fill": plan.fill,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    command_line.run(main)
