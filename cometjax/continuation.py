"""A run that begins with another run's checkpoint, in a workdir of its own: `config.continue_from`.

Weights, the optimizer's state, the step, and with it the place in the data, are that checkpoint's. The number of steps
and the schedule are the new run's: one run that stays at the peak (config.optimizer.stable_steps) grows into several,
each decayed after other tokens (arXiv 2404.06395, 2405.18392), and a finished run is taken further. The other workdir
is only read, whether its run is finished or trains on.

    --config.continue_from=runs/trunk        its newest checkpoint when the new run is first started
    --config.continue_from=runs/trunk:500    that of step 500
    --config.continue_from=runs/trunk:best   of those that are kept, the one with the lowest tuning loss

Which one it was stands in the new workdir from its beginning (continued_from.json), so that a run that is started again
before its own first checkpoint begins at the same step.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from cometjax import agreement, checkpoint_choice
from cometjax import workdir as workdirs
from cometjax.checkpoint_choice import StepParser
from cometjax.checkpoint_files import FOLDER
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.locations import require_local
from data_pipeline.mixture import Mixture

_KEY = "config.continue_from"
# What may differ from the other run, beside what a resumed run may change: the schedule, and what neither the
# optimizer's state nor the order of the data depends on.
_FREE_KEYS = (
    *workdirs.FREE_KEYS,
    "continue_from",
    "init_from",
    "optimizer.clip_norm",
    "optimizer.decay",
    "optimizer.final_fraction",
    "optimizer.learning_rate",
    "optimizer.stable_steps",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "train.steps",
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a run began with; `workdir` as the configuration names it."""

    workdir: str
    step: int

    def __str__(self) -> str:
        return f"{self.workdir}:{self.step}"

    @property
    def folder(self) -> pathlib.Path:
        """The checkpoints of its run."""
        return (pathlib.Path(self.workdir) / FOLDER).resolve()

    def refuse_other_run(
        self, metadata: Mapping[str, Any], config: ml_collections.ConfigDict, corpus: Corpus | Mixture
    ) -> None:
        """Raise UserError unless a run of `config` can go on from the checkpoint, whose metadata these are."""
        _refuse_other_run(str(self.folder / str(self.step)), metadata, config, corpus)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Raise UserError in every process unless all see the checkpoint, before the block and after it.

        Its run may delete it meanwhile, as its keep policy has it, and what is missing can read as zeros.
        """
        agreement.together(self._refuse_absent)
        try:
            yield
        except Exception:
            self._refuse_absent()  # which says more
            raise
        agreement.together(self._refuse_absent)

    def _refuse_absent(self) -> None:
        # It loses its name before any of its files.
        if not (self.folder / str(self.step)).is_dir():
            raise UserError(
                "the checkpoint is not there, or no longer",
                where=f"{_KEY}, {self.folder / str(self.step)}",
                fix="mount it on all hosts; or take a step that its run keeps (config.train.keep_every) and another "
                "--workdir",
            )


def choose(config: ml_collections.ConfigDict, workdir: pathlib.Path, corpus: Corpus | Mixture) -> Origin | None:
    """The checkpoint that a new run of `config` in `workdir` begins with; None where it continues no other.

    Raises:
      UserError: what is named is no run, is `workdir` itself, or has no such checkpoint (`checkpoint_choice.choose`);
        its model, data, order of data or optimizer are others (names the keys, with both values); no step is left.
    """
    if not config.continue_from:
        return None
    source, step = parse(config.continue_from)
    require_local(source, _KEY)
    folder = pathlib.Path(source)
    if folder.resolve() == workdir.resolve():
        raise UserError("is the --workdir itself", where=f"{_KEY}, {source}", fix="choose another --workdir")
    if not (folder / workdirs.CONFIG).exists():
        raise UserError(
            f"is no run's folder, for there is no {workdirs.CONFIG}",
            where=f"{_KEY}, {source}",
            fix=f"give WORKDIR or WORKDIR:STEP; STEP is {StepParser.syntactic_help}",
        )
    about = {**workdirs.read_json(folder / workdirs.CORPUS), "config": workdirs.read_json(folder / workdirs.CONFIG)}
    _refuse_other_run(source, about, config, corpus)
    path = checkpoint_choice.choose(folder, step, verify=config.train.verify_checkpoints)
    origin = Origin(source, int(path.name))
    if origin.step >= config.train.steps:
        raise UserError(
            f"{config.train.steps} cannot be used: {origin.workdir} has trained {origin.step} steps, and they count",
            where="config.train.steps",
            fix=f"use more than {origin.step}, or an earlier step in {_KEY}",
        )
    return origin


def parse(text: str) -> tuple[str, checkpoint_choice.Step]:
    """(workdir, step) of WORKDIR or WORKDIR:STEP. What is no step is part of the path."""
    workdir, colon, step = text.rpartition(":")
    try:
        return (workdir, StepParser().parse(step)) if colon else (text, None)
    except ValueError:
        return text, None


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The fields of the `Origin` that the run in `workdir` began with; None for one that continues no other."""
    path = workdir / workdirs.ORIGIN
    return workdirs.read_json(path) if path.exists() else None


def _refuse_other_run(
    where: str, theirs: Mapping[str, Any], config: ml_collections.ConfigDict, corpus: Corpus | Mixture
) -> None:
    where, otherwise = f"{_KEY}, {where}", "continue another run"
    workdirs.refuse_other_run(where, theirs, config, corpus, free_keys=_FREE_KEYS, otherwise=otherwise)
