"""What a cluster is asked to run: one training command, or one for each trial of a sweep."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from data_pipeline.errors import UserError

# What the name becomes: a Slurm job, folders, part of Kubernetes objects (whose whole names jobset.py checks).
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its name (also its folder's, below the job's workdir) and its overrides, as flags."""

    name: str
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run to launch, or several.

    Attributes:
        name: of the job; lower-case letters, digits and hyphens.
        config: path of the configuration file, with its arguments, as the cluster sees it.
        overrides: flags such as "--config.train.steps=200", for every trial.
        workdir: folder of the run on a file system that all nodes share; the trials' folders lie in it.
        trials: of a sweep; empty for a single run.
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    workdir: str
    trials: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        for where, name in [("--name", self.name), *(("trial", trial.name) for trial in self.trials)]:
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"{name!r} cannot be a name",
                    where=where,
                    fix="use at most 40 lower-case letters, digits and hyphens, no hyphen first or last",
                )
        if not self.workdir.startswith("/"):
            raise UserError(
                f"{self.workdir!r} is not absolute", where="--workdir", fix="give the path as every node sees it"
            )
        names = [trial.name for trial in self.trials]
        if len(set(names)) < len(names):
            raise UserError("two trials have the same name", where="--sweep")

    def arguments(self, trial: Trial | None = None) -> list[str]:
        """The arguments of `python` that train the job, or one of its trials."""
        workdir = self.workdir if trial is None else f"{self.workdir}/{trial.name}"
        own = () if trial is None else trial.overrides
        return ["-m", "cometjax.train", f"--config={self.config}", f"--workdir={workdir}", *self.overrides, *own]


def sweep(axes: Sequence[str]) -> tuple[Trial, ...]:
    """Every combination of the axes' values: "optimizer.learning_rate=1e-3,3e-3" and "seed=0,1" make four trials.

    Raises UserError for an axis that is not KEY=VALUE,VALUE.
    """
    if not axes:
        return ()
    choices = []
    for axis in axes:
        key, _, values = axis.partition("=")
        if not key or not values or not all(values.split(",")):
            raise UserError(f"{axis!r} is not KEY=VALUE,VALUE", where="--sweep", fix="as in --sweep seed=0,1,2")
        choices.append([f"--config.{key}={value}" for value in values.split(",")])
    combinations = list(itertools.product(*choices))
    digits = len(str(len(combinations) - 1))
    return tuple(Trial(f"trial-{i:0{digits}d}", overrides) for i, overrides in enumerate(combinations))
