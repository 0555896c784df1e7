"""Build a corpus of token sequences from a MEDS data set.

    python -m data_pipeline.build --meds DIR --out CORPUS \\
        --config.code_map=mimic

Two passes over the shards, in one process per core or, with --engine=ray, on all cores of a Ray cluster: the first
counts what the training subjects have (codes, values, demographics), from which the vocabulary is made; the second
writes every subject's tokens. CORPUS appears only when it is whole; a run that was stopped is taken up where it was by
the same command. Ends with a line that says how many subjects and tokens there are, and what became of the input.

docs/config.md lists every key of --config, docs/code_maps.md says how codes are read.
"""

import pathlib
import sys
import time
from collections.abc import Collection
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipeline import (
    build_config,
    build_folder,
    build_job,
    code_maps,
    command_line,
    corpus,
    engines,
    interrupts,
    meds,
    ray_engine,
)
from data_pipeline.build_folder import BuildFolder
from data_pipeline.build_run import BuildRun
from data_pipeline.errors import UserError
from data_pipeline.frozen_vocabulary import FrozenVocabulary
from data_pipeline.locations import require_local
from data_pipeline.plurals import counted
from data_pipeline.split_table import SplitTable

ENGINES = ("local", "ray")
ON_ERROR = ("refuse", "quarantine")


def build_corpus(
    meds_root: pathlib.Path,
    out: pathlib.Path,
    config: ml_collections.ConfigDict,
    *,
    workers: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    on_error: str = "refuse",
    vocabulary: pathlib.Path | None = None,
    explicit: Collection[str] = (),
) -> corpus.Corpus:
    """Read a MEDS data set and write a corpus; its bytes are a function of the data, `config` and `vocabulary`.

    What a run that was stopped has finished, in CORPUS.partial, is taken up and not done again.

    Args:
        meds_root: the data set.
        out: the corpus to be.
        config: build_config's.
        workers: processes of the local engine; default: one per core. 1 is this process itself.
        engine: "local", or "ray": every core of a Ray cluster, at `ray_address` (default: see ray_engine.cluster).
        on_error: "refuse": data that cannot be used is a UserError; "quarantine": it is set aside in
            OUT/quarantine.parquet and counted.
        vocabulary: a corpus whose vocabulary is taken as it is, instead of making one.
        explicit: keys of `config` that the user named, so that `vocabulary` must not differ in them.

    Raises UserError for data that cannot be used, for an `out` that already holds something or cannot be written, and
    for one that another build is writing; nothing is at `out` then.
    """
    build_config.check(config)
    if engine == "ray":  # before an interrupted build's folder is opened, which may empty it
        ray_engine.require_ray()
    frozen = FrozenVocabulary.of(corpus.Corpus.open(vocabulary)) if vocabulary else None
    if frozen:
        config = frozen.adopt(config, explicit)
    lenient = on_error == "quarantine"
    dataset = meds.open_dataset(meds_root, lenient=lenient)
    for note in dataset.notes:
        print(f"{meds_root}: {note}", file=sys.stderr)
    code_map = frozen.vocabulary.code_map if frozen else code_maps.named(config.code_map)
    splits = SplitTable.of(dataset.splits, dataset.root)
    if not frozen:  # with another corpus's vocabulary a data set may be all of one split, of any name
        splits.refuse_misnamed(dataset.root)
    job = build_job.describe(dataset, _settings(config, code_map, frozen), splits.names, splits.key)
    with build_folder.opened(out, job) as folder:
        if folder is not None:
            try:
                started = (
                    ray_engine.cluster(ray_address) if engine == "ray" else engines.local(workers, len(dataset.shards))
                )
                with started as running:
                    BuildRun(dataset, config, code_map, job, folder, running, lenient, frozen).write(splits)
            except UserError as error:
                raise _with_what_is_kept(error, folder) from error
            build_folder.finish(folder, out)
    return corpus.Corpus.open(out)


def _settings(
    config: ml_collections.ConfigDict, code_map: code_maps.CodeMap, frozen: FrozenVocabulary | None
) -> dict[str, Any]:
    """Everything but the events that decides a corpus, by the names that a user knows it by."""
    return {
        **{f"config.{name}": value for name, value in config.to_dict().items()},
        "the code map": code_map.to_dict(),
        "the vocabulary": frozen.vocabulary.fingerprint if frozen else "",
    }


def _with_what_is_kept(error: UserError, folder: BuildFolder) -> UserError:
    """The error, with a word on where finished work is; none is kept where no shard was finished."""
    if build_folder.discard_if_empty(folder):
        return error
    return UserError(f"{error}; finished shards are kept in {folder.root}")


def _define_flags() -> None:
    flags.DEFINE_string("meds", None, "folder of the MEDS data set", required=True)
    flags.DEFINE_string("out", None, "folder of the corpus to write; must not exist", required=True)
    flags.DEFINE_enum("engine", "local", ENGINES, "processes of this machine, or a Ray cluster (docs/scale.md)")
    flags.DEFINE_integer("workers", None, "processes of the local engine (default: one per core)", lower_bound=1)
    flags.DEFINE_string(
        "ray_address", None, "of the Ray cluster (default: $RAY_ADDRESS, or a cluster of this machine alone)"
    )
    flags.DEFINE_enum(
        "on_error",
        "refuse",
        ON_ERROR,
        "what becomes of subjects and files that cannot be used: refuse the data set, or set them aside in "
        "CORPUS/quarantine.parquet",
    )
    flags.DEFINE_string(
        "vocabulary", None, "a corpus whose vocabulary to use as it is; codes that it lacks are counted as unknown"
    )
    config_flags.DEFINE_config_file(
        "config", build_config.__file__, "corpus configuration file; single keys by --config.KEY=VALUE"
    )


def main() -> None:
    """Build as the flags say."""
    values = flags.FLAGS
    start = time.perf_counter()
    require_local(values.out, "--out")
    out = pathlib.Path(values.out)
    resumption = f"{out}.partial keeps the shards that are finished: the same command goes on from there"
    with interrupts.resumable(lambda: resumption):
        built = build_corpus(
            pathlib.Path(values.meds),
            out,
            values.config,
            workers=values.workers,
            engine=values.engine,
            ray_address=values.ray_address,
            on_error=values.on_error,
            vocabulary=pathlib.Path(values.vocabulary) if values.vocabulary else None,
            explicit=config_flags.get_override_values(values["config"]),
        )
    seconds = time.perf_counter() - start
    splits = built.manifest["splits"].values()
    rows = {reason: sum(split["rows"][reason] for split in splits) for reason in next(iter(splits))["rows"]}
    print(
        f"{built.root}: {counted(sum(split['subjects'] for split in splits), 'subject')}, "
        f"{sum(split['tokens'] for split in splits):,} tokens, vocabulary {len(built.vocabulary):,}, {seconds:.1f} s"
    )
    aside = built.manifest["quarantine"]
    if aside["rows"] or aside["files"]:
        print(
            f"set aside: {counted(aside['subjects'], 'subject')} and {counted(aside['files'], 'file')}, "
            f"{counted(aside['rows'], 'row')}; "
            f"see {built.root / corpus.QUARANTINE}"
        )
    print("input rows: " + ", ".join(f"{count:,} {reason}" for reason, count in rows.items() if count))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
