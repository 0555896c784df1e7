"""Figures of a training run: totals, where time goes, JSON lines, TensorBoard, what the terminal shows."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorboardX
import tqdm

from cometjax.train_step import LossSums
from data_pipeline.vocabulary import KINDS

METRICS_FILE = "metrics.jsonl"


class LossTotals:
    """Sums of losses over any number of batches, in float64 on the host."""

    def __init__(self) -> None:
        self.nats_K = np.zeros(len(KINDS))
        self.tokens_K = np.zeros(len(KINDS), np.int64)
        self.events = 0
        self.weight = 0.0

    def add(self, sums: LossSums) -> None:
        """Add one batch's sums, already fetched from the device."""
        self.nats_K += np.asarray(sums.nats_K, np.float64)
        self.tokens_K += np.asarray(sums.tokens_K, np.int64)
        self.events += int(sums.events)
        self.weight += float(sums.weight)

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return float(self.nats_K.sum() / self.weight) if self.weight else math.nan

    @property
    def loss_by_kind(self) -> dict[str, float]:
        """Nats per target token of each kind that occurred."""
        return {kind: float(self.nats_K[k] / self.tokens_K[k]) for k, kind in enumerate(KINDS) if self.tokens_K[k]}

    @property
    def bits_per_event(self) -> float:
        """All bits, those of intervals and values included, over the events that they tell."""
        return float(self.nats_K.sum() / math.log(2) / self.events) if self.events else math.nan

    def values(self) -> dict[str, float]:
        """What a metrics line says beside the loss: bits per event, and loss and tokens of each kind."""
        values = {"bits_per_event": self.bits_per_event}
        values |= {f"loss/{kind}": loss for kind, loss in self.loss_by_kind.items()}
        return values | {f"tokens/{kind}": int(self.tokens_K[k]) for k, kind in enumerate(KINDS) if self.tokens_K[k]}


class Clock:
    """Seconds by cause (setup, compile, input, step, checkpoint, evaluation), carried over restarts.

    `work` holds what the steps did: tokens (real target tokens) and flops. Time between the last checkpoint and a kill
    is lost with the steps it was spent on.
    """

    def __init__(self, carried: Mapping[str, Any] | None = None) -> None:
        carried = carried or {"seconds": {}, "tokens": 0, "flops": 0.0, "wall": 0.0}
        self.seconds: dict[str, float] = dict(carried["seconds"])
        self.tokens: int = carried["tokens"]
        self.flops: float = carried["flops"]
        self._wall_before: float = carried["wall"]
        self._start = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds, "tokens": self.tokens, "flops": self.flops, "wall": self.wall}

    @contextlib.contextmanager
    def measure(self, cause: str) -> Iterator[None]:
        """Count the time of the block under `cause`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(cause, time.perf_counter() - start)

    def add(self, cause: str, seconds: float) -> None:
        """Count seconds under `cause`."""
        self.seconds[cause] = self.seconds.get(cause, 0.0) + seconds

    @property
    def wall(self) -> float:
        """Seconds of all runs of this workdir, kept ones only."""
        return self._wall_before + time.perf_counter() - self._start

    @property
    def training(self) -> float:
        """Seconds in steps and in waiting for their input."""
        return self.seconds.get("step", 0.0) + self.seconds.get("input", 0.0)

    @property
    def goodput(self) -> float:
        """Share of the wall time that went to steps."""
        return self.seconds.get("step", 0.0) / self.wall


class MetricsWriter:
    """Appends JSON lines and TensorBoard scalars; does nothing on other processes than the first.

    Lines beyond `resumed_step` come from steps that were lost with a kill: they are cut, so that the file reads as one
    uninterrupted run.
    """

    def __init__(self, workdir: pathlib.Path, *, resumed_step: int, enabled: bool) -> None:
        self._enabled = enabled
        if not enabled:
            return
        path = workdir / METRICS_FILE
        cut(path, resumed_step)
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """Append one line; what is not finite becomes null, for JSON has no NaN."""
        if not self._enabled:
            return
        line = {key: value if value is None or math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split} | line) + "\n")
        self._file.flush()
        for key, value in line.items():
            if value is not None:
                self._board.add_scalar(f"{split}/{key}", value, step)

    def close(self) -> None:
        """Flush and close both files."""
        if self._enabled:
            self._file.close()
            self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, in order; a last line that a kill cut short is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def cut(path: pathlib.Path, step: int) -> None:
    """Drop the lines beyond `step`, and a last line that a kill cut short."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        temporary.rename(path)


class Progress:
    """A bar on a terminal, one line per report elsewhere, nothing when not `enabled`."""

    def __init__(self, *, start: int, steps: int, enabled: bool) -> None:
        self._bar = tqdm.tqdm(total=steps, initial=start, unit="step", disable=None if enabled else True)
        self._enabled = enabled
        self._lines = enabled and self._bar.disable
        self._steps = steps

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        """Show a train line's loss and speed."""
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", tokens_per_s=f"{values['tokens_per_second']:,.0f}")
        if self._lines:
            print(
                f"step {step}/{self._steps}  loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )

    def say(self, message: str) -> None:
        """A line of its own, beside the bar or between the lines."""
        if self._enabled:
            self._bar.write(message)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
