"""Pieces: files of tables, arrays and plain values that one part of a build leaves for the next, checksummed.

A piece is a zip archive whose members are NAME.arrow (a table), NAME.npy (an array) or NAME.json (anything else). Zip
keeps a CRC-32 of each member, which is checked on reading; the archive's comment is the number of members, as a damaged
directory may lack some. A piece is whole or absent: it is written under a temporary name, and renamed once its bytes
are on the disk.
"""

import contextlib
import io
import json
import lzma
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from data_pipeline.errors import UserError

# A fixed date: the bytes of a piece are a function of its content.
_DATE = (1980, 1, 1, 0, 0, 0)


# What zipfile and the decompressors that a damaged directory names raise.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    OverflowError,
)


class DamagedPieceError(UserError):
    """A file that is no whole piece."""


def write(path: pathlib.Path, content: Mapping[str, Any], temporary: pathlib.Path) -> None:
    """Write tables (polars), arrays (numpy) and JSON values by name, by way of a temporary file; raises OSError."""
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, value in content.items():
            suffix, encoded = _encode(value)
            archive.writestr(zipfile.ZipInfo(name + suffix, _DATE), encoded)
        archive.comment = b"%d" % len(content)
    install(temporary, path)


def read(path: pathlib.Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """What `write` was given, or the `names` of it; raises DamagedPieceError when the bytes are others."""
    with _opened(path) as archive:
        members = {member.rpartition(".")[0]: member for member in archive.namelist()}
        wanted = members if names is None else {name: members[name] for name in names}
        return {name: _decode(member, archive.read(member)) for name, member in wanted.items()}


def is_whole(path: pathlib.Path) -> bool:
    """Is there a piece, with every member there and every checksum right?"""
    try:
        with _opened(path) as archive:
            return archive.testzip() is None
    except DamagedPieceError:
        return False


def install(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Give a finished file its name, once its bytes are on the disk."""
    sync(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)


def sync(path: pathlib.Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems have no such thing for folders.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """A piece's archive; what goes wrong with it meanwhile is a DamagedPieceError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment != b"%d" % len(archive.namelist()):
                raise zipfile.BadZipFile("members are missing")
            yield archive
    except _DAMAGE as error:
        fix = "start the build again: what is damaged is made anew"
        raise DamagedPieceError("damaged", where=str(path), fix=fix) from error


def _encode(value: Any) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    if isinstance(value, pl.DataFrame):
        value.write_ipc(buffer, compression="zstd")
        return ".arrow", buffer.getvalue()
    if isinstance(value, np.ndarray):
        np.save(buffer, value, allow_pickle=False)
        return ".npy", buffer.getvalue()
    return ".json", json.dumps(value).encode()


def _decode(member: str, content: bytes) -> Any:
    if member.endswith(".arrow"):
        return pl.read_ipc(io.BytesIO(content))
    if member.endswith(".npy"):
        return np.load(io.BytesIO(content), allow_pickle=False)
    return json.loads(content)


def remove(path: pathlib.Path) -> None:
    """Remove a piece if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
