"""A study as one HTML file that works offline: tables, inline SVG figures, a small script for hovering, no network."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any

import markupsafe

from data_pipeline.html_templates import environment_beside
from experiments.scaling import report_figures, trials
from experiments.scaling.analysis import Analysis
from experiments.scaling.corpora import Data
from experiments.scaling.fit import describe
from experiments.scaling.plan import Plan
from experiments.scaling.trials import Outcome

TEMPLATE = "report.html.j2"
POINTS = "points.csv"
_MOST_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a report is made of.

    Attributes:
        name, workdir, config: of the study.
        plan: of the grid.
        planned: names of all trials that were ever planned.
        outcomes: of those that are finished.
        analysis: of the grid.
        members: family.json, None past a closed gate.
        data: the corpora.
        floor: true entropy, nats per token; None = not known.
    """

    name: str
    workdir: str
    config: Mapping[str, Any]
    plan: Plan
    planned: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    analysis: Analysis
    members: Mapping[str, Any] | None
    data: Data
    floor: float | None

    def of(self, stage: str) -> list[Outcome]:
        """Finished trials of a stage."""
        return [outcome for outcome in self.outcomes if outcome.trial.stage == stage]


def render(contents: Contents) -> str:
    """The page."""
    environment = environment_beside(__file__)
    environment.filters |= {"significant": significant, "count": _count, "percent": _percent, "loss": _loss}
    environment.filters |= {"interval": _interval, "flops": _flops, "plain": "{:g}".format}
    result = contents.analysis.result
    check = next(iter(contents.of("check")), None)
    return environment.get_template(TEMPLATE).render(
        contents=contents,
        result=result,
        config=contents.config,
        grid=contents.of("grid"),
        huber=result["approach3"]["huber"],
        varpro=result["approach3"]["varpro"],
        intervals=result["approach3"].get("intervals", {}),
        parameters=("A", "B", "E", "alpha", "beta", "n_exponent"),
        check=result.get("check"),
        repeated=result.get("repeated"),
        noise=result["noise_floor"],
        calibration=contents.plan.calibration,
        totals=contents.plan.totals(),
        spent=sum(outcome.seconds for outcome in contents.outcomes),
        skipped=sum(outcome.skipped_steps for outcome in contents.outcomes),
        pilot=contents.plan.notes.get("pilot"),
        figures=_figures(contents, check),
        says=report_figures.says,
        commands=_commands(contents),
        members=[] if contents.members is None else contents.members["members"],
        rate=contents.plan.recipe["learning_rate"],
    )


def text_table(found: Analysis) -> str:
    """The table that a study ends with on a terminal."""
    result = found.result
    lines = ["", describe(result), ""]
    noise, check, repeats = result["noise_floor"], result.get("check"), result.get("repeated")
    if noise is not None:
        lines.append(
            f"  seeds: standard deviation {noise['standard_deviation']:.4f} of {noise['mean']:.4f} nats/token "
            f"({len(noise['losses'])} runs); residuals of the fit {result['residuals']['standard_deviation']:.2%}"
        )
    if repeats is not None:
        lines.append(f"  passes: {repeats['advice'][0]}")
    if check is not None:
        told = check["predicted"]
        text = f"  check at C = {check['budget']:.3g}: "
        text += f"foretold {told['loss']:.4f} ({_interval(told)})"
        if "measured" in check:
            inside = {True: "inside the interval", False: "OUTSIDE the interval", None: "no interval to judge it by"}
            text += f", measured {check['measured']:.4f}: {check['relative_error']:+.2%}, "
            text += inside[check["within_interval"]]
            if check["by_kind"]:
                most = check["by_kind"][0]
                text += f"; of that {most['contribution']:+.4f} nats by {most['kind']} tokens"
        lines.append(text)
    for reason in found.refused:
        lines.append(f"  REFUSED: {reason}")
    if found.refused:
        lines.append("  No family comes of this study.")
    return "\n".join(lines)


def _figures(contents: Contents, check: Outcome | None) -> dict[str, markupsafe.Markup]:
    grid, found = contents.of("grid"), contents.analysis
    members = [] if contents.members is None else contents.members["members"]
    made = {
        "curves": report_figures.loss_curves(grid, "Training loss of every trial of the grid"),
        "isoflops": report_figures.isoflops(grid, found, "Loss against size, with a parabola for each budget"),
        "frontier": report_figures.frontier_loss(grid, found, check, contents.floor, "Loss against compute"),
        "optimum": report_figures.optimum(found, members, "Compute-optimal size and tokens against compute"),
        "residuals": report_figures.residuals(grid, found, "Residuals of the surface"),
    }
    if found.result.get("repeated"):
        made["repeated"] = report_figures.repeated(contents.of("repeats"), found, "Loss against passes over the data")
    if any(outcome.trial.seconds for outcome in contents.outcomes):
        made["seconds"] = report_figures.seconds(contents.outcomes, "Predicted and measured wall time of the trials")
    # Figures are made here, from numbers and escaped text: safe as they are.
    return {name: markupsafe.Markup(svg) for name, svg in made.items()}


def _commands(contents: Contents) -> dict[str, str]:
    """Exact commands: of the study, and of its first trial by hand."""
    study = ["python", "-m", "experiments.scaling_sweep", "--config", "FILE", "--workdir", contents.workdir]
    commands = {"study": shlex.join(study)}
    if contents.outcomes:
        one = next(iter(contents.of("grid")), contents.outcomes[0])
        commands["trial"] = shlex.join(trials.command(f"{contents.workdir}/{trials.BASE}", one.trial, contents.workdir))
    columns = "--n n --d tokens --c budget --loss loss --isoflop_digits 3"
    points = shlex.quote(f"{contents.workdir}/{POINTS}")
    commands["fit"] = f"python -m experiments.scaling.fit --points {points} {columns} --out fit.json"
    return commands


def significant(value: float | None, digits: int = 4) -> str:
    """A number to so many digits, zeros among them, with its thousands apart; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001  (a dash for "none", as in print)
    text = f"{value:.{digits - 1}e}"
    exponent = int(text.partition("e")[2])
    # One way to write them all, so that a column can be read: never an exponent for what has fewer than 13 digits.
    return f"{float(text):,.{max(0, digits - 1 - exponent)}f}" if -5 < exponent < _MOST_DIGITS else text


def _flops(value: float) -> str:
    return f"{value:.2e}"


def _loss(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"  # noqa: RUF001


def _interval(prediction: Mapping[str, Any]) -> str:
    if prediction["low"] is None:
        return "no interval"
    return f"{prediction['low']:.4f} to {prediction['high']:.4f}"


def _count(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:,.0f}" if value < 10**_MOST_DIGITS else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}%"  # noqa: RUF001
