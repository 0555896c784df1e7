"""Engines: where the jobs of a build run, one per shard.

A job is a function of a module, with plain arguments, that leaves what it makes in the build's folder and returns
nothing. A job may run more than once: one whose process or machine is lost is run again.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar

# A job that takes its process with it this often is not run again.
MAX_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Job:
    """A call of a module's function; `name` says in an error what it is about."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


class Engine(Protocol):
    """Runs jobs."""

    def run(self, title: str, jobs: Sequence[Job]) -> None:
        """Return when all are done; raises the UserError of the first job, in their order, that has one."""


class InProcess:
    """Runs jobs one after the other, here."""

    def run(self, title: str, jobs: Sequence[Job]) -> None:
        """See Engine."""
        with progress_bar(total=len(jobs), desc=title, unit="shard") as bar:
            for job in jobs:
                job.function(*job.arguments)
                bar.update()


class ProcessPool:
    """Runs jobs in processes of this machine; `local` makes and ends one."""

    def __init__(self, workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[multiprocessing.connection.Connection, tuple[_Worker, int]] = {}
        self._workers = workers

    def run(self, title: str, jobs: Sequence[Job]) -> None:
        """See Engine."""
        waiting = collections.deque(range(len(jobs)))
        attempts = [0] * len(jobs)
        faults: dict[int, Exception] = {}
        with progress_bar(total=len(jobs), desc=title, unit="shard") as bar:
            while waiting or self._busy:
                while waiting and len(self._busy) < self._workers:
                    index = waiting.popleft()
                    attempts[index] += 1
                    self._start(jobs[index], index)
                for index, error in self._wait(jobs):
                    if isinstance(error, _LostError) and attempts[index] < MAX_ATTEMPTS:
                        waiting.appendleft(index)
                        continue
                    bar.update()
                    if error is not None:
                        # Jobs before it may still be running: the first fault in order is the one to report.
                        faults[index] = error
                        waiting.clear()
        if faults:
            raise faults[min(faults)]

    def _wait(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Exception | None]]:
        """(job, what it ran into) of those that have ended; waits for one."""
        for connection in multiprocessing.connection.wait(list(self._busy)):
            assert isinstance(connection, multiprocessing.connection.Connection)
            worker, index = self._busy.pop(connection)
            try:
                error = connection.recv()
                self._idle.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                print(f"{jobs[index].name}: its worker process died ({worker.process.exitcode})", file=sys.stderr)
                error = _LostError(jobs[index].name)
            yield index, error

    def kill(self) -> None:
        """End all processes at once; what they had in hand is lost, and nothing else."""
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
        self._idle, self._busy = [], {}

    def _start(self, job: Job, index: int) -> None:
        worker = self._idle.pop() if self._idle else _Worker.started(self._context)
        self._busy[worker.connection] = worker, index
        with contextlib.suppress(BrokenPipeError):  # It died while idle: waiting for its answer will tell.
            worker.connection.send((job.function, job.arguments))


class _LostError(UserError):
    """The process that ran a job died each time."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{MAX_ATTEMPTS} processes died while they had it in hand",
            where=name,
            fix="they may need more memory: use fewer --workers or smaller files",
        )


@dataclasses.dataclass(frozen=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection

    @classmethod
    def started(cls, context: multiprocessing.context.SpawnContext) -> "_Worker":
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        # The first start of a process starts multiprocessing's resource tracker, which ends in unblocking SIGINT: the
        # first worker would get Ctrl-C.
        multiprocessing.resource_tracker.ensure_running()
        # One polars thread each, as there is a process per core. Ctrl-C is for the parent: a blocked signal stays so.
        with _environment(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1"), _blocked(signal.SIGINT):
            process.start()
        theirs.close()
        return cls(process, ours)


def _work(connection: multiprocessing.connection.Connection) -> None:
    """Run jobs from a connection until it ends."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = connection.recv()
            error: Exception | None = None
            try:
                function(*arguments)
            except UserError as user_error:
                error = user_error
            except Exception:
                error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            connection.send(error)


def _die_with_parent() -> None:
    """A parent that is killed can't tell its workers: they would go on writing beside the next run's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def local(workers: int | None, shards: int) -> Iterator[Engine]:
    """An engine of processes on this machine, no more than shards; one per core by default, of none if asked for 1."""
    if workers == 1:
        yield InProcess()
        return
    # Spawned and not forked: polars and Arrow hold threads. One for one shard too: a library that aborts on a damaged
    # file then ends in an error that names the file.
    pool = ProcessPool(min(workers or cores(), shards))
    try:
        yield pool
    finally:
        pool.kill()


def cores() -> int:
    """Cores that this process may use, which a batch system may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
