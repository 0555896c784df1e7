"""MEDS data sets (Medical Event Data Standard 0.4, and the 0.3 that is out there): read, and validated at the border.

    root/data/**/*.parquet                 subject_id, time, code, numeric_value, text_value; others are ignored
    root/metadata/dataset.json             name and versions
    root/metadata/codes.parquet            code, description; may name only some of the codes
    root/metadata/subject_splits.parquet   subject_id, split

Every mistake in the data is a UserError of one line: the file, the row (counted from 0 within the file) and the column,
and never what stands there. Files and folders whose names begin with a dot are not part of the data.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from data_pipeline import parquet_tables
from data_pipeline.errors import UserError
from data_pipeline.locations import require_local
from data_pipeline.parquet_tables import BOOLEAN, FLOAT32, FLOAT64, INTEGER, TEXT, TIMESTAMP, Column

SPLITS = ("train", "tuning", "held_out")
KNOWN_VERSIONS = ("0.3", "0.4")

_EVENT_COLUMNS = (
    Column("subject_id", INTEGER),
    Column("time", TIMESTAMP, nullable=True),
    Column("code", TEXT),
    # MEDS 0.4 lets a table without any value leave the column out.
    Column("numeric_value", FLOAT32, nullable=True, required=False),
)
_TEXT_COLUMN = Column("text_value", TEXT, nullable=True, required=False)
_SPLIT_COLUMNS = (Column("subject_id", INTEGER), Column("split", TEXT))
_CODE_COLUMNS = (Column("code", TEXT), Column("description", TEXT, nullable=True, required=False))
_LABEL_COLUMNS = (
    Column("subject_id", INTEGER),
    Column("prediction_time", TIMESTAMP),
    Column("boolean_value", BOOLEAN, nullable=True, required=False),
    Column("integer_value", INTEGER, nullable=True, required=False),
    Column("float_value", FLOAT64, nullable=True, required=False),
    Column("categorical_value", TEXT, nullable=True, required=False),
)
_NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class MedsDataset:
    """A MEDS data set whose layout and metadata have been checked; its events are checked as they are read.

    Attributes:
        root: the folder that holds data/ and metadata/.
        name, version: of the data set, as metadata/dataset.json gives them.
        shards: the event files, sorted by path.
        splits: [subject_id Int64, split String], one row per subject.
        descriptions: code → what it means, for the codes that metadata/codes.parquet describes.
        meds_version: the version of the standard that it says it follows.
        notes: what is missing from the metadata, and what stands in for it; for the user to read.
    """

    root: pathlib.Path
    name: str
    version: str
    shards: tuple[pathlib.Path, ...]
    splits: pl.DataFrame
    descriptions: Mapping[str, str]
    meds_version: str = ""
    notes: tuple[str, ...] = ()


def open_dataset(root: str | pathlib.Path) -> MedsDataset:
    """Find a data set's files and check its metadata; raises UserError when it is not MEDS, or has no events."""
    require_local(root, "data set")
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError("no such folder", where=str(root))
    if not (root / "data").is_dir():
        raise UserError("no folder data/ in it", where=str(root), fix="give the folder that holds data/ and metadata/")
    shards = tuple(_parquet_files(root / "data"))
    if not shards:
        raise UserError("no parquet file in it, so an empty data set", where=str(root / "data"))
    if not any(parquet_tables.count_rows(shard) for shard in shards):
        raise UserError(f"no rows in its {len(shards)} parquet files, so an empty data set", where=str(root / "data"))
    about, about_notes = _read_about(root)
    splits, split_notes = _read_splits(root, shards)
    descriptions, description_notes = _read_descriptions(root)
    return MedsDataset(
        root=root,
        name=str(about.get("dataset_name") or root.resolve().name),
        version=str(about.get("dataset_version") or ""),
        shards=shards,
        splits=splits,
        descriptions=descriptions,
        meds_version=str(about.get("meds_version") or ""),
        notes=(*about_notes, *split_notes, *description_notes),
    )


def read_shard(path: pathlib.Path, *, text_values: bool = False) -> pl.DataFrame:
    """The events of one file, as they lie: subjects contiguous, rows without time first, then by time.

    Args:
        path: a parquet file of the data set.
        text_values: whether to read text_value too, which may hold whole notes.

    Returns:
        [subject_id Int64, time Datetime("us") or null, code String, numeric_value Float32 or null, and text_value
        String or null if asked for].

    Raises:
        UserError: a column is missing or of the wrong type; a subject or code is null; a numeric value is not finite;
            a subject's rows are not sorted by time or not together.
    """
    events = parquet_tables.read(path, _event_columns(text_values))
    fault = _find_fault(events)
    if fault:
        row, column, what, fix = fault
        raise UserError(what, where=parquet_tables.place(path, row, column), fix=fix)
    return events


def read_subjects(
    dataset: MedsDataset, subject_ids: Iterable[int] | pl.Series, *, text_values: bool = False
) -> pl.DataFrame:
    """The events of some subjects, from all shards, sorted by subject and time; subjects without events have no row.

    Only the rows of these subjects are read and checked. Columns and errors as `read_shard`'s; also a UserError when a
    subject lies in two files.
    """
    wanted = _as_ids(subject_ids)
    columns = _event_columns(text_values)
    frames: dict[pathlib.Path, pl.DataFrame] = {}
    for shard in dataset.shards:
        events = parquet_tables.read(shard, columns, only=("subject_id", wanted))
        if _find_fault(events):
            read_shard(shard)  # The whole file has the fault as well, and knows its row.
        if len(events):
            frames[shard] = events
    check_subjects_once({shard: events["subject_id"] for shard, events in frames.items()})
    empty = pl.DataFrame(schema={column.name: column.type.dtype for column in columns})
    return pl.concat([empty, *frames.values()]).sort("subject_id", "time", nulls_last=False, maintain_order=True)


def check_subjects_once(subjects_by_shard: Mapping[pathlib.Path, pl.Series | np.ndarray]) -> None:
    """Raise a UserError naming two files if one subject lies in both; each entry is the subject ids of a file."""
    shards = list(subjects_by_shard)
    unique = [np.unique(np.asarray(subjects_by_shard[shard], np.int64)) for shard in shards]
    if not unique:
        return
    subjects = np.concatenate(unique)
    shard_index = np.repeat(np.arange(len(shards)), [len(ids) for ids in unique])
    order = np.argsort(subjects, kind="stable")
    twice = np.flatnonzero(subjects[order][1:] == subjects[order][:-1])
    if len(twice):
        first, second = sorted(shard_index[order[twice[0] : twice[0] + 2]])
        raise UserError(
            f"a subject lies both here and in {shards[second]}",
            where=str(shards[first]),
            fix="put all rows of a subject into one file, as MEDS asks",
        )


def read_labels(path: str | pathlib.Path, subjects: Iterable[int] | pl.Series) -> pl.DataFrame:
    """Label rows (subject, prediction time, values) of a parquet file, or of all those in a folder, in their order.

    Args:
        path: file or folder.
        subjects: ids of the subjects there are.

    Returns:
        [subject_id Int64, prediction_time Datetime("us")], and those of boolean_value, integer_value (Int64),
        float_value (Float64) and categorical_value that occur; other columns are left out.

    Raises:
        UserError: no file or no row; a column missing or of the wrong type; a null subject or time; an unknown subject.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError("no such file or folder", where=str(path))
    files = _parquet_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError("no parquet file in it", where=str(path))
    known = _as_ids(subjects)
    frames = [_read_label_file(file, known) for file in files]
    labels = pl.concat(frames, how="diagonal")
    if not len(labels):
        raise UserError("no label rows in it", where=str(path))
    order = [column.name for column in _LABEL_COLUMNS if column.name in labels.columns]
    return labels.select(order)


def _read_label_file(path: pathlib.Path, known: pl.Series) -> pl.DataFrame:
    labels = parquet_tables.read(path, _LABEL_COLUMNS, fill_missing=False)
    _check_no_nulls(labels, path, _LABEL_COLUMNS)
    if "float_value" in labels.columns:
        bad = _first(~labels["float_value"].is_finite())
        if bad is not None:
            raise UserError("not a finite number", where=parquet_tables.place(path, bad, "float_value"))
    unknown = ~labels["subject_id"].is_in(known.implode())
    first = _first(unknown)
    if first is not None:
        raise UserError(
            f"{unknown.sum()} of {len(labels)} rows name subjects that the data set does not have; this is the first",
            where=parquet_tables.place(path, first, "subject_id"),
            fix="use labels made from this data set, or leave those rows out",
        )
    return labels


def _read_about(root: pathlib.Path) -> tuple[dict[str, object], list[str]]:
    path = root / "metadata" / "dataset.json"
    if not path.is_file():
        return {}, ["no metadata/dataset.json: the folder's name is the data set's, and its versions are not known"]
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not a readable JSON file ({type(error).__name__})", where=str(path)) from error
    if not isinstance(about, dict):
        raise UserError("not a JSON object", where=str(path))
    version = str(about.get("meds_version") or "")
    if not version.startswith(KNOWN_VERSIONS):
        stated = f"says MEDS version {version}" if version else "does not say which MEDS version it follows"
        return about, [f"metadata/dataset.json {stated}: read as one of {', '.join(KNOWN_VERSIONS)}"]
    return about, []


def _read_splits(root: pathlib.Path, shards: tuple[pathlib.Path, ...]) -> tuple[pl.DataFrame, list[str]]:
    path = root / "metadata" / "subject_splits.parquet"
    if not path.is_file():
        return _splits_of_folders(root, shards, path)
    splits = parquet_tables.read(path, _SPLIT_COLUMNS)
    if not len(splits):
        raise UserError("no rows in it", where=str(path), fix="list each subject with its split")
    _check_no_nulls(splits, path, _SPLIT_COLUMNS)
    again = _first(~splits["subject_id"].is_first_distinct())
    if again is not None:
        raise UserError(
            "a subject that stands in an earlier row already",
            where=parquet_tables.place(path, again, "subject_id"),
            fix="give each subject one split",
        )
    return splits, []


def _splits_of_folders(
    root: pathlib.Path, shards: tuple[pathlib.Path, ...], path: pathlib.Path
) -> tuple[pl.DataFrame, list[str]]:
    folders = [shard.relative_to(root / "data").parts[0] for shard in shards]
    if not set(folders) <= set(SPLITS):
        raise UserError(
            "no such file",
            where=str(path),
            fix=f"write it (columns subject_id, split), or put the shards into data/{{{','.join(SPLITS)}}}/",
        )
    subjects: dict[pathlib.Path, pl.Series] = {}
    for shard in shards:
        ids = parquet_tables.read(shard, _SPLIT_COLUMNS[:1])
        _check_no_nulls(ids, shard, _SPLIT_COLUMNS[:1])
        subjects[shard] = ids["subject_id"].unique(maintain_order=True)
    check_subjects_once(subjects)
    frames = [
        pl.DataFrame({"subject_id": ids, "split": pl.Series([folder] * len(ids), dtype=pl.String)})
        for folder, ids in zip(folders, subjects.values(), strict=True)
    ]
    return pl.concat(frames), ["no metadata/subject_splits.parquet: the folders under data/ are the splits"]


def _read_descriptions(root: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    path = root / "metadata" / "codes.parquet"
    if not path.is_file():
        return {}, ["no metadata/codes.parquet: no code has a description"]
    codes = parquet_tables.read(path, _CODE_COLUMNS)
    _check_no_nulls(codes, path, _CODE_COLUMNS)
    described = codes.filter(pl.col("description").str.strip_chars() != "").unique("code", keep="first")
    notes = [] if len(described) else ["metadata/codes.parquet describes no code"]
    return dict(zip(described["code"], described["description"], strict=True)), notes


def _event_columns(text_values: bool) -> tuple[Column, ...]:
    return (*_EVENT_COLUMNS, _TEXT_COLUMN) if text_values else _EVENT_COLUMNS


def _find_fault(events: pl.DataFrame) -> tuple[int, str, str, str] | None:
    """(row, column, what, fix) of the first fault of a table of events; None if it has none."""
    for name in ("subject_id", "code"):
        row = _first(events[name].is_null())
        if row is not None:
            return row, name, "null", "every event needs a subject and a code"
    row = _first(~events["numeric_value"].is_finite())
    if row is not None:
        return row, "numeric_value", "not a finite 32-bit number", "write null where there is no value"
    subject_E = events["subject_id"].to_numpy()
    new_E = subject_E[1:] != subject_E[:-1]
    first_rows = np.concatenate(([0], np.flatnonzero(new_E) + 1)) if len(subject_E) else np.zeros(0, np.int64)
    again = np.setdiff1d(np.arange(len(first_rows)), np.unique(subject_E[first_rows], return_index=True)[1])
    if len(again):
        fix = "sort each file by subject_id and time"
        return int(first_rows[again[0]]), "subject_id", "rows of a subject whose other rows stand further up", fix
    time_E = events["time"].dt.epoch("us").fill_null(_NO_TIME).to_numpy()
    back = np.flatnonzero((time_E[1:] < time_E[:-1]) & ~new_E)
    if len(back):
        fix = "sort each file by subject_id and time, rows without time first"
        return int(back[0]) + 1, "time", "earlier than the row before it, of the same subject", fix
    return None


def _check_no_nulls(table: pl.DataFrame, path: pathlib.Path, columns: Iterable[Column]) -> None:
    for column in columns:
        row = None if column.nullable else _first(table[column.name].is_null())
        if row is not None:
            raise UserError("null", where=parquet_tables.place(path, row, column.name))


def _first(mask: pl.Series) -> int | None:
    """Index of the first true entry of a mask (null is false); None if there is none."""
    return mask.arg_max() if mask.any() else None


def _as_ids(subject_ids: Iterable[int] | pl.Series) -> pl.Series:
    ids = subject_ids if isinstance(subject_ids, pl.Series) else pl.Series(list(subject_ids), dtype=pl.Int64)
    return ids.cast(pl.Int64).unique()


def _parquet_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = (path for path in folder.rglob("*.parquet") if path.is_file())
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())
