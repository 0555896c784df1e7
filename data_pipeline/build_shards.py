"""What is done to one shard of a MEDS data set, in a process of its own: its subjects are counted, then tokenized.

Jobs know only where the build's folder is and which shard is theirs. What they make lies in that folder when they
return; nothing but their end is told to the build, wherever it runs.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import numpy as np
import polars as pl

from data_pipeline import (
    build_folder,
    build_job,
    code_maps,
    cohort,
    corpus,
    event_faults,
    meds,
    pieces,
    split_table,
    statistics,
    tokenizer,
)
from data_pipeline.build_folder import BuildFolder
from data_pipeline.build_job import BuildJob
from data_pipeline.columns import Columns, to_columns
from data_pipeline.errors import UserError
from data_pipeline.split_table import NO_SPLIT
from data_pipeline.vocabulary import KINDS, Vocabulary

_P = ParamSpec("_P")


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """One shard's part of one split, as written; the arrays beside it are in the same piece.

    Attributes:
        split: its name.
        file, bytes, sha256: the ArrayRecord file, below the corpus.
        records: subjects in it.
        tokens: tokens in it.
        tokens_by_kind: by vocabulary.KINDS.
        row_counts: the input's rows by what became of them.
        subjects_left_out: by the reason why the cohort has no place for them; empty if it has for all.
        open_ended: subjects as of `TokenizedSubjects.open_ended`.
        interval_us, interval_tokens: per interval of the preset, time spanned and tokens used between events.
        interval_histogram: gaps by how long they are (`IntervalPreset.histogram`).
    """

    split: str
    file: str
    bytes: int
    sha256: str
    records: int
    tokens: int
    tokens_by_kind: list[int]
    row_counts: dict[str, int]
    subjects_left_out: dict[str, int]
    open_ended: int
    interval_us: list[int]
    interval_tokens: list[int]
    interval_histogram: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a shard is read.

    Attributes:
        lenient: whether subjects with rows that cannot be used are set aside; otherwise they are refused.
        excluded: key of a list of subjects that are set aside because they lie in several files; "" for none.
    """

    lenient: bool = False
    excluded: str = ""


def _reports_full_disks(job: Callable[_P, None]) -> Callable[_P, None]:
    """A job whose OSErrors are the user's: what is read is guarded where it is read, so these are of writing."""

    @functools.wraps(job)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            job(*args, **kwargs)
        except OSError as error:
            raise build_folder.cannot_write(pathlib.Path(str(args[0])), error) from error

    return guarded


@_reports_full_disks
def count_shard(root: str, job_key: str, index: int, reading: Reading) -> None:
    """Write the piece with a shard's subjects, the counts of those in training, and what is set aside.

    Args:
        root: the build's folder.
        job_key: of the job that is described there.
        index: which shard.
        reading: how it is read.
    """
    folder, context = BuildFolder(pathlib.Path(root)), _context(root, job_key)
    job = context.job
    job.check_unchanged(index)
    shard = _read(folder, context, index, reading)
    columns = shard.columns
    training = columns.of_subjects(shard.split_S == job.split_names.index("train"))
    counts = statistics.count(cohort.select(training, context.cohort).columns)
    content = {
        "rows": len(columns) + int(shard.aside["rows"].sum()),
        "subject_ids": np.union1d(columns.subject_ids_S, shard.aside["subject_id"].drop_nulls().to_numpy()),
        "aside": shard.aside,
        **{f"statistics.{name}": value for name, value in vars(counts).items()},
    }
    job.check_unchanged(index)
    pieces.write(folder.counted(job.counted_key(index, reading.excluded)), content, folder.temporary())


@_reports_full_disks
def merge_counts(root: str, job_key: str, parts: tuple[str, ...], key: str) -> None:
    """Add the counts of some pieces up in one piece; `parts` are their paths below the build's folder."""
    folder = BuildFolder(pathlib.Path(root))
    total = read_counts(folder.root / part for part in parts)
    content = {f"statistics.{name}": value for name, value in vars(total).items()}
    pieces.write(folder.merged(key), content, folder.temporary())


def read_counts(paths: Iterable[pathlib.Path]) -> statistics.Statistics:
    """The sum of the counts in some pieces."""
    names = [f"statistics.{field.name}" for field in dataclasses.fields(statistics.Statistics)]
    contents = (pieces.read(path, names) for path in paths)
    return statistics.merge(
        [
            statistics.Statistics(**{name.partition(".")[2]: value for name, value in content.items()})
            for content in contents
        ]
    )


@_reports_full_disks
def tokenize_shard(root: str, job_key: str, index: int, reading: Reading, vocabulary_fingerprint: str) -> None:
    """Write one ArrayRecord file for each split that the shard has subjects of, then the piece about them."""
    folder, context = BuildFolder(pathlib.Path(root)), _context(root, job_key)
    job, vocabulary = context.job, _vocabulary(folder.vocabulary, vocabulary_fingerprint)
    job.check_unchanged(index)
    shard = _read(folder, context, index, reading)
    columns = shard.columns
    codes = tokenizer.CodeTable.build(columns.concepts, vocabulary)
    content: dict[str, Any] = {"splits": []}
    for number, split in enumerate(job.split_names):
        chosen_S = shard.split_S == number
        if chosen_S.any():
            selection = cohort.select(columns.of_subjects(chosen_S), context.cohort)
            latest_us_S = context.cohort.latest_us(selection.columns)
            tokenized = tokenizer.tokenize_columns(
                selection.columns,
                codes,
                vocabulary,
                observed_until=job.settings["config.observed_until"],
                latest_us_S=latest_us_S,
            )
            written = _write_split(folder, tokenized, selection, split, index, vocabulary)
            content["splits"].append(dataclasses.asdict(written))
            content[f"{split}.subject_ids"] = tokenized.subject_ids_S
            content[f"{split}.lengths"] = np.diff(tokenized.offsets_S1).astype(np.uint32)
    job.check_unchanged(index)
    key = job.tokenized_key(index, reading.excluded, vocabulary_fingerprint)
    pieces.write(folder.tokenized(key), content, folder.temporary())


def _write_split(
    folder: BuildFolder,
    tokenized: tokenizer.TokenizedSubjects,
    selection: cohort.Selection,
    split: str,
    index: int,
    vocabulary: Vocabulary,
) -> TokenizedSplit:
    file = pathlib.Path(split) / f"{index:05d}.array_record"
    temporary = folder.temporary()
    try:
        corpus.write_shard(temporary, tokenized.records())
    except RuntimeError as error:
        raise _as_os_error(error) from error
    written = TokenizedSplit(
        split=split,
        file=file.as_posix(),
        bytes=temporary.stat().st_size,
        sha256=corpus.file_sha256(temporary),
        records=len(tokenized.subject_ids_S),
        tokens=len(tokenized.tokens_T),
        tokens_by_kind=_count_kinds(tokenized.tokens_T, vocabulary),
        row_counts={**tokenized.row_counts, **selection.rows_left_out},
        subjects_left_out=selection.subjects_left_out,
        open_ended=tokenized.open_ended,
        interval_us=tokenized.interval_us_I,
        interval_tokens=tokenized.interval_tokens_I,
        interval_histogram=tokenized.interval_histogram.tolist(),
    )
    pieces.install(temporary, folder.corpus / file)
    return written


def _as_os_error(error: RuntimeError) -> OSError:
    """What ArrayRecord says, for it has no other error type: "write() failed: No space left on device; writing ..."."""
    reason = re.search(r"failed: ([^;]+)", str(error))
    return OSError(0, reason[1] if reason else "ArrayRecord failed")


def _count_kinds(tokens_T: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    tokens_V = np.bincount(tokens_T, minlength=len(vocabulary))
    return np.bincount(vocabulary.kind_V, tokens_V, minlength=len(KINDS)).astype(np.int64).tolist()


@dataclasses.dataclass(frozen=True)
class _Context:
    job: BuildJob
    code_map: code_maps.CodeMap
    cohort: cohort.Cohort


@functools.lru_cache(maxsize=1)
def _context(root: str, job_key: str) -> _Context:
    """What every job of a build needs, read once per process."""
    job = BuildFolder(pathlib.Path(root)).job()
    if job.settings["the program"] != build_job.program_key():
        raise UserError(
            "this machine has another version of the program than the one that started the build",
            where="data_pipeline",
            fix="install the same version everywhere",
        )
    code_map = code_maps.CodeMap.from_dict(job.settings["the code map"])
    return _Context(job, code_map, cohort.Cohort(**job.settings["config.cohort"]))


@functools.lru_cache(maxsize=1)
def _vocabulary(path: pathlib.Path, fingerprint: str) -> Vocabulary:
    """The vocabulary, read once per process; `fingerprint` tells it from that of another build."""
    return Vocabulary.load(path)


@dataclasses.dataclass(frozen=True)
class _ReadShard:
    columns: Columns
    split_S: np.ndarray  # index into the job's split_names
    aside: pl.DataFrame


def _read(folder: BuildFolder, context: _Context, index: int, reading: Reading) -> _ReadShard:
    job, path = context.job, context.job.path(index)
    text_values = job.settings["config.text_values"]
    aside = pl.DataFrame(schema=event_faults.SET_ASIDE_SCHEMA)
    if reading.lenient:
        events, aside = meds.read_usable(path, text_values=text_values)
    else:
        events = meds.read_shard(path, text_values=text_values, categories=True)
    columns = to_columns(events, context.code_map)
    ids_S = columns.subject_ids_S
    split_S = split_table.look_up(folder, job.settings["the subjects' splits"], ids_S)
    nowhere_S = split_S == NO_SPLIT
    if nowhere_S.any() and not reading.lenient:
        rows = np.isin(columns.subject_E, np.flatnonzero(nowhere_S)).sum()
        raise UserError(
            f"{rows} rows belong to subjects that are in no split",
            where=str(path),
            fix="list every subject in metadata/subject_splits.parquet",
        )
    twice_S = np.zeros(len(ids_S), bool)
    if reading.excluded:
        twice_S = np.isin(ids_S, np.load(folder.subjects("excluded", reading.excluded)))
    gone_S = twice_S | nowhere_S
    if not gone_S.any():
        return _ReadShard(columns, split_S, aside)
    rows_S = np.bincount(columns.subject_E, minlength=len(ids_S))
    nowhere_S &= ~twice_S
    more = [
        event_faults.set_subjects_aside(ids_S[twice_S], rows_S[twice_S], "the subject has rows in several files"),
        event_faults.set_subjects_aside(ids_S[nowhere_S], rows_S[nowhere_S], "the subject is in no split"),
    ]
    return _ReadShard(columns.of_subjects(~gone_S), split_S[~gone_S], pl.concat([aside, *more]))
