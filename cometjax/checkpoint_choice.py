"""Which checkpoint of a run is used: `--step` of every command that loads a trained model.

    --step=N      that of step N
    --step=best   of those that are kept, the one with the lowest tuning loss
    (not given)   the newest

Losses compare only where they are of as many tokens (`checkpoint_files.KeepPolicy`): with config.train.eval_batches the
last evaluation, of the whole split, stands alone. "best" is the best of the largest group of checkpoints that compare;
`python -m cometjax.loss` compares any two.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags, logging

from cometjax import checkpoint_files, metrics
from cometjax.checkpoint_files import FOLDER
from data_pipeline.errors import UserError

BEST = "best"
# A step's number, BEST, or None for the newest.
Step = int | str | None


class StepParser(flags.ArgumentParser[Any]):
    """Reads a `Step` from the command line."""

    syntactic_help = f"a step's number, or {BEST}"

    def parse(self, argument: Any) -> Step:
        """The step of a flag's text. Raises ValueError, which absl tells with the flag's name."""
        if argument is None or argument == BEST or isinstance(argument, int):
            return argument
        if not (isinstance(argument, str) and argument.isdecimal()):
            raise ValueError(f"give {self.syntactic_help}; without it the newest checkpoint is used")
        return int(argument)


def define_flag() -> None:
    """Define `--step`; its value is a `Step`."""
    what = f"which checkpoint: a step's number, or {BEST} for the lowest tuning loss (default: the newest)"
    flags.DEFINE(StepParser(), "step", None, what)


def choose(workdir: pathlib.Path, step: Step = None, *, verify: bool = True) -> pathlib.Path:
    """The folder of the checkpoint that `step` asks for; a damaged one is skipped, with a warning, unless asked for.

    Without `verify`, none is looked into. Nothing in the workdir is changed.

    Raises:
      UserError: no checkpoint, or none of that step; all are damaged, or that of `step` is; none has a tuning loss.
    """
    folder = (workdir / FOLDER).resolve()
    steps = checkpoint_files.whole_steps(folder)
    if not steps and not checkpoint_files.damaged(folder):
        fix = "train first with python -m cometjax.train, or give the workdir of a run"
        raise UserError("no checkpoint", where=str(workdir), fix=fix)
    if isinstance(step, int) and step not in steps:
        raise UserError(f"no checkpoint of step {step}", where=str(workdir), fix=f"there are {steps}")
    for candidate in (step,) if isinstance(step, int) else _in_order(workdir, steps, step):
        path = folder / str(candidate)
        problem = checkpoint_files.problem(path) if verify else None
        if problem is None:
            return path
        if isinstance(step, int):
            raise UserError(problem, where=str(path), fix="take another step")
        logging.warning("%s: skipped, %s", path, problem)
    raise all_damaged(folder)


def all_damaged(folder: pathlib.Path) -> UserError:
    """The error of a folder without a whole checkpoint, that had some."""
    return UserError(
        "every checkpoint is damaged",
        where=str(folder),
        fix="put whole ones back, or choose another --workdir to start anew",
    )


def _in_order(workdir: pathlib.Path, steps: Sequence[int], step: Step) -> Iterator[int]:
    if step is None:
        yield from reversed(steps)
        return
    if step != BEST:
        raise ValueError(f"step {step!r} is neither a number nor {BEST!r}")
    groups = checkpoint_files.ranked(steps, metrics.tuning_losses(metrics.read(workdir)))
    if steps and not groups:
        raise UserError(
            "no checkpoint that is kept has a tuning loss",
            where=str(workdir),
            fix=f"give --step=N of {list(steps)}; python -m cometjax.loss tells the loss of each",
        )
    # Of as large groups, that whose losses are of more tokens.
    _, compared = max(groups.items(), key=lambda group: (len(group[1]), group[0]), default=(0, []))
    if left_out := sorted(set(steps) - set(compared)):
        logging.warning(
            "%s: the best of steps %s; steps %s have no tuning loss of as many tokens",
            workdir,
            sorted(compared),
            left_out,
        )
    yield from compared
