"""What a plan costs, and whether that was agreed to."""

import dataclasses
import pathlib
import sys

from data_pipeline.errors import UserError
from experiments.scaling import trials
from experiments.scaling.plan import Plan


def cost(plan: Plan) -> str:
    """A plan's cost in a line."""
    totals = plan.totals()
    text = f"{totals['trials']} trials, {totals['tokens']:.3g} tokens, {totals['flops']:.3g} FLOPs exact"
    if totals["seconds"] is None:
        return f"{text}; no time is predicted, for nothing was measured yet"
    error = plan.calibration["mean_error"] if plan.calibration else 0.0
    return (
        f"{text}; predicted {totals['seconds']:,.0f} worker-seconds, {totals['device_hours']:.3g} device-hours "
        f"(mean error of the calibration {error:.0%})"
    )


def ask(plan: Plan, workdir: pathlib.Path, limit: float, *, where: str, yes: bool) -> None:
    """Ask on a terminal before a plan's unfinished trials take more than `limit` device-hours.

    Raises UserError, naming `where`, if the answer is no, or nobody can be asked and `yes` was not given.
    """
    left = tuple(trial for trial in plan.trials if not trials.is_finished(workdir, trial))
    hours = dataclasses.replace(plan, trials=left).totals()["device_hours"]
    if yes or not left or (hours is not None and hours <= limit):
        return
    cost = "an unknown number of device-hours" if hours is None else f"{hours:.3g} device-hours"
    found = f"{left[0].name if len(left) == 1 else f'{len(left)} trials'} would take {cost}"
    if sys.stdin.isatty():
        answer = input(f"{found}; {limit:g} are allowed without asking. Go on? [y/N] ")
        if answer.strip().lower() in ("y", "yes"):
            return
        raise UserError("not started", where=where)
    raise UserError(
        f"{found}, {limit:g} are allowed without asking",
        where=where,
        fix="look at it, then start again with --yes, or raise config.run.limit_device_hours",
    )
