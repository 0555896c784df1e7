"""Build a corpus of token sequences from a MEDS data set.

    python -m data_pipeline.build --meds DIR --out CORPUS --config.code_map=mimic

Two passes over the shards, in one process per core: the first counts what the training subjects have (codes, values,
demographics), from which the vocabulary is made; the second writes every subject's tokens. CORPUS appears only when it
is whole. Ends with a line that says how many subjects and tokens there are, and what became of the input's rows.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
import polars as pl
import tqdm
from absl import flags
from ml_collections import config_flags

from data_pipeline import (
    build_config,
    code_maps,
    command_line,
    corpus,
    intervals,
    meds,
    statistics,
    tokenizer,
    vocabulary_builder,
)
from data_pipeline.columns import to_columns
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import KINDS, PREFIX_LENGTH, Vocabulary

SPLITS = ("train", "tuning", "held_out")


@dataclasses.dataclass(frozen=True)
class _TokenizedSplit:
    """One shard's part of one split, as written."""

    split: str
    file: str
    sha256: str
    subject_ids: np.ndarray
    lengths: np.ndarray
    tokens_by_kind: np.ndarray
    row_counts: dict[str, int]
    interval_us: np.ndarray
    interval_tokens: np.ndarray


def build_corpus(
    meds_root: pathlib.Path,
    out: pathlib.Path,
    config: ml_collections.ConfigDict,
    *,
    workers: int | None = None,
) -> corpus.Corpus:
    """Read a MEDS data set and write a corpus; the bytes do not depend on `workers` (default: one per core).

    Raises UserError for data that cannot be used and for an `out` that already holds something; nothing is left at
    `out` then.
    """
    _check_config(config)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already exists", where=str(out), fix="remove it or choose another --out")
    dataset = meds.open_dataset(meds_root)
    for note in dataset.notes:
        print(f"{meds_root}: {note}", file=sys.stderr)
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        _write(dataset, work, config, workers or os.cpu_count() or 1)
        if out.exists():
            out.rmdir()
        work.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(out), fix="check space and rights"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return corpus.Corpus.open(out)


def _write(dataset: meds.MedsDataset, work: pathlib.Path, config: ml_collections.ConfigDict, workers: int) -> None:
    code_map = code_maps.named(config.code_map)
    with _pool(min(workers, len(dataset.shards)), dataset, code_map) as run:
        counted = run("counting", _count_shard, [(path,) for path in dataset.shards])
        meds.check_subjects_once({path: ids for path, (ids, _) in zip(dataset.shards, counted, strict=True)})
        totals = statistics.merge([part for _, part in counted])
        if not totals.subjects:
            raise UserError(
                "no subject in the train split",
                where=str(dataset.root),
                fix="the vocabulary is made from training subjects: check metadata/subject_splits.parquet",
            )
        vocabulary = vocabulary_builder.build_vocabulary(
            totals,
            code_map,
            dataset.descriptions,
            interval_preset=config.interval_preset,
            min_subjects_per_code=config.min_subjects_per_code,
            min_values_per_code=config.min_values_per_code,
        )
        vocabulary.save(work / corpus.VOCABULARY)
        jobs = [(path, index, work) for index, path in enumerate(dataset.shards)]
        pieces = [piece for shard in run("tokenizing", _tokenize_shard, jobs) for piece in shard]
    training = [piece for piece in pieces if piece.split == "train"]
    seconds = vocabulary_builder.measured_intervals(
        vocabulary.interval_preset,
        np.sum([piece.interval_us for piece in training], axis=0),
        np.sum([piece.interval_tokens for piece in training], axis=0),
    )
    vocabulary = dataclasses.replace(vocabulary, interval_seconds=seconds)
    vocabulary.save(work / corpus.VOCABULARY)
    _write_manifest(work, dataset, config, vocabulary, totals, pieces)


def _write_manifest(
    work: pathlib.Path,
    dataset: meds.MedsDataset,
    config: ml_collections.ConfigDict,
    vocabulary: Vocabulary,
    totals: statistics.Statistics,
    pieces: Sequence[_TokenizedSplit],
) -> None:
    names = [split for split in SPLITS if any(piece.split == split for piece in pieces)]
    names += sorted({piece.split for piece in pieces} - set(SPLITS))
    splits = {name: _finish_split(work, name, [piece for piece in pieces if piece.split == name]) for name in names}
    rules = totals.rules.group_by("rule").agg(pl.col("events").sum()).sort("rule")
    manifest = {
        "format_version": corpus.FORMAT_VERSION,
        "fingerprint": corpus.fingerprint(vocabulary.fingerprint, splits),
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "vocabulary_size": len(vocabulary),
        "prefix_length": PREFIX_LENGTH,
        "source": {
            "name": dataset.name,
            "version": dataset.version,
            "meds_version": dataset.meds_version,
            "shards": len(dataset.shards),
            "notes": list(dataset.notes),
        },
        "config": config.to_dict(),
        "training_events_by_rule": {str(rule): events for rule, events in rules.iter_rows()},
        "splits": splits,
    }
    temporary = work / (corpus.MANIFEST + ".tmp")
    temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    temporary.rename(work / corpus.MANIFEST)


def _finish_split(work: pathlib.Path, name: str, pieces: Sequence[_TokenizedSplit]) -> dict[str, Any]:
    lengths = np.concatenate([piece.lengths for piece in pieces])
    np.save(work / name / "lengths.npy", lengths)
    np.save(work / name / "subject_ids.npy", np.concatenate([piece.subject_ids for piece in pieces]))
    by_kind = np.sum([piece.tokens_by_kind for piece in pieces], axis=0)
    counts = [piece.row_counts for piece in pieces]
    return {
        "subjects": len(lengths),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "tokens_by_kind": {kind: int(count) for kind, count in zip(KINDS, by_kind, strict=True) if count},
        "rows": {reason: sum(count[reason] for count in counts) for reason in counts[0]},
        "shards": [{"file": piece.file, "records": len(piece.lengths), "sha256": piece.sha256} for piece in pieces],
    }


# What every worker process knows: set once per process, so that jobs stay small.
_dataset: meds.MedsDataset
_code_map: code_maps.CodeMap


def _start_worker(dataset: meds.MedsDataset, code_map: code_maps.CodeMap) -> None:
    global _dataset, _code_map
    _dataset, _code_map = dataset, code_map


def _count_shard(path: pathlib.Path) -> tuple[np.ndarray, statistics.Statistics]:
    """(ids of all subjects in the file, counts of its training subjects)."""
    events = meds.read_shard(path)
    training = _dataset.splits.filter(pl.col("split") == "train").select("subject_id")
    columns = to_columns(events.join(training, on="subject_id", how="semi", maintain_order="left"), _code_map)
    return events["subject_id"].unique(maintain_order=True).to_numpy(), statistics.count(columns)


def _tokenize_shard(path: pathlib.Path, index: int, work: pathlib.Path) -> list[_TokenizedSplit]:
    """Write one ArrayRecord file for each split that the shard has subjects of."""
    vocabulary = Vocabulary.load(work / corpus.VOCABULARY)
    events = meds.read_shard(path).join(_dataset.splits, on="subject_id", how="left", maintain_order="left")
    unassigned = events["split"].null_count()
    if unassigned:
        raise UserError(
            f"{unassigned} rows belong to subjects that are in no split",
            where=str(path),
            fix="list every subject in metadata/subject_splits.parquet",
        )
    return [
        _write_split(part.drop("split"), str(split), index, vocabulary, work)
        for (split,), part in sorted(events.partition_by("split", as_dict=True, maintain_order=True).items())
    ]


def _write_split(
    events: pl.DataFrame, split: str, index: int, vocabulary: Vocabulary, work: pathlib.Path
) -> _TokenizedSplit:
    tokenized = tokenizer.tokenize(events, vocabulary)
    file = pathlib.Path(split) / f"{index:05d}.array_record"
    (work / split).mkdir(exist_ok=True)
    corpus.write_shard(work / file, tokenized.records())
    tokens_V = np.bincount(tokenized.tokens_T, minlength=len(vocabulary))
    kinds_V = np.array([KINDS.index(token.kind) for token in vocabulary.tokens])
    return _TokenizedSplit(
        split=split,
        file=file.as_posix(),
        sha256=corpus.file_sha256(work / file),
        subject_ids=tokenized.subject_ids_S,
        lengths=np.diff(tokenized.offsets_S1).astype(np.uint32),
        tokens_by_kind=np.bincount(kinds_V, tokens_V, minlength=len(KINDS)).astype(np.int64),
        row_counts=dict(tokenized.row_counts),
        interval_us=tokenized.interval_us_I,
        interval_tokens=tokenized.interval_tokens_I,
    )


@contextlib.contextmanager
def _pool(workers: int, dataset: meds.MedsDataset, code_map: code_maps.CodeMap) -> Iterator[Callable[..., list[Any]]]:
    """A function run(title, job, arguments) that gives the jobs' results in order, with a progress bar."""
    if workers == 1:
        _start_worker(dataset, code_map)
        yield lambda title, job, args: [job(*arg) for arg in tqdm.tqdm(args, title, unit="shard", disable=None)]
        return
    # Spawned and not forked: polars and Arrow hold threads. One polars thread each, as there is a process per core.
    threads = os.environ.get("POLARS_MAX_THREADS")
    os.environ["POLARS_MAX_THREADS"] = "1"
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (dataset, code_map)
    )

    def run(title: str, job: Callable[..., Any], args: Sequence[tuple[Any, ...]]) -> list[Any]:
        futures = [pool.submit(job, *arg) for arg in args]
        return [future.result() for future in tqdm.tqdm(futures, title, unit="shard", disable=None)]

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("POLARS_MAX_THREADS")
        if threads is not None:
            os.environ["POLARS_MAX_THREADS"] = threads


def _check_config(config: ml_collections.ConfigDict) -> None:
    if config.interval_preset not in intervals.PRESETS:
        raise UserError(
            f"unknown preset {config.interval_preset!r}",
            where="config.interval_preset",
            fix=f"choose one of {', '.join(intervals.PRESETS)}",
        )
    for key in ("min_subjects_per_code", "min_values_per_code"):
        if config[key] < 1:
            raise UserError(f"{config[key]} is below 1", where=f"config.{key}", fix="give a positive number")


def _define_flags() -> None:
    flags.DEFINE_string("meds", None, "folder of the MEDS data set", required=True)
    flags.DEFINE_string("out", None, "folder of the corpus to write; must not exist", required=True)
    flags.DEFINE_integer("workers", None, "processes (default: one per core)", lower_bound=1)
    config_flags.DEFINE_config_file(
        "config", build_config.__file__, "corpus configuration file; single keys by --config.KEY=VALUE"
    )


def main() -> None:
    """Build as the flags say."""
    values = flags.FLAGS
    start = time.perf_counter()
    built = build_corpus(pathlib.Path(values.meds), pathlib.Path(values.out), values.config, workers=values.workers)
    seconds = time.perf_counter() - start
    splits = built.manifest["splits"].values()
    rows = {reason: sum(split["rows"][reason] for split in splits) for reason in next(iter(splits))["rows"]}
    print(
        f"{built.root}: {sum(split['subjects'] for split in splits):,} subjects, "
        f"{sum(split['tokens'] for split in splits):,} tokens, vocabulary {len(built.vocabulary):,}, {seconds:.1f} s"
    )
    print("input rows: " + ", ".join(f"{count:,} {reason}" for reason, count in rows.items() if count))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
