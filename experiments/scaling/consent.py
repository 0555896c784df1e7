"""What a plan costs, and whether that was agreed to."""

import pathlib
import sys

from data_pipeline.errors import UserError
from experiments.scaling import trials
from experiments.scaling.plan import PLAN, Plan


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


def ask(plan: Plan, workdir: pathlib.Path, limit: float, *, yes: bool) -> None:
    """Ask on a terminal before more than `limit` device-hours are spent.

    Raises UserError where the answer is no, or nobody can be asked and `yes` was not given.
    """
    hours = plan.totals()["device_hours"]
    left = [trial for trial in plan.trials if not trials.is_finished(workdir, trial)]
    if yes or not left or (hours is not None and hours <= limit):
        return
    cost = "an unknown number of device-hours" if hours is None else f"{hours:.3g} device-hours"
    if sys.stdin.isatty():
        answer = input(f"The plan takes {cost}; {limit:g} are allowed without asking. Go on? [y/N] ")
        if answer.strip().lower() in ("y", "yes"):
            return
        raise UserError("not started", where=str(workdir / PLAN))
    raise UserError(
        f"takes {cost}, {limit:g} are allowed without asking",
        where=str(workdir / PLAN),
        fix="look at it, then start again with --yes, or raise config.run.limit_device_hours",
    )
