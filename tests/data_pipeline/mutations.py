"""Random damage to files, and random mistakes in tables: what the fuzz tests do to data sets, labels and corpora."""

import datetime
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow.parquet as pq

Random = np.random.Generator


def damage(path: pathlib.Path, files: list[pathlib.Path], random: Random) -> str:
    """Damage a file as disks, copies and people do; returns in which way."""
    ways = {"replaced by another file": lambda: path.write_bytes(files[random.integers(len(files))].read_bytes())}
    ways["removed"] = path.unlink
    ways["made a folder"] = lambda: (path.unlink(), path.mkdir())
    ways["a link to nowhere"] = lambda: (path.unlink(), path.symlink_to("nowhere"))
    content = path.read_bytes()
    bytes_changed = list(_BYTE_CHANGES)
    # Most are changes of bytes: there are many more of those that differ.
    if random.random() < 0.15:
        way = list(ways)[random.integers(len(ways))]
        ways[way]()
        return way
    way = bytes_changed[random.integers(len(bytes_changed))]
    path.write_bytes(_BYTE_CHANGES[way](content, random))
    return way


def _place(content: bytes, random: Random) -> int:
    """A place in a file: anywhere, or near an end, where headers and footers are."""
    last = max(0, len(content) - 1)
    near = min(last, int(random.integers(1, 400)))
    return (int(random.integers(last + 1)), near, last - near)[random.integers(3)]


def _flip_bit(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]


def _flip_bytes(content: bytes, random: Random) -> bytes:
    for _ in range(int(random.integers(2, 20))):
        place = _place(content, random)
        content = content[:place] + random.bytes(1) + content[place + 1 :]
    return content


def _overwrite(content: bytes, random: Random) -> bytes:
    place, size = _place(content, random), int(random.integers(1, 200))
    filling = random.bytes(size) if random.random() < 0.5 else bytes(size)
    return (content[:place] + filling + content[place + size :])[: len(content)]


def _insert(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + random.bytes(int(random.integers(1, 50))) + content[place:]


def _cut_out(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + content[place + int(random.integers(1, 200)) :]


_BYTE_CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "a bit flipped": _flip_bit,
    "bytes flipped": _flip_bytes,
    "overwritten": _overwrite,
    "bytes put in": _insert,
    "bytes cut out": _cut_out,
    "cut short": lambda content, random: content[: int(random.integers(len(content)))],
    "doubled": lambda content, random: content + content,
    "more at the end": lambda content, random: content + random.bytes(int(random.integers(1, 100))),
    "nested without end": lambda content, random: b"[" * 100_000,
    "zeros": lambda content, random: bytes(len(content)),
}


def rewrite(path: pathlib.Path, table: pl.DataFrame, random: Random) -> None:
    """Write a table as one of the many forms that parquet has."""
    version = ("1.0", "2.0")[random.integers(2)]
    pq.write_table(
        table.to_arrow(compat_level=pl.CompatLevel.oldest()),
        path,
        compression=("none", "snappy", "zstd", "gzip")[random.integers(4)],
        use_dictionary=bool(random.integers(2)),
        write_page_checksum=bool(random.integers(2)),
        data_page_version=version,
        row_group_size=int(random.choice([7, 100, 100_000])),
        store_schema=bool(random.integers(2)),
    )


def mistake(path: pathlib.Path, random: Random) -> str:
    """Make one of the mistakes in a table of MEDS that writers of such tables make; returns which."""
    name = list(_MISTAKES)[random.integers(len(_MISTAKES))]
    rewrite(path, _MISTAKES[name](pl.read_parquet(path), random), random)
    return name


def _some(table: pl.DataFrame, random: Random) -> pl.Series:
    """A mask of a few rows."""
    return pl.Series(random.random(len(table)) < random.choice([0.01, 0.2, 1.0]))


def _column(table: pl.DataFrame, random: Random) -> str:
    return table.columns[random.integers(table.width)]


def _set_null(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    name = _column(table, random)
    return table.with_columns(pl.when(~_some(table, random)).then(pl.col(name)).alias(name))


def _set_value(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    """Cells of one column become something that its type has and nobody expects."""
    name = _column(table, random)
    kind = table.schema[name]
    if kind.is_float():
        value = random.choice([float("nan"), float("inf"), -float("inf"), 3e38, -0.0, 1e-40])
    elif kind.is_integer():
        value = int(random.choice(np.array([0, -1, 2**63 - 1, -(2**63), 1, 2], np.int64)))
    elif isinstance(kind, pl.Datetime):
        value = int(random.choice(np.array([0, -1, 2**63 - 1, -(2**63), 10**17, -(10**17), 4 * 10**18], np.int64)))
    elif kind == pl.String:
        value = str(random.choice(["", " ", "\x00", "\n", "a//" * 2_000, "SEX//", "//", "../../up", "\U0001f600", "."]))
    else:
        return table
    cells = pl.lit(value).cast(kind, strict=False)
    return table.with_columns(pl.when(_some(table, random)).then(cells).otherwise(pl.col(name)).alias(name))


def _retype(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    kinds = [pl.String, pl.Int32, pl.UInt64, pl.Float64, pl.Boolean, pl.Date, pl.Datetime("ms"), pl.Datetime("ns")]
    kinds += [pl.Binary, pl.Categorical, pl.Null]
    name = _column(table, random)
    kind = kinds[random.integers(len(kinds))]
    if kind == pl.Null:
        return table.with_columns(pl.lit(None).alias(name))
    try:
        return table.with_columns(pl.col(name).cast(kind, strict=False))
    except pl.exceptions.PolarsError:  # it has no such cast
        return table.with_columns(pl.lit(0).cast(pl.Int64).alias(name))


def _nest(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    name = _column(table, random)
    wrapped = pl.concat_list(name) if random.random() < 0.5 else pl.struct(name)
    return table.with_columns(wrapped.alias(name))


def _repeat_rows(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    return pl.concat([table, table.filter(_some(table, random))])


def _move_time(table: pl.DataFrame, random: Random) -> pl.DataFrame:
    names = [name for name, kind in table.schema.items() if isinstance(kind, pl.Datetime)]
    by = datetime.timedelta(days=int(random.integers(-400_000, 400_000)))
    return table.with_columns(pl.col(name) + by for name in names)


_MISTAKES: dict[str, Callable[[pl.DataFrame, Random], pl.DataFrame]] = {
    "cells without value": _set_null,
    "strange values": _set_value,
    "strange values, and more": lambda table, random: _set_value(_set_value(table, random), random),
    "another type": _retype,
    "a nested column": _nest,
    "rows in random order": lambda table, random: table.sample(fraction=1, shuffle=True, seed=int(random.integers(99))),
    "rows reversed": lambda table, random: table.reverse(),
    "rows twice": _repeat_rows,
    "no rows": lambda table, random: table.clear(),
    "rows missing": lambda table, random: table.filter(~_some(table, random)),
    "a column missing": lambda table, random: table.drop(_column(table, random)),
    "a column of another name": lambda table, random: table.rename({_column(table, random): "other"}),
    "columns in another order": lambda table, random: table.select(reversed(table.columns)),
    "other times": _move_time,
    "nothing wrong": lambda table, random: table,
}


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A copy of a folder to damage."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)


def remove(path: pathlib.Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
