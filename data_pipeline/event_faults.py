"""Rows of MEDS events that cannot be used: the first of a file, or all subjects that have one, set aside.

A subject is used as a whole or not at all: a timeline with a hole would pass for a whole one.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from data_pipeline.parquet_tables import Lost

_NO_TIME = np.iinfo(np.int64).min
# Microseconds since 1970 of the first and last instant of the years 1 to 9999, which are all that Python has dates for.
# What lies outside is damage or a wrong unit, and its differences would overflow.
_CALENDAR_US = (-62_135_596_800_000_000, 253_402_300_799_999_999)
NO_DATE = "not a date of the years 1 to 9999"
# What is set aside: a subject with the number of its rows and the first bad one, if it is a row that is bad; the rows
# without a subject, together; or, without row and column, a file (its rows null where it can't even tell their number).
SET_ASIDE_SCHEMA = {
    "subject_id": pl.Int64,
    "row": pl.Int64,
    "column": pl.String,
    "reason": pl.String,
    "rows": pl.Int64,
}


@dataclasses.dataclass(frozen=True)
class RowFault:
    """Rows (numbered within their file) that have one fault in common."""

    rows: np.ndarray
    column: str
    what: str
    fix: str = ""


def find_faults(events: pl.DataFrame) -> Iterator[RowFault]:
    """The faults of a file's events, one kind after the other; each is looked for only when it is asked for."""
    for name in ("subject_id", "code"):
        yield from _fault(events[name].is_null(), name, "null", "every event needs a subject and a code")
    yield from _fault(
        ~events["numeric_value"].is_finite(),
        "numeric_value",
        "not a finite 32-bit number",
        "write null where there is no value",
    )
    yield from _fault(outside_calendar(events["time"]), "time", NO_DATE, "see that its unit is what the file says")
    subject_E = events["subject_id"].to_numpy()
    new_E = subject_E[1:] != subject_E[:-1]
    first_rows = np.concatenate(([0], np.flatnonzero(new_E) + 1)) if len(subject_E) else np.zeros(0, np.int64)
    again = np.setdiff1d(np.arange(len(first_rows)), np.unique(subject_E[first_rows], return_index=True)[1])
    if len(again):
        fix = "sort each file by subject_id and time"
        yield RowFault(first_rows[again], "subject_id", "rows of a subject whose other rows stand further up", fix)
    time_E = events["time"].dt.epoch("us").fill_null(_NO_TIME).to_numpy()
    back = np.flatnonzero((time_E[1:] < time_E[:-1]) & ~new_E)
    if len(back):
        fix = "sort each file by subject_id and time, rows without time first"
        yield RowFault(back + 1, "time", "earlier than the row before it, of the same subject", fix)


def outside_calendar(times: pl.Series) -> pl.Series:
    """Mask of the times (Datetime in microseconds) outside the years 1 to 9999; null where there is none."""
    return ~times.to_physical().is_between(*_CALENDAR_US)


def set_aside(events: pl.DataFrame, lost: Sequence[Lost]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(the events of subjects without fault, what is set aside as SET_ASIDE_SCHEMA)."""
    has_subject = events["subject_id"].is_not_null()
    rows_of_subjects = has_subject.arg_true().to_numpy()
    aside = [_without_subject(events["subject_id"], lost)]
    there = events if has_subject.all() else events.filter(has_subject)
    faults = [
        RowFault(np.flatnonzero(cells.mask.filter(has_subject)), cells.column, cells.what)
        for cells in lost
        if cells.column != "subject_id"
    ]
    faults += find_faults(there)
    subject_E = there["subject_id"].to_numpy()
    table = _first_of_each_subject(subject_E, faults)
    if len(table):
        aside.append(table.with_columns(row=pl.Series(rows_of_subjects, dtype=pl.Int64)[table["row"]]))
        there = there.filter(pl.Series(~np.isin(subject_E, table["subject_id"].to_numpy())))
    return there, pl.concat(aside)


def set_subjects_aside(subject_ids: np.ndarray, rows: np.ndarray, reason: str) -> pl.DataFrame:
    """SET_ASIDE_SCHEMA of subjects for a reason that no row of theirs is to blame for, given their numbers of rows."""
    content = {"subject_id": subject_ids, "reason": [reason] * len(subject_ids), "rows": rows}
    table = pl.DataFrame(content, schema_overrides={name: SET_ASIDE_SCHEMA[name] for name in content})
    return table.select(
        table[name] if name in content else pl.lit(None, kind).alias(name) for name, kind in SET_ASIDE_SCHEMA.items()
    )


def set_file_aside(reason: str, rows: int | None) -> pl.DataFrame:
    """SET_ASIDE_SCHEMA of a file that cannot be read; `rows` if it can tell their number."""
    return pl.DataFrame([(None, None, None, reason, rows)], schema=SET_ASIDE_SCHEMA, orient="row")


def _fault(mask: pl.Series, column: str, what: str, fix: str) -> Iterator[RowFault]:
    if mask.any():  # null is false
        yield RowFault(mask.fill_null(False).arg_true().to_numpy(), column, what, fix)


def _without_subject(subjects: pl.Series, lost: Sequence[Lost]) -> pl.DataFrame:
    rows = subjects.is_null().arg_true()
    if not len(rows):
        return pl.DataFrame(schema=SET_ASIDE_SCHEMA)
    reason = next((cells.what for cells in lost if cells.column == "subject_id"), "null")
    return pl.DataFrame([(None, rows[0], "subject_id", reason, len(rows))], schema=SET_ASIDE_SCHEMA, orient="row")


def _first_of_each_subject(subject_E: np.ndarray, faults: Sequence[RowFault]) -> pl.DataFrame:
    """SET_ASIDE_SCHEMA by subject: its first row with a fault, and of the faults of that row the first."""
    if not faults:
        return pl.DataFrame(schema=SET_ASIDE_SCHEMA)
    rows = np.concatenate([fault.rows for fault in faults])
    fault_of_row = np.repeat(np.arange(len(faults)), [len(fault.rows) for fault in faults])
    order = np.lexsort((fault_of_row, rows))
    subjects, first = np.unique(subject_E[rows[order]], return_index=True)
    chosen = order[first]
    all_subjects, lengths = np.unique(subject_E, return_counts=True)
    content = {
        "subject_id": subjects,
        "row": rows[chosen],
        "column": [faults[index].column for index in fault_of_row[chosen]],
        "reason": [faults[index].what for index in fault_of_row[chosen]],
        "rows": lengths[np.searchsorted(all_subjects, subjects)],
    }
    return pl.DataFrame(content, schema=SET_ASIDE_SCHEMA)
