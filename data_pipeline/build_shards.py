"""What is done to one shard of a MEDS data set: counting its training subjects, and writing its tokens."""

import dataclasses
import pathlib

import numpy as np
import polars as pl

from data_pipeline import code_maps, corpus, meds, statistics, tokenizer
from data_pipeline.columns import to_columns
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import KINDS, Vocabulary


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
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


# What every worker process knows: set once per process, so that jobs stay small.
_dataset: meds.MedsDataset
_code_map: code_maps.CodeMap


def start_worker(dataset: meds.MedsDataset, code_map: code_maps.CodeMap) -> None:
    """Tell this process what its jobs are about."""
    global _dataset, _code_map
    _dataset, _code_map = dataset, code_map


def count_shard(path: pathlib.Path) -> tuple[np.ndarray, statistics.Statistics]:
    """(ids of all subjects in the file, counts of its training subjects)."""
    events = meds.read_shard(path)
    training = _dataset.splits.filter(pl.col("split") == "train").select("subject_id")
    columns = to_columns(events.join(training, on="subject_id", how="semi", maintain_order="left"), _code_map)
    return events["subject_id"].unique(maintain_order=True).to_numpy(), statistics.count(columns)


def tokenize_shard(path: pathlib.Path, index: int, work: pathlib.Path) -> list[TokenizedSplit]:
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
) -> TokenizedSplit:
    tokenized = tokenizer.tokenize(events, vocabulary)
    file = pathlib.Path(split) / f"{index:05d}.array_record"
    (work / split).mkdir(exist_ok=True)
    corpus.write_shard(work / file, tokenized.records())
    tokens_V = np.bincount(tokenized.tokens_T, minlength=len(vocabulary))
    kinds_V = np.array([KINDS.index(token.kind) for token in vocabulary.tokens])
    return TokenizedSplit(
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
