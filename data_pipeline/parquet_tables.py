"""Parquet tables at the border: columns present and of the right type, or one clear line (file, row, column)."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import polars as pl

from data_pipeline.errors import UserError

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ColumnType:
    """A type that a column is read as, and the types that become it without losing anything that counts."""

    dtype: pl.DataType
    accepts: Callable[[pl.DataType], bool]
    name: str


INTEGER = ColumnType(pl.Int64(), lambda dtype: dtype.is_integer(), "64-bit integer")
FLOAT32 = ColumnType(pl.Float32(), lambda dtype: dtype.is_numeric(), "32-bit float")
FLOAT64 = ColumnType(pl.Float64(), lambda dtype: dtype.is_numeric(), "64-bit float")
BOOLEAN = ColumnType(pl.Boolean(), lambda dtype: dtype == pl.Boolean, "boolean")
TEXT = ColumnType(pl.String(), lambda dtype: dtype in (pl.String, pl.Categorical, pl.Enum), "string")
# Times carry no zone in MEDS; UTC says as little, any other would shift the clock.
TIMESTAMP = ColumnType(
    pl.Datetime("us"),
    lambda dtype: isinstance(dtype, pl.Datetime) and dtype.time_zone in (None, "UTC"),
    "timestamp without a time zone",
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table; one that is not required may be missing, one that is nullable may have the null type."""

    name: str
    type: ColumnType
    nullable: bool = False
    required: bool = True


def read(
    path: pathlib.Path,
    columns: Sequence[Column],
    *,
    only: tuple[str, pl.Series] | None = None,
    fill_missing: bool = True,
) -> pl.DataFrame:
    """Read some columns of a parquet file, in this order and as their types.

    Args:
        path: the file.
        columns: what it should hold; its other columns are not read.
        only: (column, values): read the rows in which the column has one of the values, skipping what the file's
            statistics rule out.
        fill_missing: whether a column that is not required and missing is returned as nulls, or left out.

    Raises:
        UserError: no readable parquet file; a column missing or of another type; a number that does not fit.
    """
    schema = _guard(path, lambda: pl.read_parquet_schema(path))
    present = [column for column in columns if _check(path, column, schema)]
    table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    if only:
        name, values = only
        table = table.filter(pl.col(name).is_in(values.implode()))
    frame = _guard(path, lambda: table.select([column.name for column in present]).collect())
    cast = {column.name: _cast(path, frame[column.name], column) for column in present}
    if fill_missing:
        for column in columns:
            if column.name not in cast:
                cast[column.name] = pl.Series(column.name, [None] * len(frame), column.type.dtype)
    return pl.DataFrame([cast[column.name] for column in columns if column.name in cast])


def count_rows(path: pathlib.Path) -> int:
    """Number of rows of a parquet file, from its footer; raises UserError when it is not readable."""
    count = _guard(path, lambda: pl.scan_parquet(path, glob=False, hive_partitioning=False).select(pl.len()).collect())
    return int(count.item())


def place(path: pathlib.Path, row: int, column: str) -> str:
    """How an error names a cell."""
    return f"{path}, row {row}, column {column}"


def _check(path: pathlib.Path, column: Column, schema: dict[str, pl.DataType]) -> bool:
    """Is the column there (and as it should be)?"""
    if column.name not in schema:
        if not column.required:
            return False
        fix = f"it has {', '.join(schema)}"
        if column.name == "subject_id" and "patient_id" in schema:
            fix = "this looks like MEDS before version 0.3, which said patient_id: convert it first"
        raise UserError(f"no column {column.name}", where=str(path), fix=fix)
    dtype = schema[column.name]
    if not (column.type.accepts(dtype) or (column.nullable and dtype == pl.Null)):
        raise UserError(
            f"column {column.name} holds {dtype}, but must be a {column.type.name}",
            where=str(path),
            fix="convert the column and write the file again",
        )
    return True


def _cast(path: pathlib.Path, values: pl.Series, column: Column) -> pl.Series:
    if values.dtype == column.type.dtype:
        return values
    cast = values.cast(column.type.dtype, strict=False)
    lost = cast.is_null() & values.is_not_null()
    if lost.any():
        row = int(lost.arg_max() or 0)
        raise UserError(f"does not fit in a {column.type.name}", where=place(path, row, column.name))
    return cast


def _guard(path: pathlib.Path, read: Callable[[], _T]) -> _T:
    """Run a reader; whatever it makes of a damaged file becomes a UserError that names the file and no content."""
    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            what = "no such file"
        elif isinstance(error, PermissionError):
            what = "may not be read"
        else:
            what = "not a readable parquet file (damaged, cut short, or something else)"
        raise UserError(what, where=str(path), fix="write or copy it again") from error
