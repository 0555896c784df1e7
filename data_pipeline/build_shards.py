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

from data_pipeline import (
    build_folder,
    build_job,
    code_maps,
    cohort,
    corpus,
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
        interval_us, interval_tokens: per interval of the preset, time spanned and tokens used.
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
    interval_us: list[int]
    interval_tokens: list[int]


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
def count_shard(root: str, job_key: str, index: int, excluded: str) -> None:
    """Write the piece with a shard's subjects and the counts of those in training.

    Args:
        root: the build's folder.
        job_key: of the job that is described there.
        index: which shard.
        excluded: key of the list of subjects that are left out; "" for none.
    """
    folder, context = BuildFolder(pathlib.Path(root)), _context(root, job_key)
    job = context.job
    job.check_unchanged(index)
    columns, split_S = _read_columns(folder, context, index, excluded)
    training = columns.of_subjects(split_S == job.split_names.index("train"))
    counts = statistics.count(cohort.select(training, context.cohort).columns)
    content = {
        "rows": len(columns),
        "subject_ids": columns.subject_ids_S,
        **{f"statistics.{name}": value for name, value in vars(counts).items()},
    }
    job.check_unchanged(index)
    pieces.write(folder.counted(job.counted_key(index, excluded)), content, folder.temporary())


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
def tokenize_shard(root: str, job_key: str, index: int, excluded: str, vocabulary_fingerprint: str) -> None:
    """Write one ArrayRecord file for each split that the shard has subjects of, then the piece about them."""
    folder, context = BuildFolder(pathlib.Path(root)), _context(root, job_key)
    job, vocabulary = context.job, _vocabulary(folder.vocabulary, vocabulary_fingerprint)
    job.check_unchanged(index)
    columns, split_S = _read_columns(folder, context, index, excluded)
    codes = tokenizer.CodeTable.build(columns.concepts, vocabulary)
    content: dict[str, Any] = {"splits": []}
    for number, split in enumerate(job.split_names):
        chosen_S = split_S == number
        if chosen_S.any():
            selection = cohort.select(columns.of_subjects(chosen_S), context.cohort)
            tokenized = tokenizer.tokenize_columns(selection.columns, codes, vocabulary)
            written = _write_split(folder, tokenized, selection, split, index, vocabulary)
            content["splits"].append(dataclasses.asdict(written))
            content[f"{split}.subject_ids"] = tokenized.subject_ids_S
            content[f"{split}.lengths"] = np.diff(tokenized.offsets_S1).astype(np.uint32)
    job.check_unchanged(index)
    pieces.write(
        folder.tokenized(job.tokenized_key(index, excluded, vocabulary_fingerprint)), content, folder.temporary()
    )


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
        interval_us=tokenized.interval_us_I.tolist(),
        interval_tokens=tokenized.interval_tokens_I.tolist(),
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


def _read_columns(folder: BuildFolder, context: _Context, index: int, excluded: str) -> tuple[Columns, np.ndarray]:
    """(a shard's rows, the split of each of its subjects as its place in the job's split_names)."""
    job, path = context.job, context.job.path(index)
    events = meds.read_shard(path, text_values=job.settings["config.text_values"])
    columns = to_columns(events, context.code_map)
    split_S = split_table.look_up(folder, job.settings["the subjects' splits"], columns.subject_ids_S)
    unassigned = np.isin(columns.subject_E, np.flatnonzero(split_S == NO_SPLIT)).sum()
    if unassigned:
        raise UserError(
            f"{unassigned} rows belong to subjects that are in no split",
            where=str(path),
            fix="list every subject in metadata/subject_splits.parquet",
        )
    return columns, split_S
