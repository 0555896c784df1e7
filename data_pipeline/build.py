"""Build a corpus of token sequences from a MEDS data set.

    python -m data_pipeline.build --meds DIR --out CORPUS --config.code_map=mimic

Two passes over the shards, in one process per core: the first counts what the training subjects have (codes, values,
demographics), from which the vocabulary is made; the second writes every subject's tokens. CORPUS appears only when it
is whole. Ends with a line that says how many subjects and tokens there are, and what became of the input's rows.
"""

import os
import pathlib
import sys
import time

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipeline import build_config, build_folder, build_job, code_maps, command_line, corpus, engines, meds
from data_pipeline.build_folder import BuildFolder
from data_pipeline.build_run import BuildRun
from data_pipeline.errors import UserError
from data_pipeline.locations import require_local
from data_pipeline.split_table import SplitTable


def build_corpus(
    meds_root: pathlib.Path,
    out: pathlib.Path,
    config: ml_collections.ConfigDict,
    *,
    workers: int | None = None,
) -> corpus.Corpus:
    """Read a MEDS data set and write a corpus; the bytes do not depend on `workers` (default: one per core).

    What a run that was stopped has finished, in CORPUS.partial, is taken up and not done again.

    Raises UserError for data that cannot be used, for an `out` that already holds something or cannot be written, and
    for one that another build is writing; nothing is at `out` then.
    """
    build_config.check(config)
    dataset = meds.open_dataset(meds_root)
    for note in dataset.notes:
        print(f"{meds_root}: {note}", file=sys.stderr)
    code_map = code_maps.named(config.code_map)
    splits = SplitTable.of(dataset.splits, dataset.root)
    settings = {
        **{f"config.{name}": value for name, value in config.to_dict().items()},
        "the code map": code_map.to_dict(),
    }
    job = build_job.describe(dataset, settings, splits.names, splits.key)
    with build_folder.opened(out, job) as folder:
        if folder is not None:
            with engines.local(min(workers or _cores(), len(dataset.shards))) as engine:
                try:
                    BuildRun(dataset, config, code_map, job, folder, engine).write(splits)
                except UserError as error:
                    raise _with_what_is_kept(error, folder) from error
            build_folder.finish(folder, out)
    return corpus.Corpus.open(out)


def _with_what_is_kept(error: UserError, folder: BuildFolder) -> UserError:
    """The error, with a word on where finished work is; none is kept where no shard was finished."""
    if build_folder.discard_if_empty(folder):
        return error
    return UserError(f"{error}; finished shards are kept in {folder.root}")


def _cores() -> int:
    """Cores that this process may use, which a batch system may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    require_local(values.out, "--out")
    out = pathlib.Path(values.out)
    try:
        built = build_corpus(pathlib.Path(values.meds), out, values.config, workers=values.workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{out}.partial keeps the shards that are finished: the same command goes on from there"
        ) from None
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
