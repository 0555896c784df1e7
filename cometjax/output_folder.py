"""A command's output folder: it appears once, whole, or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from data_pipeline.errors import UserError


def refuse_taken(out: pathlib.Path) -> None:
    """Raise UserError where the folder holds something, or has no name to put another beside it by (".", "..", "/")."""
    if out.name in ("", ".."):
        raise UserError("is not the name of a folder", where=str(out), fix="name a new folder, such as out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("is not an empty folder", where=str(out), fix="give a new folder, or remove this one")


@contextlib.contextmanager
def whole(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `out`, renamed to it when the block ends, removed when the block fails.

    Raises UserError where it cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=str(out), fix="check space and rights"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
