"""CORPUS.partial: where a build keeps what it has finished, so that a run that is killed is taken up by the next.

CORPUS.partial/
  lock                 held while a build runs: a second build of the same corpus is refused
  job.json             what is being built; read by every worker, wherever it runs
  splits/, excluded/   subject ids that workers look up, memory-mapped
  counted/             per shard: its counts            } pieces, by the key of what they hold
  merged/              counts of many shards            }
  tokenized/           per shard: what the manifest and arrays are made from
  corpus/              the corpus to be: whole shards only
  temporary/           files being written; emptied when a build starts
"""

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Iterator

from data_pipeline import corpus, file_lock, pieces
from data_pipeline.build_job import BuildJob
from data_pipeline.errors import UserError

_JOB, _LOCK = "job.json", "lock"
_FOLDERS = ("splits", "excluded", "counted", "merged", "tokenized", "corpus", "temporary")


@dataclasses.dataclass(frozen=True)
class BuildFolder:
    """The paths in a build's folder."""

    root: pathlib.Path

    @property
    def corpus(self) -> pathlib.Path:
        """The corpus to be."""
        return self.root / "corpus"

    @property
    def vocabulary(self) -> pathlib.Path:
        """The vocabulary that shards are tokenized by."""
        return self.root / "vocabulary.json"

    def counted(self, key: str) -> pathlib.Path:
        """The piece with the counts of a shard."""
        return self.root / "counted" / f"{key}.zip"

    def merged(self, key: str) -> pathlib.Path:
        """The piece with the counts of many shards."""
        return self.root / "merged" / f"{key}.zip"

    def tokenized(self, key: str) -> pathlib.Path:
        """The piece about a shard that is tokenized."""
        return self.root / "tokenized" / f"{key}.zip"

    def subjects(self, kind: str, key: str, name: str = "subject_ids") -> pathlib.Path:
        """An array of subject ids ("splits", "excluded"), or what belongs to them."""
        return self.root / kind / f"{key}.{name}.npy"

    def temporary(self) -> pathlib.Path:
        """A name that no other process uses; the next run removes it."""
        return self.root / "temporary" / secrets.token_hex(8)

    def job(self) -> BuildJob:
        """What is being built; raises ValueError or OSError when that cannot be read."""
        return BuildJob.from_json((self.root / _JOB).read_text())


@contextlib.contextmanager
def opened(out: pathlib.Path, job: BuildJob) -> Iterator[BuildFolder | None]:
    """The folder of a build of `out`, locked, with what earlier runs have finished of this job; nothing of another.

    None where an earlier run had finished `out`, and was killed while it cleared up.

    Raises UserError when `out` is no name, holds something, cannot be written, or is being built already.
    """
    if out.name in ("", ".."):
        raise UserError("not the name of a new folder", where=str(out), fix="choose another --out")
    folder = BuildFolder(out.with_name(out.name + ".partial"))
    if _is_taken(out) and not folder.root.exists():
        raise UserError("already exists", where=str(out), fix="remove it or choose another --out")
    try:
        with _locked(folder.root):
            if _is_taken(out):
                _clear_after_finished(folder, out, job)
                yield None
                return
            _take_up(folder, job)
            yield folder
    except OSError as error:
        raise cannot_write(folder.root, error) from error


def finish(folder: BuildFolder, out: pathlib.Path) -> None:
    """Give the finished corpus its name, and remove the rest."""
    pieces.sync(folder.corpus)
    if out.exists():
        out.rmdir()
    folder.corpus.rename(out)
    pieces.sync(out.parent)
    _remove(folder)


def discard_if_empty(folder: BuildFolder) -> bool:
    """Remove the folder if no shard is finished; True if so."""
    if any(path for stage in ("counted", "tokenized") for path in (folder.root / stage).glob("*.zip")):
        return False
    _remove(folder)
    return True


def cannot_write(where: pathlib.Path, error: OSError) -> UserError:
    """The one line for a disk that is full, a place that is read-only, and the like."""
    reason = error.strerror or type(error).__name__
    return UserError(
        f"cannot be written ({reason})",
        where=str(where),
        fix="check space and rights, then start the build again: it goes on from the shards that are finished",
    )


def _is_taken(out: pathlib.Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    strangers = set(os.listdir(root)) - {_JOB, _LOCK, "vocabulary.json", *_FOLDERS} if root.exists() else None
    if strangers:
        raise UserError("holds what is not of a build", where=str(root), fix="remove it or choose another --out")
    while True:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not file_lock.take(descriptor, root):
                raise UserError(
                    "another build is writing here", where=str(root), fix="wait for it or choose another --out"
                )
            # The build that held it may have finished and removed the file meanwhile: then this is no lock.
            if _is_file(descriptor, root / _LOCK):
                yield
                return
        finally:
            os.close(descriptor)


def _is_file(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _take_up(folder: BuildFolder, job: BuildJob) -> None:
    try:
        known: BuildJob | None = folder.job()
    except (OSError, ValueError):
        known = None
    if known is None or known.settings_key != job.settings_key:
        if known is not None:
            names = sorted({*known.settings, *job.settings})
            changed = [name for name in names if known.settings.get(name) != job.settings.get(name)]
            print(f"{folder.root}: {', '.join(changed)} changed since: starting over", file=sys.stderr)
        for stage in _FOLDERS:
            shutil.rmtree(folder.root / stage, ignore_errors=True)
    elif known.shards != job.shards:
        changed_files = len(set(job.shards) - set(known.shards))
        gone = len({shard.file for shard in known.shards} - {shard.file for shard in job.shards})
        print(f"{folder.root}: input files new or changed since: {changed_files}, gone: {gone}", file=sys.stderr)
    shutil.rmtree(folder.root / "temporary", ignore_errors=True)
    for stage in _FOLDERS:
        (folder.root / stage).mkdir(exist_ok=True)
    temporary = folder.temporary()
    temporary.write_text(job.to_json())
    pieces.install(temporary, folder.root / _JOB)


def _clear_after_finished(folder: BuildFolder, out: pathlib.Path, job: BuildJob) -> None:
    try:
        same = folder.job().key == job.key and (out / corpus.MANIFEST).is_file()
    except (OSError, ValueError):
        same = False
    if not same:
        if not any((folder.root / stage).exists() for stage in _FOLDERS):
            _remove(folder)
        raise UserError("already exists", where=str(out), fix="remove it or choose another --out")
    print(f"{out}: was finished by an earlier run, which was stopped while it cleared up", file=sys.stderr)
    _remove(folder)


def _remove(folder: BuildFolder) -> None:
    # What says whose the folder is goes last: a run that is killed in between leaves what the next can tell.
    for stage in _FOLDERS:
        shutil.rmtree(folder.root / stage, ignore_errors=True)
    pieces.remove(folder.vocabulary)
    pieces.remove(folder.root / _JOB)
    pieces.remove(folder.root / _LOCK)
    folder.root.rmdir()
