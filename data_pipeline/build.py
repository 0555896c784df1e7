"""Build a corpus of token sequences from a MEDS data set.

    python -m data_pipeline.build --meds DIR --out CORPUS --config.code_map=mimic

Two passes over the shards, in one process per core: the first counts what the training subjects have (codes, values,
demographics), from which the vocabulary is made; the second writes every subject's tokens. CORPUS appears only when it
is whole. Ends with a line that says how many subjects and tokens there are, and what became of the input's rows.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
import time

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from data_pipeline import (
    build_config,
    build_manifest,
    build_shards,
    code_maps,
    command_line,
    corpus,
    engines,
    meds,
    statistics,
    vocabulary_builder,
)
from data_pipeline.errors import UserError


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
    build_config.check(config)
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
    with engines.local(min(workers, len(dataset.shards)), dataset, code_map) as run:
        counted = run("counting", build_shards.count_shard, [(path,) for path in dataset.shards])
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
        pieces = [piece for shard in run("tokenizing", build_shards.tokenize_shard, jobs) for piece in shard]
    training = [piece for piece in pieces if piece.split == "train"]
    seconds = vocabulary_builder.measured_intervals(
        vocabulary.interval_preset,
        np.sum([piece.interval_us for piece in training], axis=0),
        np.sum([piece.interval_tokens for piece in training], axis=0),
    )
    vocabulary = dataclasses.replace(vocabulary, interval_seconds=seconds)
    vocabulary.save(work / corpus.VOCABULARY)
    build_manifest.write_manifest(work, dataset, config, vocabulary, totals, pieces)


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
