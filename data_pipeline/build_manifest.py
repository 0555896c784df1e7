"""A corpus's manifest, and the arrays beside its shards: made from the pieces, once all are written."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import polars as pl

from data_pipeline import corpus, meds, statistics
from data_pipeline.build_shards import TokenizedSplit
from data_pipeline.vocabulary import KINDS, PREFIX_LENGTH, Vocabulary


def write_manifest(
    work: pathlib.Path,
    dataset: meds.MedsDataset,
    config: ml_collections.ConfigDict,
    vocabulary: Vocabulary,
    totals: statistics.Statistics,
    pieces: Sequence[TokenizedSplit],
) -> None:
    """Write the arrays of every split, and corpus.json last: a folder without it is no corpus."""
    names = [split for split in meds.SPLITS if any(piece.split == split for piece in pieces)]
    names += sorted({piece.split for piece in pieces} - set(meds.SPLITS))
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


def _finish_split(work: pathlib.Path, name: str, pieces: Sequence[TokenizedSplit]) -> dict[str, Any]:
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
