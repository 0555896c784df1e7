"""Trials on disk: run one, and read what became of it.

A trial is an ordinary training run in WORKDIR/trials/NAME. Its result.json, written last, says that it is finished;
what is not finished goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import fcntl
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cometjax import metrics
from cometjax import workdir as workdirs
from experiments.scaling.calibration import Timing
from experiments.scaling.plan import Plan, PlannedTrial, apply

TRIALS = "trials"
BASE = "base.json"  # the configuration that every trial's overrides change, for commands by hand and clusters
_CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished trial, beside what was planned.

    Attributes:
        trial: as planned.
        loss: on the whole tuning split, nats per token.
        tokens: target tokens trained on, as counted.
        flops: exact, as counted.
        seconds: wall time, of all its starts.
        tokens_per_second: over the time in steps.
        skipped_steps: not finite, or spikes.
        curve: (tokens, training loss) over the run.
        by_kind: of the tuning split, each kind of token's loss and number of targets.
    """

    trial: PlannedTrial
    loss: float
    tokens: int
    flops: float
    seconds: float
    tokens_per_second: float
    skipped_steps: int
    curve: tuple[tuple[float, float], ...]
    by_kind: Mapping[str, tuple[float, int]]

    @property
    def timing(self) -> Timing:
        """For the calibration."""
        return Timing(self.seconds, self.tokens, self.flops)


def folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """The trial's own workdir."""
    return workdir / TRIALS / name


def is_finished(workdir: pathlib.Path, trial: PlannedTrial) -> bool:
    """Whether its result is written."""
    return (folder(workdir, trial.name) / workdirs.RESULT).exists()


def finished(workdir: pathlib.Path, trials: Iterable[PlannedTrial]) -> tuple[Outcome, ...]:
    """The outcomes of those trials that are finished, in their order."""
    return tuple(_read(workdir, trial) for trial in trials if is_finished(workdir, trial))


def run(plan: Plan, trial: PlannedTrial, workdir: pathlib.Path) -> float:
    """Train one trial, or finish it; returns its loss. Raises what `cometjax.train.train` raises.

    Waits while another process (of a study that was killed a moment ago) still has the trial.
    """
    from cometjax import train  # brings JAX's devices up, which a launcher must not

    with _locked(folder(workdir, trial.name).with_suffix(".lock")):
        config = apply(plan.base, trial.overrides)
        return train.train(config, folder(workdir, trial.name), progress=False).tuning_loss


def command(plan_base: str, trial: PlannedTrial, workdir: str) -> list[str]:
    """The command that trains the trial by hand."""
    return [
        "python", "-m", "cometjax.train", f"--config=experiments/configs/from_json.py:{plan_base}",
        f"--workdir={workdir}/{TRIALS}/{trial.name}", *flags(trial.overrides),
    ]  # fmt: skip


def flags(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as flags of `cometjax.train`."""
    return tuple(f"--config.{key}={value}" for key, value in overrides.items())


def _read(workdir: pathlib.Path, trial: PlannedTrial) -> Outcome:
    where = folder(workdir, trial.name)
    result = workdirs.read_json(where / workdirs.RESULT)
    lines = metrics.read(where)
    last = [line for line in lines if line["split"] == "tuning"][-1]
    kinds = [key.removeprefix("loss/") for key in last if key.startswith("loss/")]
    lines = [line for line in lines if line["split"] == "train" and line["loss"] is not None]
    thinned = lines[:: max(1, len(lines) // _CURVE_POINTS)]
    per_step = result["tokens"] / result["step"]
    return Outcome(
        trial=trial,
        loss=result["tuning_loss"],
        tokens=result["tokens"],
        flops=result["flops"],
        # A study that was left over a weekend did not compute meanwhile.
        seconds=result["wall_seconds"] - result.get("seconds", {}).get("down", 0.0),
        tokens_per_second=result["tokens_per_second"],
        skipped_steps=result["skipped_steps"],
        curve=tuple((line["step"] * per_step, line["loss"]) for line in thinned),
        by_kind={kind: (last[f"loss/{kind}"], last[f"tokens/{kind}"]) for kind in kinds},
    )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
