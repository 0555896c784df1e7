"""The comparison of evaluations as one HTML file that works offline: tables that sort, small panels, no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
import numpy as np

from cometjax import comparison_figures, comparisons, curve_panels, model_comparison, report, rivals
from cometjax.evaluations import Evaluation
from cometjax.labels import VALUE_COLUMN
from data_pipeline.html_templates import environment_beside
from data_pipeline.plurals import counted

TEMPLATE = "comparison.html.j2"
# The baseline whose ROC curve is drawn beside the models': the first of these that was fitted.
_DRAWN = ("logistic_regression", "xgboost", "probe", "fine_tuned")
_BAR = 150


def render(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The page of what `model_comparison.compare` says of these evaluations."""
    environment = environment_beside(__file__)
    environment.filters |= {
        "number": report.number,
        "count": report.count,
        "counted": counted,
        "percent": report.percent,
        "days": report.days,
        "score": lambda value: report.number(value, 1 if abs(value or 0) >= 10 else 3),
        "bound": lambda value: report.number(value, 0 if abs(value or 0) >= 10 else 2),
        "bar": _verdict_bar,
        "size": comparison_figures.short_count,
    }
    binary = model_comparison.by_task(comparison, lambda line: line["kind"] == "binary")
    amounts = model_comparison.by_task(comparison, lambda line: line["kind"] != "binary")
    min_events, models = comparison["min_events"], list(comparison["models"])
    figures = {
        "size": comparison_figures.by_size(evaluations, min_events, "Scores by the size of the model"),
        "samples": comparison_figures.by_samples(evaluations, min_events, "Scores by the number of samples"),
    }
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        models=models,
        reference=models[-1],
        binary=binary,
        amounts=amounts,
        baselines=_titles(binary),
        has_best={
            kind: any(line["best"] and line["best"]["value"] is not None for line in lines.values())
            for kind, lines in _kinds(binary, amounts)
        },
        verdicts=_verdicts(comparison),
        against=report.COMPARED,
        keys=_keys(evaluations),
        families=_families(comparison),
        unknown_best=_unknown_best(comparison),
        few=[name for name, line in comparison["tasks"].items() if line["positives"] < min_events],
        panels={name: _panels(evaluations, name) for name in comparison["tasks"]},
        drawn=_drawn_title(evaluations),
        # Figures are made here, from numbers and escaped text: safe as they are.
        figures={name: None if svg is None else markupsafe.Markup(svg) for name, svg in figures.items()},
        markers=[markupsafe.Markup(_key(series)) for series in range(len(models))],
    )


def text_table(comparison: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = []
    for name, model in comparison["models"].items():
        share = model["median_auroc_share"]
        lines.append(f"{name}: {model['parameters']:,} parameters, {model['samples']} samples a row")
        if model["counted_tasks"]:
            line = f"  median AUROC {model['median_auroc']:.3f} over {counted(model['counted_tasks'], 'task')} "
            line += f"with at least {comparison['min_events']} events"
            if with_slope := model["tasks_with_slope"]:
                line += f"; calibration slope within 0.8 to 1.2 on {model['slopes_within']} of {with_slope}"
            lines.append(line)
        if share is not None:
            with_share = counted(model["tasks_with_share"], "task")
            lines.append(f"  median share of the best possible AUROC {share:.1%}, over {with_share}")
        for rival, summary in comparison["against_baselines"][name].items():
            lines.append(f"  against {report.COMPARED[rival]}: {comparisons.sentence(summary)}")
    lines += [f"{pair}: {comparisons.sentence(summary)}" for pair, summary in comparison["between_models"].items()]
    lines += [f"cannot run: {name}: {reason}" for name, reason in comparison["cannot_run"].items()]
    return "\n".join(lines)


def _kinds(binary: Mapping[str, Any], amounts: Mapping[str, Any]) -> tuple:
    return ("binary", binary), ("amounts", amounts)


def _titles(lines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Columns of baselines, in the order of the first task that has each."""
    return list(dict.fromkeys(title for line in lines.values() for title in line["baselines"]))


def _keys(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """By column title the baseline that the largest model was compared with; another model's own has none."""
    own = {rivals.TITLES[name]: name for name in rivals.TITLES}
    reference = evaluations[-1].name
    return (
        own | {f"{rivals.TITLES[name]} ({reference})": name for name in rivals.OF_BACKBONE} | {"constant": "prevalence"}
    )


def _families(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, line in comparison["tasks"].items():
        found.setdefault(line["family"], []).append(name)
    return found


def _unknown_best(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    """By reason the tasks whose best possible score is not known; {} where none is, as on data of no world."""
    found: dict[str, list[str]] = {}
    for name, line in comparison["tasks"].items():
        if line["best"] and line["best"]["value"] is None:
            found.setdefault(line["best"]["reason"], []).append(name)
    return found


def _verdicts(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By baseline's key, by task, how the largest model stands to it: better, worse, not_told_apart, few_events, ..."""
    reference = list(comparison["models"])[-1]
    return {
        rival: {
            name: verdict for verdict in (*comparisons.VERDICTS, "few_events", "untested") for name in summary[verdict]
        }
        for rival, summary in comparison["against_baselines"][reference].items()
    }


def _verdict_bar(summary: Mapping[str, Any]) -> markupsafe.Markup:
    """Better, not told apart, worse as lengths of one bar; each has a fill of its own in grey too."""
    counts = [len(summary[name]) for name in comparisons.VERDICTS]
    if not sum(counts):
        return markupsafe.Markup("")
    ends = np.concatenate(([0], np.cumsum(counts))) * _BAR / sum(counts)
    parts = "".join(
        f'<rect class="{name}" x="{left:.1f}" width="{right - left:.1f}" height="14"/>'
        for name, left, right in zip(comparisons.VERDICTS, ends[:-1], ends[1:], strict=True)
    )
    said = comparisons.sentence(summary)
    return markupsafe.Markup(
        f'<svg class="bar" viewBox="0 0 {_BAR} 14" width="{_BAR}" height="14" role="img" aria-label="{said}">'
        f"{parts}</svg>"
    )


def _drawn(evaluation: Evaluation) -> str | None:
    tasks = evaluation.results["tasks"].values()
    return next((name for name in _DRAWN if any(name in task["baselines"] for task in tasks)), None)


def _drawn_title(evaluations: Sequence[Evaluation]) -> str | None:
    name = _drawn(evaluations[-1])
    return None if name is None else report.COMPARED[name]


def _panels(evaluations: Sequence[Evaluation], name: str) -> markupsafe.Markup:
    tasks = [one.asked[name] for one in evaluations]
    if tasks[0]["kind"] != "binary":
        return markupsafe.Markup(_amount_panel(evaluations, name))
    curves: dict[str, Any] = {}
    if tasks[0].get("best", {}).get("roc"):
        curves["best"] = tasks[0]["best"]["roc"]
    rival = tasks[-1]["baselines"].get(_drawn(evaluations[-1]) or "", {})
    if rival.get("roc"):
        curves["rival"] = rival["roc"]
    if tasks[0]["auroc"] is not None:
        curves |= {f"s{series}": task["roc"] for series, task in enumerate(tasks)}
    tables = {
        # Intervals of the largest model alone: those of several would hide each other.
        series: [row if series == len(tasks) - 1 else _without_interval(row) for row in task["calibration"]]
        for series, task in enumerate(tasks)
    }
    drawn = curve_panels.roc(curves, f"ROC of {name}") if len(curves) else ""
    return markupsafe.Markup(drawn + curve_panels.calibration(tables, f"calibration of {name}"))


def _without_interval(row: Mapping[str, float]) -> dict[str, float]:
    return {key: row[key] for key in ("predicted", "observed")}


def _amount_panel(evaluations: Sequence[Evaluation], name: str) -> str:
    kind = evaluations[0].asked[name]["kind"]
    tables = {}
    for series, one in enumerate(evaluations):
        rows = one.predictions(name)
        recorded_N = rows.get_column(VALUE_COLUMN[kind]).to_numpy().astype(np.float64)
        tables[series] = curve_panels.fifths(rows.get_column("mean").to_numpy(), recorded_N)
    return curve_panels.calibration(tables, f"recorded against predicted, {name}", " d" if kind == "duration" else " ")


def _key(series: int) -> str:
    """A legend's sample of a model's line and marker."""
    mark = f'<path class="s{series} mark" d="{curve_panels.marker(series, 17, 5)}"/>'
    return (
        '<svg class="key" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">'
        f'<path class="s{series}" d="M0 5H34"/>{mark}</svg>'
    )
