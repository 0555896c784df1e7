"""Which paths are folders of this machine, and which are URLs of object stores; what lies below a folder."""

import os
import pathlib
from collections.abc import Iterator

from data_pipeline.errors import UserError

_SCHEMES = ("gs", "s3", "gcs", "s3a", "az", "abfs", "hdfs", "http", "https")


def is_remote(path: str | pathlib.Path) -> bool:
    """Whether a path is a URL of an object store; pathlib makes s3:/bucket of s3://bucket."""
    scheme, colon, _ = str(path).partition(":/")
    return bool(colon) and (scheme in _SCHEMES or "://" in str(path))


def require_local(path: str | pathlib.Path, name: str) -> None:
    """Raise UserError for a URL where only a folder will do; `name` is the flag that gave it."""
    if is_remote(path):
        raise UserError(
            "object stores are not read or written in place",
            where=f"{name} {path}",
            fix="mount the bucket (gcsfuse, mountpoint-s3) or copy it to a folder, and give that",
        )


def files_below(folder: pathlib.Path, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
    """Everything below a folder that is no folder itself, with what links to folders lead to, in no special order.

    A link to nowhere is one of them. A link back to a folder that it lies in (`above`: where the walk has come through)
    leads to nothing new.

    Raises UserError for a folder that cannot be read.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(folder)) from error
    for path in (folder / name for name in names):
        if path.is_dir():
            yield from files_below(path, (*above, here))
        else:
            yield path
