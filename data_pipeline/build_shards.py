"""What is done to one shard of a MEDS data set: counting its training subjects, and writing its tokens."""

import dataclasses
import functools
import pathlib

import numpy as np
import polars as pl

from data_pipeline import code_maps, corpus, meds, statistics, tokenizer
from data_pipeline.columns import Columns, to_columns
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
    columns = to_columns(meds.read_shard(path), _code_map)
    training = columns.of_subjects(_splits_of(columns.subject_ids_S) == "train")
    return columns.subject_ids_S, statistics.count(training)


def tokenize_shard(path: pathlib.Path, index: int, work: pathlib.Path) -> list[TokenizedSplit]:
    """Write one ArrayRecord file for each split that the shard has subjects of."""
    vocabulary = _parse_vocabulary((work / corpus.VOCABULARY).read_text())
    columns = to_columns(meds.read_shard(path), vocabulary.code_map)
    split_S = _splits_of(columns.subject_ids_S)
    unassigned = np.isin(columns.subject_E, np.flatnonzero(split_S == "")).sum()
    if unassigned:
        raise UserError(
            f"{unassigned} rows belong to subjects that are in no split",
            where=str(path),
            fix="list every subject in metadata/subject_splits.parquet",
        )
    codes = tokenizer.CodeTable.build(columns.concepts, vocabulary)
    return [
        _write_split(columns.of_subjects(split_S == split), codes, split, index, vocabulary, work)
        for split in sorted(set(split_S.tolist()))
    ]


@functools.lru_cache(1)
def _parse_vocabulary(text: str) -> Vocabulary:
    # Once per process: its tables take longer to make than a shard to tokenize.
    return Vocabulary.from_json(text)


def _splits_of(subject_ids_S: np.ndarray) -> np.ndarray:
    """[S] each subject's split; "" where it has none."""
    subjects = pl.DataFrame({"subject_id": subject_ids_S}, schema={"subject_id": pl.Int64})
    splits = subjects.join(_dataset.splits, on="subject_id", how="left", maintain_order="left")["split"]
    return splits.fill_null("").to_numpy()


def _write_split(
    columns: Columns, codes: tokenizer.CodeTable, split: str, index: int, vocabulary: Vocabulary, work: pathlib.Path
) -> TokenizedSplit:
    tokenized = tokenizer.tokenize_columns(columns, codes, vocabulary)
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
