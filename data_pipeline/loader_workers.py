"""Worker processes that read records for the loader.

    the loader's process ── rows: (record, start, length) of each segment ──▶ worker
                         ◀── tokens of the rows, uint16 ────────────────────

The loader's process looks up the rows and expands the tokens into batches; a worker reads and decodes. They talk
through a socket pair only: no file and no shared memory outlives a process that is killed, and a worker whose parent
ends sees the socket close and ends too. A worker imports numpy and ArrayRecord, not JAX, so it is ready within half a
second.
"""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from data_pipeline import row_tokens
from data_pipeline.errors import UserError
from data_pipeline.packing import RowPlan
from data_pipeline.row_tokens import RecordSource, RowTokens

Result = TypeVar("Result")


def iterate(
    split: RecordSource,
    steps: Iterable[int],
    *,
    rows_at: Callable[[int], list[RowPlan]],
    row_length: int,
    prefix_length: int,
    expand: Callable[[list[RowPlan], RowTokens], Result],
    workers: int,
    prefetch: int,
) -> Iterator[Result]:
    """`expand(rows, tokens)` of the rows of each step, in order, the tokens read by worker processes.

    Args:
        split: the records; travels to the workers.
        steps: what to read.
        rows_at: the rows of a step.
        row_length, prefix_length: of the rows.
        expand: called in a thread of this process.
        workers: how many; step i of `steps` is read by worker i % workers.
        prefetch: steps that each worker is ahead, 1 at the least.

    Raises:
        UserError: as reading the split does, or when a worker was killed.
    """
    setup = (split, row_length, prefix_length)
    lanes = [
        _Lane(setup, itertools.islice(own, lane, None, workers), rows_at, expand, prefetch)
        for lane, own in enumerate(itertools.tee(steps, workers))
    ]
    try:
        for lane in itertools.cycle(lanes):
            try:
                yield lane.next()
            except _End:
                return
    finally:
        for lane in lanes:
            lane.close()


class _End(Exception):
    """A lane has no more steps."""


class _Lane(Generic[Result]):
    """One worker process, and the thread that asks it and expands what it answers."""

    def __init__(
        self,
        setup: tuple[RecordSource, int, int],
        steps: Iterator[int],
        rows_at: Callable[[int], list[RowPlan]],
        expand: Callable[[list[RowPlan], RowTokens], Result],
        prefetch: int,
    ) -> None:
        self._steps, self._rows_at, self._expand = steps, rows_at, expand
        self._done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        # One more than is kept ready: the worker reads while its last answer is expanded.
        self._slots = threading.Semaphore(max(1, prefetch) + 1)
        self._closing = False
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "data_pipeline.loader_workers", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._ask(setup)
        self._thread = threading.Thread(target=self._run, name="loader lane", daemon=True)
        self._thread.start()

    def next(self) -> Result:
        """The next step's result; raises what went wrong, or `_End` after the last."""
        result = self._done.get()
        if isinstance(result, BaseException):
            self._done.put(result)  # for whoever asks again
            raise result
        self._slots.release()
        return result

    def close(self) -> None:
        """End the worker, which holds nothing but open files, and the thread."""
        self._closing = True
        self._process.kill()
        self._slots.release()
        self._thread.join()
        self._process.wait()
        self._connection.close()

    def _run(self) -> None:
        try:
            asked: queue.SimpleQueue[list[RowPlan]] = queue.SimpleQueue()
            waiting = 0
            for step in self._steps:
                self._slots.acquire()
                if self._closing:
                    return
                rows = self._rows_at(step)
                self._ask(rows)
                asked.put(rows)
                waiting += 1
                # The next question is on its way before the last is answered: the worker never waits.
                if waiting > 1:
                    self._done.put(self._expand(asked.get(), self._answer()))
                    waiting -= 1
            for _ in range(waiting):
                self._done.put(self._expand(asked.get(), self._answer()))
            self._done.put(_End())
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._done.put(error)

    # What a connection raises is let go before ours is raised: its traceback holds the pickled question by a view of
    # its buffer, and in a reference cycle that crashes the garbage collector of Python 3.12.0 and 3.12.1 (gh-111049).

    def _ask(self, question: Any) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(question)
            return
        raise self._ended()

    def _answer(self) -> RowTokens:
        answer = None
        with contextlib.suppress(EOFError, OSError):
            answer = self._connection.recv()
        if answer is None:
            raise self._ended()
        kind, content = answer
        if kind == "user error":
            raise UserError(content)
        if kind == "bug":
            raise RuntimeError(f"in a loader worker:\n{content}")
        return RowTokens(*content)

    def _ended(self) -> UserError:
        return UserError(
            f"a worker process ended with code {self._process.wait()}",
            where="loader",
            fix="if it ran out of memory, choose fewer with config.loader.workers",
        )


def _work(connection: multiprocessing.connection.Connection) -> None:
    """Answer questions until the other end closes."""
    split, row_length, prefix_length = connection.recv()
    questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, questions), daemon=True).start()
    while True:
        rows = [RowPlan(*row) for row in questions.get()]
        try:
            answer: tuple[str, Any] = ("tokens", tuple(row_tokens.read(split, rows, row_length, prefix_length)))
        except UserError as error:
            answer = ("user error", str(error))
        except Exception:
            answer = ("bug", traceback.format_exc())
        connection.send(answer)


def _receive(connection: multiprocessing.connection.Connection, questions: queue.SimpleQueue[Any]) -> None:
    # In a thread of its own, so that the end of the parent is noticed whatever the worker does, and so that two ends
    # that both send never wait for each other.
    try:
        while True:
            questions.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def main() -> None:
    """A worker: the file descriptor of its socket is the one argument."""
    # A cluster signals every process of a job; the worker is needed until the trainer has saved, and ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        _work(multiprocessing.connection.Connection(int(sys.argv[1])))
    except (EOFError, OSError):  # the parent ended while it was being answered
        sys.exit(0)


if __name__ == "__main__":
    main()
