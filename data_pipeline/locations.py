"""Which paths are folders of this machine, and which are URLs of object stores."""

import pathlib

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
