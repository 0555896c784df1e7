"""TensorBoard's files: the figures of metrics.jsonl once more, in the groups in which a reader looks for them.

Each split is a run of TensorBoard's (`train`, `tuning`), so that both curves of a figure are in one chart. Groups are
sorted by name, and the page opens with the first two unfolded: `learning` has the loss and what says whether the run is
sound, `loss` its parts by kind of token.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

SPLITS = ("train", "tuning")
_OWN = ("time",)  # TensorBoard has it with every event
_SPEED = ("goodput", "input_wait", "mfu", "model_flops_per_second", "tokens_per_second", "wall_seconds")
_FLUSH_SECONDS = 10.0


def tag(key: str) -> str:
    """GROUP/NAME of a figure that metrics.jsonl calls `key`."""
    if "/" not in key:
        return f"{'speed' if key in _SPEED else 'learning'}/{key}"
    return f"norms/{key}" if key.partition("/")[0].endswith("_norm") else key


class Board:
    """Files in `folder`, a folder a split. They end at the disk's first error, with a line in the log."""

    def __init__(self, folder: pathlib.Path, *, resumed_step: int) -> None:
        self._folder = folder
        # Not its SummaryWriter: that has a thread and a queue of its own, which stall for good once a disk was full.
        self._writers: dict[str, EventsWriter] = {}
        self._try(lambda: self._open(resumed_step))
        self._flushed = time.monotonic()

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """Add a line's figures, but those that are None."""
        if not self._writers:
            return
        scalars = [
            Summary.Value(tag=tag(key), simple_value=value)
            for key, value in values.items()
            if value is not None and key not in _OWN
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        self._try(lambda: self._writers[split].write_event(event))
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:  # a flush waits for the disk
            self.flush()

    def flush(self) -> None:
        """Bring to the disk what was written."""
        self._try(lambda: [writer.flush() for writer in self._writers.values()])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """End the files."""
        self._try(lambda: [writer.close() for writer in self._writers.values()])

    def _open(self, resumed_step: int) -> None:
        for split in SPLITS:
            (self._folder / split).mkdir(parents=True, exist_ok=True)
            writer = self._writers[split] = EventsWriter(str(self._folder / split / "events"))
            # TensorBoard then forgets what it has read beyond.
            writer.write_event(Event(step=resumed_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            logging.error("%s: TensorBoard's files end here (%s)", self._folder, error.strerror)
            self._writers = {}
