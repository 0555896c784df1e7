"""The user's cache: what can be made again from its source, kept so that a restart need not.

$COMETJAX_CACHE, or else $XDG_CACHE_HOME/cometjax, or else ~/.cache/cometjax. On a cluster set COMETJAX_CACHE to a
host's own disk. Everything in it may be deleted while nothing runs.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from data_pipeline.errors import UserError

VARIABLE = "COMETJAX_CACHE"
_TEMPORARY = ".tmp"


def folder(name: str) -> pathlib.Path:
    """The part of the cache for things of one sort, made when missing; raises UserError when it cannot be."""
    root = os.environ.get(VARIABLE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cometjax")
    path = pathlib.Path(root).expanduser() / name
    with refusing_unusable(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold a cache folder for this process alone; waits for another. What a killed process left half made is removed.

    The lock is the kernel's (flock) and ends with its holder, however that ends.
    """
    with refusing_unusable(path), (path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in path.glob(f"*{_TEMPORARY}"):
            shutil.rmtree(leftover)
        yield


@contextlib.contextmanager
def being_made(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder to fill, renamed to `target` when the block ends well, removed when it does not.

    The caller holds the lock of the cache folder.
    """
    temporary = target.with_name(target.name + _TEMPORARY)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def refusing_unusable(path: pathlib.Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a `UserError` that names the variable to set."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})",
            where=f"cache folder {path}",
            fix=f"set the environment variable {VARIABLE} to a folder with room",
        ) from error
