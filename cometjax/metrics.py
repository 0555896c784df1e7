"""Figures of a training run: totals of losses, lines of metrics.jsonl as they are read, what the terminal shows."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from cometjax.checkpoint_files import TuningLoss
from cometjax.train_step import LossSums
from data_pipeline.vocabulary import KINDS

METRICS_FILE = "metrics.jsonl"


class LossTotals:
    """Sums of losses over any number of batches, in float64 on the host.

    `sources`: names of a mixture's corpora, whose evaluation steps tell sums by source; `by_source` has theirs.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.by_source = {name: LossTotals() for name in sources}
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
        for place, own in enumerate(self.by_source.values()):
            own.add(jax.tree.map(lambda leaf_Sx, place=place: leaf_Sx[place], sums.by_source))

    @property
    def tokens(self) -> int:
        """Target tokens with weight."""
        return int(self.tokens_K.sum())

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
        """What a metrics line says beside the loss: bits per event, and loss and tokens of each kind and source."""
        values = {"bits_per_event": self.bits_per_event}
        values |= {f"loss/{kind}": loss for kind, loss in self.loss_by_kind.items()}
        values |= {f"tokens/{kind}": int(self.tokens_K[k]) for k, kind in enumerate(KINDS) if self.tokens_K[k]}
        values |= {f"loss_by_source/{name}": own.loss for name, own in self.by_source.items()}
        return values | {f"tokens_by_source/{name}": own.tokens for name, own in self.by_source.items()}


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, in order; a last line that a kill cut short is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def tuning_losses(lines: Iterable[Mapping[str, Any]]) -> dict[int, TuningLoss]:
    """By step the tuning losses that these lines of metrics.jsonl tell, NaN where one was not finite."""
    return {
        line["step"]: TuningLoss(
            math.nan if line["loss"] is None else float(line["loss"]),
            sum(count for key, count in line.items() if key.startswith("tokens/")),
        )
        for line in lines
        if line["split"] == "tuning"
    }


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
