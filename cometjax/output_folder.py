"""What a command writes, a folder or a file: it appears once, whole, or not at all."""

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


@contextlib.contextmanager
def whole_file(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside `file`, renamed to it when the block ends, removed when it fails; of a pipe or a device such as
    /dev/stdout it is that itself.

    Raises UserError where it cannot be written.
    """
    in_place = file.exists() and not file.is_file()
    partial = file if in_place else file.with_name(f".{file.name}.partial")
    try:
        yield partial
        if not in_place:
            partial.replace(file)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=str(file), fix="check space and rights"
        ) from error
    finally:
        if not in_place:
            partial.unlink(missing_ok=True)


def write_file(file: pathlib.Path, text: str) -> None:
    """Write a text file as `whole_file` does."""
    with whole_file(file) as partial:
        partial.write_text(text)
