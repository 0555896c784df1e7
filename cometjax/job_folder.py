"""The folder of a job while its output is not there, and how several processes draw it together.

Beside the output folder OUT stands `.OUT.job`, on a file system that all of them see:

    job.json             what decides the output; whoever comes with something else is refused
    lock                 held by all that draw a part, or by the one process that draws everything or writes the output
    part_I_of_N.lock     held by the process that draws part I
    part_I_of_N.drawn    part I has drawn its share

Nobody waits for anybody. Whoever has drawn its part looks whether it was the last: then it alone writes the output. Two
that end together cannot both leave it to the other: each gives up its share of the lock before it asks for all of it,
so that the last to ask finds nobody there but one that writes already. Locks end with their holder, so a part that was
killed is just started again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cometjax import output_folder
from cometjax.finished_prompts import write_whole
from data_pipeline import file_lock, interrupts
from data_pipeline.errors import UserError

# The first part holds the lock alone while it writes job.json; others wait for that.
JOIN_SECONDS = 10.0
PART_HELP = (
    "i/n: draw part i, from 0 to n - 1, of the prompts, beside n - 1 other processes with the same flags on machines "
    "that share --out's file system; the last to end writes --out (docs/simulation.md); none: all by this process"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Which of the prompts a process draws: part `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Of "i/n"; "" is everything. Raises UserError for anything else."""
        if not text:
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise UserError(
                f"{text!r} is no part", where="--part", fix="give i/n with i from 0 to n - 1: --part=0/4 to --part=3/4"
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def is_all(self) -> bool:
        """Is there no other?"""
        return self.count == 1

    @property
    def name(self) -> str:
        """Of its files."""
        return f"part_{self.index}_of_{self.count}"

    @property
    def writer(self) -> str:
        """How the names of the files of finished prompts begin that it writes."""
        return "" if self.is_all else f"{self.name}_"

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Numbers of the prompts that are this part's, rising: dealt in turn by size, so that parts cost alike."""
        return sorted(np.argsort(np.asarray(sizes), kind="stable")[self.index :: self.count].tolist())


EVERYTHING = Part()


class JobFolder:
    """The folder of an unfinished job, as one of its processes holds it; made by `opened`.

    Attributes:
        path: the folder.
        part: what this process draws.
    """

    def __init__(self, out: pathlib.Path, part: Part) -> None:
        self.path, self.part = folder_of(out), part
        self._out, self._identity = out, self.path / "job.json"
        self._held: dict[str, int] = {}
        self._has_begun = self._is_done = False

    def finish_part(self) -> bool:
        """Note that this part's share is drawn. Is this the process that is to write the output? If not, a line says
        what is missing, or who writes."""
        write_whole(self.path / f"{self.part.name}.drawn", lambda path: path.write_text(""))
        self._release("lock")  # over NFS, unlike elsewhere, a lock that cannot grow would stay as it is
        if not _is_written(self._out):
            if missing := self._missing():
                parts = f"part{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
                print(f"part {self.part.index} of {self.part.count} is drawn; {parts} (from 0) not yet: {self.path}")
                return False
            if not self._take("lock", where_impossible=False):
                self._say_that_another_writes()
                return False
        if _is_written(self._out):
            print(f"all {self.part.count} parts are drawn, and another process has written {self._out}")
            self._is_done = not self._identity.exists()  # what that one has removed, and this one just made again
            return False
        return True

    def remove(self) -> None:
        """The output is there: remove the folder when the block of `opened` ends, and nobody holds it any more."""
        self._is_done = True

    def _missing(self) -> list[int]:
        """The parts whose shares are not drawn."""
        every = [Part(index, self.part.count) for index in range(self.part.count)]
        return [part.index for part in every if not (self.path / f"{part.name}.drawn").exists()]

    def _say_that_another_writes(self) -> None:
        print(
            f"all {self.part.count} parts are drawn: another process that is at work in {self.path} writes "
            "the output, or give the command without --part once it has ended"
        )

    def _enter(self, identity: Mapping[str, Any], keep_identity: bool) -> bool:
        """Is there something left to do here? If not, a line says why."""
        if self.part.is_all:
            if not self._take("lock"):
                raise UserError(
                    "another process draws or writes here", where=str(self.path), fix="wait for its end, or end it"
                )
            if keep_identity and not self._identity.exists():
                self._write(identity)
        else:
            if not self._take(f"{self.part.name}.lock"):
                raise UserError(
                    f"another process draws part {self.part.index} of {self.part.count}",
                    where=str(self.path),
                    fix="give each process a part of its own",
                )
            if not self._join(identity):
                return False
        if _is_written(self._out):  # while this process was on its way here
            self._is_done = self._has_begun or not self._identity.exists()
            return not _is_written_by_job(self._out, self.part, identity)
        self._refuse_other(identity)
        return True

    def _join(self, identity: Mapping[str, Any]) -> bool:
        """Hold the lock with other parts; the first, while it holds it alone, says what the job is. False where all is
        drawn and another process writes the output: a scheduler may start a part once more just then."""
        deadline = time.monotonic() + JOIN_SECONDS
        while not (self._identity.exists() and self._take("lock", shared=True)):
            if not self._identity.exists() and self._take("lock"):
                if not self._identity.exists():
                    self._write(identity)
            elif not self._missing():
                self._refuse_other(identity)
                self._say_that_another_writes()
                return False
            elif time.monotonic() >= deadline:
                raise UserError(
                    "a process without --part draws here, or one writes the output",
                    where=str(self.path),
                    fix="wait for its end, or end it",
                )
            else:
                time.sleep(0.1)
        return True

    def _write(self, identity: Mapping[str, Any]) -> None:
        write_whole(self._identity, lambda path: path.write_text(json.dumps(identity) + "\n"))
        self._has_begun = True

    def _refuse_other(self, identity: Mapping[str, Any]) -> None:
        if not self._identity.exists():
            return
        known = json.loads(self._identity.read_text())
        if differing := [name for name in identity if known.get(name) != identity[name]]:
            raise UserError(
                f"an unfinished simulation of other {', '.join(differing)} is there",
                where=str(self.path),
                fix="give the same again to finish it, another --out, or remove that folder",
            )

    def _take(self, name: str, *, shared: bool = False, where_impossible: bool = True) -> bool:
        if name not in self._held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._held[name] = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise UserError(
                    f"cannot be written ({error.strerror})", where=str(self.path), fix="check space and rights"
                ) from error
        return file_lock.take(self._held[name], self.path, shared=shared, where_impossible=where_impossible)

    def _release(self, name: str) -> None:
        os.close(self._held.pop(name))

    def _close(self) -> None:
        for name in list(self._held):
            self._release(name)
        if self._is_done:  # only now: NFS keeps files that are open, and with them the folder
            shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def opened(
    out: pathlib.Path, part: Part, identity: Mapping[str, Any], *, keep_identity: bool = True
) -> Iterator[JobFolder | None]:
    """The folder of the job of `out`, made when missing, held against processes that would get in each other's way;
    None, and a line, where this very job's output is written or being written, and nothing is left for this part.

    Args:
        out: the output folder.
        part: what this process draws.
        identity: by name what decides the output: JSON values.
        keep_identity: whether a process that draws everything writes job.json, too, and binds later starts to it.

    Raises UserError: another process draws this part, or works here alone; the folder is of another identity, or cannot
    be written; `out` holds something else.
    """
    if _is_written_by_job(out, part, identity):
        yield None
        return
    folder = JobFolder(out, part)
    resumption = f"{folder.path} keeps the futures that are finished: the same command goes on from there"
    try:
        has_work = folder._enter(identity, keep_identity)
        with interrupts.resumable(lambda: resumption):
            yield folder if has_work else None
    finally:
        folder._close()


def refuse_taken(out: pathlib.Path, part: Part) -> None:
    """Raise UserError where the output folder holds something that cannot be this part's job: `opened` looks closer."""
    if part.is_all or not _job_of(out):
        output_folder.refuse_taken(out)


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of a job's identity: its output keeps it, as "job" in summary.json or below "run" in results.json."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _job_of(out: pathlib.Path) -> str:
    """The digest in an output folder; "" where there is none."""
    for name, keys in (("summary.json", ("job",)), ("results.json", ("run", "job"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((out / name).read_text())
            for key in keys:
                content = content[key]
            return str(content)
    return ""


def folder_of(out: pathlib.Path) -> pathlib.Path:
    """Where the unfinished job of an output folder is kept."""
    return out.with_name(f".{out.name}.job")


def _is_written(out: pathlib.Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _is_written_by_job(out: pathlib.Path, part: Part, identity: Mapping[str, Any]) -> bool:
    """Is the output there, and of this very job? A line says so: a scheduler may start a part once more.

    Raises UserError where something else is there.
    """
    if not _is_written(out):
        return False
    if part.is_all or _job_of(out) != digest(identity):
        output_folder.refuse_taken(out)
    print(f"{out}: already written by this job; nothing is left for part {part.index} of {part.count}")
    return True
