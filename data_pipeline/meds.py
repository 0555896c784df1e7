"""MEDS data sets (Medical Event Data Standard 0.4, and the 0.3 that is out there): read, and validated at the border.

    root/data/**/*.parquet                 subject_id, time, code, numeric_value, text_value; others are ignored
    root/metadata/dataset.json             name and versions
    root/metadata/codes.parquet            code, description; may name only some of the codes
    root/metadata/subject_splits.parquet   subject_id, split

Every mistake in the data is a UserError of one line: the file, the row (counted from 0 within the file) and the column,
and never what stands there. Files and folders whose names begin with a dot are not part of the data;
links are what they stand for.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from data_pipeline import event_faults, parquet_tables
from data_pipeline.errors import UserError
from data_pipeline.locations import files_below, require_local
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


def open_dataset(root: str | pathlib.Path, *, lenient: bool = False) -> MedsDataset:
    """Find a data set's files and check its metadata; raises UserError when it is not MEDS, or has no events.

    With `lenient`, event files that cannot be read pass, and rows that cannot be used; metadata must be right.
    """
    require_local(root, "data set")
    root = pathlib.Path(root)
    if not root.is_dir():
        if root.exists():
            raise UserError("is a file", where=str(root), fix="give the folder that holds data/ and metadata/")
        raise UserError("no such folder", where=str(root))
    if not (root / "data").is_dir():
        raise UserError("no folder data/ in it", where=str(root), fix="give the folder that holds data/ and metadata/")
    shards = tuple(_parquet_files(root / "data"))
    if not shards:
        others = sorted(
            {path.suffix for path in (root / "data").rglob("*.*") if path.suffix in (".csv", ".gz", ".tsv")}
        )
        raise UserError(
            f"no parquet file in it, {f'but {others[0]} files' if others else 'so an empty data set'}",
            where=str(root / "data"),
            fix="MEDS is parquet: convert them (polars.read_csv(FILE).write_parquet(...))" if others else "",
        )
    if not any(_has_rows(shard, lenient) for shard in shards):
        raise UserError(f"no rows in its {len(shards)} parquet files, so an empty data set", where=str(root / "data"))
    about, about_notes = _read_about(root)
    splits, split_notes = _read_splits(root, shards, lenient)
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


def read_shard(path: pathlib.Path, *, text_values: bool = False, categories: bool = False) -> pl.DataFrame:
    """The events of one file, as they lie: subjects contiguous, rows without time first, then by time.

    Args:
        path: a parquet file of the data set.
        text_values: whether to read text_value too, which may hold whole notes.
        categories: whether the text columns are Categorical and not String, which is read in less time.

    Returns:
        [subject_id Int64, time Datetime("us") or null, code String, numeric_value Float32 or null, and text_value
        String or null if asked for].

    Raises:
        UserError: a column is missing or of the wrong type; a subject or code is null; a numeric value is not finite;
            a time is no date of the calendar; a subject's rows are not sorted by time or not together.
    """
    events = parquet_tables.read(path, _event_columns(text_values), categories=categories)
    for fault in event_faults.find_faults(events):
        raise UserError(fault.what, where=parquet_tables.place(path, int(fault.rows[0]), fault.column), fix=fault.fix)
    return events


def read_usable(path: pathlib.Path, *, text_values: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(`read_shard`'s events of the subjects that can be used, the others as event_faults.SET_ASIDE_SCHEMA).

    Texts are Categorical. A file that cannot be read has no events, and is set aside whole.
    """
    columns = _event_columns(text_values)
    try:
        events, lost = parquet_tables.read_with_losses(path, columns, categories=True)
    except UserError as error:
        try:
            rows = parquet_tables.count_rows(path)
        except UserError:
            rows = None
        empty = pl.DataFrame(schema={column.name: column.type.dtype for column in columns})
        return empty, event_faults.set_file_aside(error.what, rows)
    return event_faults.set_aside(events, lost)


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
        events, lost = parquet_tables.read_with_losses(shard, columns, only=("subject_id", wanted))
        if lost or any(event_faults.find_faults(events)):
            read_shard(shard)  # The whole file has the fault as well, and knows its row.
        if len(events):
            frames[shard] = events
    check_subjects_once({shard: events["subject_id"] for shard, events in frames.items()})
    empty = pl.DataFrame(schema={column.name: column.type.dtype for column in columns})
    return pl.concat([empty, *frames.values()]).sort("subject_id", "time", nulls_last=False, maintain_order=True)


def first_events(dataset: MedsDataset) -> pl.DataFrame:
    """[subject_id, begin_us Int64]: when each subject's first event is; one without time is before all times."""
    begin_us = pl.col("time").dt.epoch("us").fill_null(-(2**63)).min()
    frames = [parquet_tables.read(shard, _EVENT_COLUMNS[:2]) for shard in dataset.shards]
    return pl.concat([frame.group_by("subject_id").agg(begin_us=begin_us) for frame in frames])


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


def read_labels(
    path: str | pathlib.Path, subjects: Iterable[int] | pl.Series, begins: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Label rows (subject, prediction time, values) of a parquet file, or of all those in a folder, in their order.

    Args:
        path: file or folder.
        subjects: ids of the subjects there are.
        begins: `first_events`, where every row must have a history to be asked about.

    Returns:
        [subject_id Int64, prediction_time Datetime("us")], and those of boolean_value, integer_value (Int64),
        float_value (Float64) and categorical_value that occur; other columns are left out.

    Raises:
        UserError: no file or no row; a column missing or of the wrong type; a null subject or time; an unknown subject;
            with `begins`, a subject without data at or before its prediction time.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError("no such file or folder", where=str(path))
    files = _parquet_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError("no parquet file in it", where=str(path))
    known = _as_ids(subjects)
    frames = [_read_label_file(file, known, begins) for file in files]
    labels = pl.concat(frames, how="diagonal")
    if not len(labels):
        raise UserError("no label rows in it", where=str(path))
    order = [column.name for column in _LABEL_COLUMNS if column.name in labels.columns]
    return labels.select(order)


def _read_label_file(path: pathlib.Path, known: pl.Series, begins: pl.DataFrame | None) -> pl.DataFrame:
    labels = parquet_tables.read(path, _LABEL_COLUMNS, fill_missing=False)
    _check_no_nulls(labels, path, _LABEL_COLUMNS)
    late = _first(event_faults.outside_calendar(labels["prediction_time"]))
    if late is not None:
        raise UserError(event_faults.NO_DATE, where=parquet_tables.place(path, late, "prediction_time"))
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
    if begins is not None:
        begin_us = labels.join(begins, on="subject_id", how="left", maintain_order="left").get_column("begin_us")
        early = _first(begin_us.is_null() | (begin_us > labels["prediction_time"].dt.epoch("us")))
        if early is not None:
            raise UserError(
                "the subject has no data at or before its prediction time",
                where=parquet_tables.place(path, early, "prediction_time"),
                fix="leave the row out",
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


def _has_rows(shard: pathlib.Path, lenient: bool) -> bool:
    try:
        return parquet_tables.count_rows(shard) > 0
    except UserError:
        if lenient:
            return False
        raise


def _read_splits(root: pathlib.Path, shards: tuple[pathlib.Path, ...], lenient: bool) -> tuple[pl.DataFrame, list[str]]:
    path = root / "metadata" / "subject_splits.parquet"
    if not path.is_file():
        return _splits_of_folders(root, shards, path, lenient)
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
    root: pathlib.Path, shards: tuple[pathlib.Path, ...], path: pathlib.Path, lenient: bool
) -> tuple[pl.DataFrame, list[str]]:
    folders = [shard.relative_to(root / "data").parts[0] for shard in shards]
    if not set(folders) <= set(SPLITS):
        raise UserError(
            "no such file",
            where=str(path),
            fix=f"write it (columns subject_id, split), or put the shards into data/{{{','.join(SPLITS)}}}/",
        )
    subjects = [_subjects_of(shard, lenient) for shard in shards]
    if not lenient:
        check_subjects_once(dict(zip(shards, subjects, strict=True)))
    frames = [
        pl.DataFrame({"subject_id": ids, "split": pl.Series([folder] * len(ids), dtype=pl.String)})
        for folder, ids in zip(folders, subjects, strict=True)
    ]
    splits = pl.concat(frames).unique("subject_id", keep="first", maintain_order=True)
    return splits, ["no metadata/subject_splits.parquet: the folders under data/ are the splits"]


def _subjects_of(shard: pathlib.Path, lenient: bool) -> pl.Series:
    column = _SPLIT_COLUMNS[0]
    try:
        ids = parquet_tables.read_with_losses(shard, [column])[0] if lenient else parquet_tables.read(shard, [column])
    except UserError:
        if lenient:
            return pl.Series("subject_id", [], dtype=pl.Int64)
        raise
    if not lenient:
        _check_no_nulls(ids, shard, [column])
    return ids["subject_id"].drop_nulls().unique(maintain_order=True)


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
    # A link to nowhere stands for a file that is missed: it is kept, and found unreadable.
    named = (path for path in files_below(folder) if path.suffix == ".parquet")
    files = (path for path in named if path.is_file() or not path.exists())
    visible = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())
