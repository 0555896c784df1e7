"""The data of a study: its corpus, smaller corpora for trials that repeat their data, and what a packed row holds.

Without a corpus of its own a study takes the synthetic world. A smaller corpus has fewer training subjects and the very
same tuning split and vocabulary, so that losses compare.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline import build, build_config, world
from data_pipeline import corpus as corpora
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.loader import LoaderConfig, training_plan
from data_pipeline.mixture import open_corpus
from data_pipeline.packing import PackingPlan


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus as the plan sees it. Targets are the tokens that carry loss; positions are what is computed on.

    `segment_squares_per_row` is the sum of squared segment lengths, for attention's FLOPs.
    """

    path: str
    subjects: int
    unique_tokens: int
    targets_per_row: float
    positions_per_row: float
    segment_squares_per_row: float


@dataclasses.dataclass(frozen=True)
class Data:
    """All corpora of a study; `subsets` by name, fewest subjects first."""

    full: Source
    subsets: dict[str, Source]
    vocab_size: int
    tied_embeddings: bool
    tuning_tokens: int
    tuning_subjects: int


def prepare(config: Any, workdir: pathlib.Path, *, row_length: int, tied_embeddings: bool) -> Data:
    """Make what is not there yet: world, corpus, smaller corpora. Each appears only when it is whole.

    Args:
        config: `config.data` of a study.
        workdir: of the study.
        row_length, tied_embeddings: of its trials.
    """
    full = config.corpus or str(_world_corpus(config, workdir))
    if config.validation_subjects:
        full = str(_derived(full, workdir / "corpus", tuning_subjects=config.validation_subjects))
    opened = open_corpus(full)
    source = measure(full, row_length)
    subsets = {}
    for unique in sorted(config.repeated_unique_tokens):
        subjects = round(unique / source.unique_tokens * source.subjects)
        if not 1 <= subjects < source.subjects:
            raise UserError(
                f"{unique:,.0f} of {source.unique_tokens:,} tokens",
                where="config.data.repeated_unique_tokens",
                fix="name less than the corpus has",
            )
        path = _derived(full, workdir / f"corpus-{subjects}", train_subjects=subjects)
        subsets[str(subjects)] = measure(str(path), row_length)
    tuning = opened.split("tuning").lengths_R
    return Data(source, subsets, len(opened.vocabulary), tied_embeddings, int(tuning.sum()), len(tuning))


def measure(path: str, row_length: int) -> Source:
    """What the packed rows of a corpus's training split hold on average."""
    split = open_corpus(path).split("train")
    plan = training_plan(split, LoaderConfig(batch_rows=1, row_length=row_length, seed=0))
    if not isinstance(plan, PackingPlan):
        raise UserError("is a mixture", where="config.data.corpus", fix="a study takes a single corpus")
    return Source(
        path=path,
        subjects=len(split.lengths_R),
        unique_tokens=plan.tokens_per_epoch,
        targets_per_row=plan.tokens_per_epoch / plan.num_rows,
        positions_per_row=plan.fill * row_length,
        segment_squares_per_row=float(np.square(plan.length_G, dtype=np.float64).sum() / plan.num_rows),
    )


def _world_corpus(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    out = workdir / "world-corpus"
    if not (out / corpora.MANIFEST).exists():
        meds = workdir / "world"
        if not meds.exists():
            world.write_world(meds, config.world_patients, config.world_seed, progress=True)
        build_settings = build_config.get_config()
        build_settings.code_map = "world"
        build.build_corpus(meds, out, build_settings)
        shutil.rmtree(meds)  # nothing reads it again, and the arguments give the same bytes
    return out


def _derived(
    source: str, out: pathlib.Path, *, train_subjects: int | None = None, tuning_subjects: int | None = None
) -> pathlib.Path:
    """A corpus with so many subjects of each split, drawn at random (None: all)."""
    if (out / corpora.MANIFEST).exists():
        return out
    corpus = Corpus.open(source)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copyfile(corpus.root / corpora.VOCABULARY, partial / corpora.VOCABULARY)
    splits = {
        "train": _derived_split(corpus, "train", partial, train_subjects),
        "tuning": _derived_split(corpus, "tuning", partial, tuning_subjects),
    }
    files = [corpora.VOCABULARY, *(f"{name}/{file}.npy" for name in splits for file in ("lengths", "subject_ids"))]
    manifest = {
        key: corpus.manifest[key]
        for key in ("format_version", "vocabulary_fingerprint", "source", "config", "vocabulary_size")
        if key in corpus.manifest
    }
    manifest |= {
        "fingerprint": corpora.fingerprint(corpus.manifest["vocabulary_fingerprint"], splits),
        "derived_from": corpus.fingerprint,
        "splits": splits,
        "files": [{"file": file, "sha256": corpora.file_sha256(partial / file)} for file in files],
    }
    (partial / corpora.MANIFEST).write_bytes(corpora.encode_manifest(manifest))
    partial.replace(out)
    return out


def _derived_split(corpus: Corpus, name: str, out: pathlib.Path, subjects: int | None) -> dict[str, Any]:
    reader = corpus.split(name)
    (out / name).mkdir()
    if subjects is None or subjects >= len(reader):
        shards = corpus.manifest["splits"][name]["shards"]
        for file in [*(shard["file"] for shard in shards), f"{name}/lengths.npy", f"{name}/subject_ids.npy"]:
            _link(corpus.root / file, out / file)
        return {"subjects": len(reader), "tokens": int(reader.lengths_R.sum()), "shards": list(shards)}
    chosen = _spread(len(reader), subjects)
    path = out / name / "00000.array_record"
    corpora.write_shard(path, reader.records(chosen))
    np.save(out / name / "lengths.npy", np.asarray(reader.lengths_R[chosen]))
    np.save(out / name / "subject_ids.npy", np.asarray(reader.subject_ids_R[chosen]))
    shard = {"file": f"{name}/{path.name}", "records": len(chosen), "sha256": corpora.file_sha256(path)}
    return {"subjects": len(chosen), "tokens": int(reader.lengths_R[chosen].sum()), "shards": [shard]}


def _spread(total: int, chosen: int) -> list[int]:
    """Record numbers at random, the same in every run; a smaller choice is part of a larger one."""
    order: Sequence[int] = np.random.default_rng(0).permutation(total)[:chosen].tolist()
    return sorted(order)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
