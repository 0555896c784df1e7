"""The plan: every trial of a study, costed, as data, before anything runs.

`plan.json` is written first; the launchers run what stands in it, and the report prints it. A trial's learning rate,
length and shape are decided here and nowhere else.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cometjax import workdir as workdirs
from data_pipeline.errors import UserError
from experiments.scaling.calibration import Calibration
from experiments.scaling.corpora import Data
from experiments.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN
from experiments.scaling.recipe import Recipe, Shape

PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """One training run to be.

    Attributes:
        name: also its folder's, below WORKDIR/trials.
        stage: what it is for: pilot, grid, seeds, repeats or check.
        budget: compute that it stands for, 6 N D; the trial's own differs by less than a step.
        shape: of the decoder.
        n, n_without_embeddings: parameters.
        steps: of training.
        tokens: D, target tokens in all these steps.
        unique_tokens: target tokens of the training split.
        epochs: tokens over unique_tokens.
        flops: exact, attention and head included (`cometjax.flops`).
        flops_6nd: 6 N D.
        seconds: predicted wall time on one worker; None before anything was measured.
        device_hours: that times the worker's devices.
        overrides: keys of the base configuration, dotted, with their values.
    """

    name: str
    stage: str
    budget: float
    shape: Shape
    n: int
    n_without_embeddings: int
    steps: int
    tokens: float
    unique_tokens: int
    epochs: float
    flops: float
    flops_6nd: float
    seconds: float | None
    device_hours: float | None
    overrides: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Trials and what they share; `base` is the training configuration that their overrides change.

    Raises UserError for two trials of one name, which would be one folder, and so one run.
    """

    trials: tuple[PlannedTrial, ...]
    base: Mapping[str, Any]
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    notes: Mapping[str, Any]

    def __post_init__(self) -> None:
        named: set[str] = set()
        for trial in self.trials:
            if trial.name in named:
                raise UserError(
                    f"two trials would be named {trial.name}",
                    where=f"config.{trial.stage}",
                    fix="give values that differ in three digits",
                )
            named.add(trial.name)

    def of(self, stage: str) -> tuple[PlannedTrial, ...]:
        """The trials of one stage."""
        return tuple(trial for trial in self.trials if trial.stage == stage)

    def totals(self) -> dict[str, Any]:
        """Sums over all trials; seconds are of one worker at a time."""
        seconds = [trial.seconds for trial in self.trials if trial.seconds is not None]
        known = len(seconds) == len(self.trials)
        hours = [trial.device_hours for trial in self.trials if trial.device_hours is not None]
        return {
            "trials": len(self.trials),
            "tokens": sum(trial.tokens for trial in self.trials),
            "flops": sum(trial.flops for trial in self.trials),
            "flops_6nd": sum(trial.flops_6nd for trial in self.trials),
            "seconds": sum(seconds) if known else None,
            "device_hours": sum(hours) if known else None,
        }

    def to_json(self) -> dict[str, Any]:
        """What plan.json holds."""
        return dataclasses.asdict(self) | {"totals": self.totals()}

    def save(self, path: pathlib.Path) -> None:
        """Write under a temporary name, renamed when whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        workdirs.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: pathlib.Path) -> "Plan":
        """Inverse of `save`; raises UserError for a file that is none."""
        try:
            content = json.loads(path.read_text())
            trials = tuple(
                PlannedTrial(**(trial | {"shape": Shape(**trial["shape"])})) for trial in content.pop("trials")
            )
            content.pop("totals")
            return cls(trials, **content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError("not a readable plan", where=str(path), fix="remove it and start again") from error


class Planner:
    """Makes trials of one recipe on one study's data."""

    def __init__(
        self, recipe: Recipe, data: Data, calibration: Calibration | None = None, devices_per_worker: float = 1.0
    ) -> None:
        self.recipe, self.data, self.calibration, self._devices = recipe, data, calibration, devices_per_worker

    def parameters(self, shape: Shape) -> int:
        """N of a shape with the study's vocabulary."""
        return shape.parameters(self.data.vocab_size, tied=self.data.tied_embeddings)

    def isoflop(self, stage: str, budget: float, shape: Shape, *, suffix: str = "", **changes: Any) -> PlannedTrial:
        """A trial that spends `budget` FLOPs, counted as 6 N D, on `shape`."""
        tokens = budget / (FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters(shape))
        name = f"{stage}-{number_name(budget)}-w{shape.width}{suffix}"
        return self.trial(name, stage, shape, tokens, budget=budget, **changes)

    def trial(
        self,
        name: str,
        stage: str,
        shape: Shape,
        tokens: float,
        *,
        budget: float,
        seed: int = 0,
        corpus: str | None = None,
        learning_rate: float | None = None,
    ) -> PlannedTrial:
        """A trial of about `tokens` tokens (whole steps).

        Raises UserError where that is less than ten steps.
        """
        source = self.data.full if corpus is None else self.data.subsets[corpus]
        rows = self.recipe.rows(tokens)
        tokens_per_step = rows * source.targets_per_row
        steps = round(tokens / tokens_per_step)
        if steps < 10:
            raise UserError(
                f"{name} would have {steps} steps of {tokens_per_step:,.0f} tokens",
                where="config.grid.budgets",
                fix="raise the budgets, or lower config.recipe.batch_rows or row_length",
            )
        n = self.parameters(shape)
        tokens = steps * tokens_per_step
        squares = steps * rows * source.segment_squares_per_row
        flops = shape.flops(
            self.data.vocab_size, tokens=steps * rows * source.positions_per_row, sum_segment_squared=squares
        )
        overrides = self.recipe.overrides(shape, n=n, steps=steps, rows=rows, tokens=tokens, seed=seed)
        if learning_rate is not None:
            overrides["optimizer.learning_rate"] = learning_rate
        seconds = None if self.calibration is None else self.calibration.seconds(tokens, flops)
        return PlannedTrial(
            name=name,
            stage=stage,
            budget=budget,
            shape=shape,
            n=n,
            n_without_embeddings=shape.parameters_without_embeddings(),
            steps=steps,
            tokens=tokens,
            unique_tokens=source.unique_tokens,
            epochs=tokens / source.unique_tokens,
            flops=flops,
            flops_6nd=FLOPS_PER_PARAMETER_AND_TOKEN * n * tokens,
            seconds=seconds,
            device_hours=None if seconds is None else seconds * self._devices / 3600,
            overrides=overrides | {"corpus": source.path},
        )

    def sizes(self, center: float, count: int, spread: float) -> tuple[Shape, ...]:
        """`count` distinct shapes from center / spread to center * spread parameters, evenly in log N.

        Raises UserError where the ladder of shapes is too coarse or too short for that.
        """
        # Nearest in log N, each once: from the middle outwards two targets must not take the same shape.
        ladder = self.recipe.ladder()
        wanted = [center * spread ** (2 * i / (count - 1) - 1) if count > 1 else center for i in range(count)]
        chosen: list[Shape] = []
        for target in wanted:
            left = [shape for shape in ladder if not chosen or shape.width > chosen[-1].width]
            if not left:
                break
            chosen.append(min(left, key=lambda shape: abs(math.log(self.parameters(shape) / target))))
        if len(chosen) < count:
            raise UserError(
                f"{count} sizes around {center:,.0f} parameters do not fit between widths "
                f"{ladder[0].width} and {ladder[-1].width}",
                where="config.recipe",
                fix="widen min_width and max_width, lower width_multiple, or lower config.grid.sizes",
            )
        return tuple(chosen)


def number_name(value: float) -> str:
    """A number as part of a trial's name: 1.6e+12 is `1p6e12` (Slurm, Kubernetes and folders all take that)."""
    return f"{value:.3g}".replace("e+", "e").replace(".", "p")


def apply(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The training configuration of a trial: the base with its overrides."""
    config = ml_collections.ConfigDict(json.loads(json.dumps(base)))
    for key, value in overrides.items():
        part, _, last = key.rpartition(".")
        inside = config
        for name in part.split("."):
            inside = inside[name] if name else inside
        inside[last] = float(value) if isinstance(inside[last], float) else value
    return config


def describe(trials: Sequence[PlannedTrial]) -> str:
    """A plan as a table for a terminal."""
    lines = [
        f"{'trial':<24}{'N':>10}{'D':>10}{'epochs':>8}{'6ND':>10}{'exact':>10}{'LR':>10}{'rows':>6}{'steps':>7}{'s':>7}"
    ]
    for trial in trials:
        lines.append(
            f"{trial.name:<24}{trial.n:>10,}{trial.tokens:>10.3g}{trial.epochs:>8.2f}{trial.flops_6nd:>10.3g}"
            f"{trial.flops:>10.3g}{trial.overrides['optimizer.learning_rate']:>10.3g}"
            f"{trial.overrides['train.batch_rows']:>6}{trial.steps:>7}"
            + ("      -" if trial.seconds is None else f"{trial.seconds:>7.0f}")
        )
    return "\n".join(lines)
