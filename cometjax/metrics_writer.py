"""Metrics on disk, JSON lines and TensorBoard, written by a thread for which the training loop never waits.

The policy, where the file system is slow, hangs or is full: training goes on.
- Up to QUEUE_LINES lines wait in memory (two kilobytes each). A line for which there is no room is dropped.
- A line that cannot be written is tried again every second until it can: after room is made, none is missing.
- The log says so in one line when it begins, and at the end how many lines are lost, if any are.
- A checkpoint becomes visible after the lines of its steps (`flush`, in the checkpoint's own thread, FLUSH_SECONDS at
  most): so a run that goes on from it, after a kill, has all lines before it.
"""

import json
import math
import os
import pathlib
import queue
import threading
from collections.abc import Mapping

from absl import logging

from cometjax import metrics
from cometjax import workdir as workdirs
from cometjax.tensorboard_files import Board

QUEUE_LINES = 4096
BOARD = "tensorboard"
_RETRY_SECONDS = 1.0
# How long a checkpoint, and a run's end, wait for a file system that hangs.
FLUSH_SECONDS = 60.0

Line = tuple[int, str, Mapping[str, float | int | None]]


class MetricsWriter:
    """Appends lines; does nothing on other processes than the first.

    Lines beyond `resumed_step` come from steps that were lost with a kill: they are cut, so that the file reads as one
    uninterrupted run. Raises UserError when the file cannot be cut or opened.
    """

    def __init__(
        self, workdir: pathlib.Path, *, resumed_step: int, enabled: bool, queue_lines: int = QUEUE_LINES
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        self._workdir = workdir
        path = workdir / metrics.METRICS_FILE
        with workdirs.writing(path):
            metrics.cut(path, resumed_step)
            self._file = path.open("ab", buffering=0)
        self._board = Board(workdir / BOARD, resumed_step=resumed_step)
        self._dropped, self._unwritten = 0, 0  # by the loop; by the thread
        # Counts lines alone: a flush and the end always find room.
        self._room = threading.Semaphore(queue_lines)
        self._queue: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_queued, name="metrics", daemon=True)
        self._thread.start()

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """Hand over one line, and return at once. What is not finite becomes null, for JSON has no NaN."""
        if not self._enabled:
            return
        if self._room.acquire(blocking=False):
            self._queue.put((step, split, dict(values)))
            return
        self._dropped += 1
        if self._dropped == 1:
            logging.error("%s: metrics are written more slowly than they come: lines are dropped", self._workdir)

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until the lines handed over so far are written; False when that takes longer than `timeout` seconds."""
        if not self._enabled:
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout)

    def close(self) -> None:
        """Write what is left and close the files; the log says what could not be written."""
        if not self._enabled:
            return
        self._closing.set()
        self._queue.put(None)
        self._thread.join(FLUSH_SECONDS)
        if self._thread.is_alive():
            logging.error("%s: not all metrics are written: the file system does not answer", self._workdir)
        elif lost := self._dropped + self._unwritten:
            logging.error("%s: %d lines of metrics are lost", self._workdir, lost)

    def _write_queued(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                self._board.flush()
                item.set()
            else:
                self._write_line(*item)
                self._room.release()
        self._file.close()
        self._board.close()

    def _write_line(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        line = {key: value if value is None or math.isfinite(value) else None for key, value in values.items()}
        self._append((json.dumps({"step": step, "split": split} | line) + "\n").encode())
        self._board.write(step, split, line)

    def _append(self, line: bytes) -> None:
        """Append a whole line: a reader, and a kill, find all of it or no more than a last line without an end."""
        told, rest = False, line
        size = os.fstat(self._file.fileno()).st_size
        while True:
            try:
                rest = rest[self._file.write(rest) :]
                if not rest:
                    return
            except OSError as error:
                if len(rest) < len(line):
                    self._file.truncate(size)
                    rest = line
                if not told:
                    told = True
                    logging.error("%s: metrics cannot be written (%s); tried again", self._workdir, error.strerror)
                if self._closing.wait(_RETRY_SECONDS):
                    self._unwritten += 1
                    return
