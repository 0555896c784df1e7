"""A corpus's manifest, and the arrays beside its shards: made from the pieces, once all are written."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import polars as pl

from data_pipeline import corpus, coverage, meds, pieces, statistics
from data_pipeline.build_folder import BuildFolder
from data_pipeline.build_shards import TokenizedSplit
from data_pipeline.frozen_vocabulary import FrozenVocabulary
from data_pipeline.vocabulary import KINDS, PREFIX_LENGTH, Vocabulary

# Beside a split's shards, each with one entry a record.
_ARRAYS = {"lengths": np.uint32, "subject_ids": np.int64}


def read_splits(paths: Iterable[pathlib.Path]) -> list[tuple[pathlib.Path, TokenizedSplit]]:
    """What the pieces of tokenized shards hold, in order, without their arrays."""
    return [(path, TokenizedSplit(**split)) for path in paths for split in pieces.read(path, ["splits"])["splits"]]


@dataclasses.dataclass(frozen=True)
class BuildFacts:
    """What the manifest says of a corpus as a whole."""

    dataset: meds.MedsDataset
    config: ml_collections.ConfigDict
    totals: statistics.Statistics
    vocabulary: Vocabulary
    frozen: FrozenVocabulary | None
    subjects_without_events: int


def write_manifest(
    folder: BuildFolder,
    facts: BuildFacts,
    written: Sequence[tuple[pathlib.Path, TokenizedSplit]],
    counted: Sequence[tuple[str, pathlib.Path]],
) -> dict[str, Any]:
    """Write the arrays of every split, and corpus.json last: a folder without it is no corpus.

    Args:
        folder: the build's.
        facts: about the corpus.
        written: the shards' parts of splits, each with its piece.
        counted: each input file, by its path below the data set, with the piece of its counts.

    Returns:
        The manifest.
    """
    dataset, vocabulary = facts.dataset, facts.vocabulary
    there = {split.split for _, split in written}
    names = [split for split in meds.SPLITS if split in there] + sorted(there - set(meds.SPLITS))
    splits = {
        name: _finish_split(folder, name, [(path, split) for path, split in written if split.split == name])
        for name in names
    }
    files = [corpus.VOCABULARY, *(f"{name}/{array}.npy" for name in names for array in _ARRAYS)]
    quarantine = _write_quarantine(folder, counted)
    files += [corpus.QUARANTINE] if quarantine["files"] or quarantine["rows"] else []
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
            "rows": sum(pieces.read(piece, ["rows"])["rows"] for _, piece in counted),
            # They have a split: their file may be missing.
            "subjects_without_events": facts.subjects_without_events,
            "notes": list(dataset.notes),
        },
        "vocabulary_source": dict(facts.frozen.source) if facts.frozen else None,
        "config": facts.config.to_dict(),
        "training_coverage": coverage.coverage(facts.totals, vocabulary, facts.config.min_subjects_per_code),
        # Those of the shards stand with them.
        "files": [{"file": file, "sha256": corpus.file_sha256(folder.corpus / file)} for file in files],
        "quarantine": quarantine,
        "splits": splits,
    }
    temporary = folder.temporary()
    temporary.write_bytes(corpus.encode_manifest(manifest))
    pieces.install(temporary, folder.corpus / corpus.MANIFEST)
    return manifest


def remove_strays(folder: BuildFolder, manifest: Mapping[str, Any]) -> None:
    """Remove what an earlier run wrote of input that is no longer there, or is in order now."""
    named = {corpus.MANIFEST, *corpus.manifest_checksums(manifest)}
    # What lies in a folder comes before it.
    for path in sorted(folder.corpus.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # it holds files of the corpus
                path.rmdir()
        elif path.relative_to(folder.corpus).as_posix() not in named:
            path.unlink()


def _write_quarantine(folder: BuildFolder, counted: Sequence[tuple[str, pathlib.Path]]) -> dict[str, Any]:
    """Write what was set aside to quarantine.parquet, if anything was; returns its counts."""
    tables = [
        pieces.read(piece, ["aside"])["aside"].select(pl.lit(file).alias("file"), pl.all()).sort("row", "subject_id")
        for file, piece in counted
    ]
    aside = pl.concat(tables)
    if len(aside):
        temporary = folder.temporary()
        buffer = io.BytesIO()
        aside.write_parquet(buffer)
        temporary.write_bytes(buffer.getvalue())
        pieces.install(temporary, folder.corpus / corpus.QUARANTINE)
    by_reason = aside.group_by("reason").agg(pl.col("rows").sum()).sort("reason")
    is_file = pl.col("subject_id").is_null() & pl.col("row").is_null()
    return {
        "files": len(aside.filter(is_file)),
        "files_of_unknown_length": len(aside.filter(is_file & pl.col("rows").is_null())),
        "subjects": aside["subject_id"].drop_nulls().n_unique(),
        "rows": int(aside["rows"].sum()),
        "rows_by_reason": dict(by_reason.iter_rows()),
    }


def _finish_split(
    folder: BuildFolder, name: str, written: Sequence[tuple[pathlib.Path, TokenizedSplit]]
) -> dict[str, Any]:
    splits = [split for _, split in written]
    records = sum(split.records for split in splits)
    for array, dtype in _ARRAYS.items():
        parts = (pieces.read(path, [f"{name}.{array}"])[f"{name}.{array}"] for path, _ in written)
        _write_array(folder, folder.corpus / name / f"{array}.npy", np.dtype(dtype), records, parts)
    by_kind = np.sum([split.tokens_by_kind for split in splits], axis=0)
    return {
        "subjects": records,
        "tokens": sum(split.tokens for split in splits),
        "tokens_by_kind": {kind: int(count) for kind, count in zip(KINDS, by_kind, strict=True) if count},
        "rows": {reason: sum(split.row_counts[reason] for split in splits) for reason in splits[0].row_counts},
        "subjects_left_out": {
            reason: sum(split.subjects_left_out[reason] for split in splits) for reason in splits[0].subjects_left_out
        },
        "subjects_without_observation_end": sum(split.open_ended for split in splits),
        "shards": [{"file": split.file, "records": split.records, "sha256": split.sha256} for split in splits],
    }


def _write_array(
    folder: BuildFolder, path: pathlib.Path, dtype: np.dtype, length: int, parts: Iterable[np.ndarray]
) -> None:
    """Write an .npy file part by part. A memory map would be shorter, and end in SIGBUS on a full disk."""
    temporary = folder.temporary()
    with temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
    pieces.install(temporary, path)
