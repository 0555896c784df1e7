"""Figures over many tasks and several models: scores by the models' size, and by the number of samples."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cometjax import model_comparison
from cometjax.evaluations import Evaluation
from data_pipeline.svg import BLUE, GREY, INK, PALE, SERIES, STYLE, WIDTH, to_svg


def by_size(evaluations: Sequence[Evaluation], min_events: int, title: str) -> str | None:
    """Each counted task's AUROC (left) and its share of the best possible, else its Brier score (right), by parameters.

    None for models of one size, or where no task counts.
    """
    sizes = [one.parameters for one in evaluations]
    tasks = [model_comparison.counted(one, min_events) for one in evaluations]
    common = [name for name in tasks[0] if all(name in own for own in tasks)]
    if len(set(sizes)) < 2 or not common:
        return None
    aurocs = {name: [own[name]["auroc"] for own in tasks] for name in common}
    shares = [model_comparison.shares(one, min_events) for one in evaluations]
    shared = {name: [own[name] for own in shares] for name in common if all(name in own for own in shares)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        left, right = figure.subplots(1, 2)
        _lines(left, sizes, aurocs, "AUROC")
        left.axhline(0.5, color=INK, linestyle=":", linewidth=0.8)
        if shared:
            _lines(right, sizes, shared, "share of the best possible: (AUROC - 0.5) / (best - 0.5)")
            right.axhline(1.0, color=INK, linestyle=":", linewidth=0.8)
        else:
            _lines(right, sizes, {name: [own[name]["brier"] for own in tasks] for name in common}, "Brier score")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{one.name}\n{short_count(one.parameters)}" for one in evaluations])
            axes.minorticks_off()
            axes.set_xlabel("model, parameters")
        return to_svg(figure, title)


def _lines(axes: Axes, sizes: Sequence[int], values: Mapping[str, Sequence[float]], label: str) -> None:
    table = np.array(list(values.values()))
    for row in table:
        axes.plot(sizes, row, color=PALE, linewidth=0.8)
    axes.plot(
        sizes, np.median(table, axis=0), color=BLUE, linewidth=2, marker="o", label=f"median of {len(table)} tasks"
    )
    for quantile in (0.25, 0.75):
        axes.plot(
            sizes,
            np.quantile(table, quantile, axis=0),
            color=GREY,
            linestyle="--",
            linewidth=1.2,
            label="quartiles" if quantile == 0.25 else None,
        )
    axes.set(title=label)
    axes.legend()


def by_samples(evaluations: Sequence[Evaluation], min_events: int, title: str) -> str | None:
    """Medians over the counted tasks of AUROC (left) and Brier score (right) by samples, a line a model; or None."""
    curves = {one.name: _medians(one, min_events) for one in evaluations}
    curves = {name: table for name, table in curves.items() if len(table) > 1}
    if not curves:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        for axes, column, label in zip(figure.subplots(1, 2), (1, 2), ("AUROC", "Brier score"), strict=True):
            for (name, table), (colour, style, marker) in zip(curves.items(), _series(len(curves)), strict=True):
                sizes, values = zip(*[(row[0], row[column]) for row in table], strict=True)
                axes.plot(sizes, values, color=colour, linestyle=style, marker=marker, markersize=4, label=name)
            ticks = sorted({row[0] for table in curves.values() for row in table})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set(title=f"{label}, median over tasks", xlabel="samples for each row")
            axes.legend()
        return to_svg(figure, title)


def _medians(evaluation: Evaluation, min_events: int) -> list[tuple[int, float, float]]:
    tasks = model_comparison.counted(evaluation, min_events)
    tables = [task["by_samples"] for task in tasks.values() if task.get("by_samples")]
    return [
        (rows[0]["samples"], float(np.median([r["auroc"] for r in rows])), float(np.median([r["brier"] for r in rows])))
        for rows in zip(*tables, strict=True)
    ]


def _series(count: int) -> list[tuple]:
    return [SERIES[index % len(SERIES)] for index in range(count)]


def short_count(parameters: int) -> str:
    """`1.05M` of a count of parameters."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
