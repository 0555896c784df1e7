"""Parquet tables at the border: columns present and of the right type, or one clear line (file, row, column)."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import UserError

_T = TypeVar("_T")
_READING_ERRORS = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
    NotImplementedError,
)
_MOST_MILLISECONDS = (2**63 - 1) // 1000


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


@dataclasses.dataclass(frozen=True)
class Lost:
    """Cells whose content does not fit in the type that their column is read as: they are null in the table."""

    column: str
    mask: pl.Series
    what: str


def read(
    path: pathlib.Path,
    columns: Sequence[Column],
    *,
    fill_missing: bool = True,
    categories: bool = False,
) -> pl.DataFrame:
    """Read some columns of a parquet file, in this order and as their types.

    Args:
        path: the file.
        columns: what it should hold; its other columns are not read.
        fill_missing: whether a column that is not required and missing is returned as nulls, or left out.
        categories: whether text columns are Categorical: a table whose texts recur is read in two thirds of the time.

    Raises:
        UserError: no readable parquet file; a column missing or of another type; a number that does not fit.
    """
    table, lost = read_with_losses(path, columns, fill_missing=fill_missing, categories=categories)
    for cells in lost:
        raise UserError(cells.what, where=place(path, int(cells.mask.arg_max() or 0), cells.column))
    return table


def read_with_losses(
    path: pathlib.Path,
    columns: Sequence[Column],
    *,
    only: tuple[str, pl.Series] | None = None,
    fill_missing: bool = True,
    categories: bool = False,
) -> tuple[pl.DataFrame, list[Lost]]:
    """`read`, but cells that do not fit are told and not refused.

    With `only`, a (column, values), the rows in which the column has one of the values, and no row group without.
    """
    table, types = _guard(path, lambda: _read_arrow(path, columns, only))
    frame, lost = {}, []
    for column in columns:
        if _check(path, column, types):
            values = _guard(path, lambda name=column.name: pl.from_arrow(table[name]))  # type: ignore[misc]
            assert isinstance(values, pl.Series)
            if categories and column.type is TEXT:
                frame[column.name] = values.cast(pl.Categorical).alias(column.name)
                continue
            frame[column.name], mask = _cast(values, column)
            if mask is not None:
                lost.append(Lost(column.name, mask, f"does not fit in a {column.type.name}"))
        elif fill_missing:
            frame[column.name] = pl.Series(column.name, [None] * len(table), column.type.dtype)
    return pl.DataFrame(frame), lost


def count_rows(path: pathlib.Path) -> int:
    """Number of rows of a parquet file, from its footer; raises UserError when it is not readable."""
    return int(_guard(path, lambda: pq.read_metadata(path)).num_rows)


def _read_arrow(
    path: pathlib.Path, columns: Sequence[Column], only: tuple[str, pl.Series] | None
) -> tuple[pa.Table, dict[str, pl.DataType | str]]:
    """(the columns that are there, the types of all).

    By pyarrow and not by polars, whose panics on damaged files reach the terminal before anyone can catch them.
    """
    # No memory map: a file that shrinks while it is read would end the process by SIGBUS.
    with path.open("rb") as source:
        metadata = pq.read_metadata(source)
        fields = {field.name: field.type for field in metadata.schema.to_arrow_schema()}
        texts = [column.name for column in columns if pa.types.is_string(fields.get(column.name, pa.null()))]
        texts += [column.name for column in columns if pa.types.is_large_string(fields.get(column.name, pa.null()))]
        file = pq.ParquetFile(
            source,
            metadata=metadata,
            read_dictionary=texts,
            coerce_int96_timestamp_unit="us",
            page_checksum_verification=True,
        )
        groups = list(range(metadata.num_row_groups))
        if only and only[0] in fields:
            # Statistics would tell as much without reading, but pyarrow aborts the process on damaged ones.
            groups = [group for group in groups if _is_wanted(file.read_row_group(group, only[:1]), *only).any()]
        names = [column.name for column in columns if column.name in fields]
        # Worker processes are one per core, and are told so by OMP_NUM_THREADS.
        table = file.read_row_groups(groups, names, use_threads=pa.cpu_count() > 1)
    # Offsets, indices and UTF-8: what follows trusts them. Cheap, as the texts are those of dictionaries.
    table.validate(full=True)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    if len(table) != (metadata.num_rows if len(groups) == metadata.num_row_groups else rows):
        raise ValueError("other rows than the footer says: damage to a length can look like an end")
    if only and only[0] in fields:
        table = table.filter(_is_wanted(table, *only).to_arrow())
    # Of what is not read the type is not asked either: polars panics at some.
    return table, {name: _polars_type(kind) if name in names else str(kind) for name, kind in fields.items()}


def _is_wanted(table: pa.Table, name: str, values: pl.Series) -> pl.Series:
    """Mask of the rows in which a column has one of the values."""
    column = pl.from_arrow(table[name])
    assert isinstance(column, pl.Series)
    return column.is_in(values.implode())


def _polars_type(kind: pa.DataType) -> pl.DataType | str:
    """The type that polars makes of it; its name where polars knows none."""
    try:
        return pl.Series(pl.from_arrow(pa.array([], kind))).dtype
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, ValueError, TypeError):
        return str(kind)


def place(path: pathlib.Path, row: int, column: str) -> str:
    """How an error names a cell."""
    return f"{path}, row {row}, column {column}"


def _check(path: pathlib.Path, column: Column, schema: Mapping[str, pl.DataType | str]) -> bool:
    """Is the column there (and as it should be)?"""
    if column.name not in schema:
        if not column.required:
            return False
        fix = f"it has {', '.join(schema)}"
        if column.name == "subject_id" and "patient_id" in schema:
            fix = "this looks like MEDS before version 0.3, which said patient_id: convert it first"
        raise UserError(f"no column {column.name}", where=str(path), fix=fix)
    dtype = schema[column.name]
    # A type that polars does not know is a name.
    if isinstance(dtype, str) or not (column.type.accepts(dtype) or (column.nullable and dtype == pl.Null)):
        raise UserError(
            f"column {column.name} holds {dtype}, but must be a {column.type.name}",
            where=str(path),
            fix="convert the column and write the file again",
        )
    return True


def _cast(values: pl.Series, column: Column) -> tuple[pl.Series, pl.Series | None]:
    """(the values as the column's type, null where they do not fit; where that is, None for nowhere)."""
    values = values.alias(column.name)
    if values.dtype == column.type.dtype:
        return values, None
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_unit == "ms":
        # Polars would let the number of microseconds wrap around.
        fits = values.to_physical().is_between(-_MOST_MILLISECONDS, _MOST_MILLISECONDS)
        lost = ~fits & values.is_not_null()
        cast = values.zip_with(fits, pl.Series([None], dtype=values.dtype)).cast(column.type.dtype)
    else:
        cast = values.cast(column.type.dtype, strict=False)
        lost = cast.is_null() & values.is_not_null()
    return cast, lost if lost.any() else None


def _guard(path: pathlib.Path, read: Callable[[], _T]) -> _T:
    """Run a reader; whatever it makes of a damaged file becomes a UserError that names the file and no content."""
    try:
        return read()
    except _READING_ERRORS as error:
        fix = "write or copy it again"
        if isinstance(error, FileNotFoundError):
            what = "no such file"
        elif isinstance(error, PermissionError):
            what = "may not be read"
        elif "Invalid UTF8 sequence" in str(error):  # pyarrow's words; the rest may be content
            what, fix = "holds text that is not UTF-8", "write the file again in UTF-8"
        else:
            what = "not a readable parquet file (damaged, cut short, or something else)"
        raise UserError(what, where=str(path), fix=fix) from error
