"""Where a run's wall time goes, over all its restarts, and how much of it went to steps.

Every second from the start of a run's first process belongs to one cause:

    step        the devices train, or the loop waits for them
    input       the devices ran dry, and the loop waited for a batch
    compile     the first call of a step, of training or evaluation: traced, compiled or read from the cache
    checkpoint  the loop waits for a save (most of the writing goes on beside the steps)
    evaluation  on the tuning split
    setup       from the start of the first process to its first step: imports, corpus, first batch, initial state
    restart     the same of every later process, with the checkpoint's restoring
    lost        what earlier processes did beyond the checkpoint that the next went on from, and beyond its evaluation
    down        no process ran, as far as the records tell: from the last line of one to the start of the next
    other       the rest: lines of metrics, traces, signals

A restart costs `restart`, `lost` and `down` together.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

CAUSES = ("step", "input", "compile", "checkpoint", "evaluation", "setup", "restart", "lost", "down", "other")


def process_start() -> float:
    """When this process was started, as a `time.perf_counter`; now, where the system does not tell."""
    now = time.perf_counter()
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22 of proc(5): clock ticks since boot
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError, IndexError):
        return now


class Clock:
    """Seconds by cause, and what the steps did in them: `tokens` (real target tokens) and `flops`.

    `carried` is `to_dict` of the checkpoint that this process goes on from. Of the records that processes before this
    one left (`record`, in lines of metrics.jsonl) `kept_record` is the last that stays: that of an evaluation after the
    checkpoint, say; and `last_record` the last of all. Time since `started` (a `time.perf_counter`;
    None: now) counts as setup or restart until `measure` or `begin` say otherwise. For one thread.
    """

    def __init__(
        self,
        carried: Mapping[str, Any] | None = None,
        *,
        kept_record: Mapping[str, Any] | None = None,
        last_record: Mapping[str, Any] | None = None,
        started: float | None = None,
    ) -> None:
        self._mark = time.perf_counter() if started is None else started
        carried = carried or {"seconds": {}, "tokens": 0, "flops": 0.0, "wall": 0.0}
        if kept_record is not None and kept_record["wall_seconds"] > carried["wall"]:
            seconds = {cause: kept_record[f"seconds/{cause}"] for cause in CAUSES}
            carried = {**carried, "seconds": seconds, "wall": kept_record["wall_seconds"]}
        self.seconds = dict.fromkeys(CAUSES, 0.0) | dict(carried["seconds"])
        # Checkpoints of older versions counted only a part of the time.
        self.seconds["other"] += max(0.0, carried["wall"] - sum(self.seconds.values()))
        self.tokens: int = carried["tokens"]
        self.flops: float = carried["flops"]
        self._cause = "setup" if last_record is None and not carried["wall"] else "restart"
        if last_record is not None:
            self.seconds["lost"] += max(0.0, last_record["wall_seconds"] - carried["wall"])
            began = time.time() - (time.perf_counter() - self._mark)
            self.seconds["down"] += max(0.0, began - last_record["time"])

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"wall": self.wall, "seconds": dict(self.seconds), "tokens": self.tokens, "flops": self.flops}

    def record(self) -> dict[str, float]:
        """What a line of metrics keeps: the time of day (Unix seconds), wall seconds so far, and their causes."""
        wall = self.wall
        goodput = self.seconds["step"] / wall
        return {"time": time.time(), "wall_seconds": wall, "goodput": goodput} | {
            f"seconds/{cause}": seconds for cause, seconds in self.seconds.items()
        }

    @contextlib.contextmanager
    def measure(self, cause: str) -> Iterator[None]:
        """Count the time of the block under `cause`, and not under that of a block around it."""
        self._charge()
        outer, self._cause = self._cause, cause
        try:
            yield
        finally:
            self._charge()
            self._cause = outer

    def count_as(self, cause: str) -> None:
        """Count the innermost block that is being measured, from its last inner block on, under another cause."""
        self._cause = cause

    def begin(self, cause: str) -> None:
        """From here on, outside of measured blocks, count under `cause`."""
        self._charge()
        self._cause = cause

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._cause] += now - self._mark
        self._mark = now

    @property
    def wall(self) -> float:
        """Seconds since the run's first process was started: the sum over all causes."""
        self._charge()
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        """Seconds in steps and in waiting for their input."""
        return self.seconds["step"] + self.seconds["input"]

    @property
    def goodput(self) -> float:
        """Share of the wall time that went to steps."""
        return self.seconds["step"] / self.wall

    def describe(self) -> str:
        """One line: the goodput, and every cause that took a thousandth of the wall time or more."""
        wall = self.wall
        shares = sorted(((seconds / wall, cause) for cause, seconds in self.seconds.items()), reverse=True)
        told = ", ".join(f"{cause} {share:.3f}" for share, cause in shares if share >= 0.001)
        return f"goodput {self.goodput:.3f} of {wall:,.1f} s: {told}"
