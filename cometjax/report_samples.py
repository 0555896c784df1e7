"""The report's figure of test-time scaling: scores by the number of samples."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.svg import BLUE, GREY, INK, SERIES, STYLE, WIDTH, to_svg

# More lines than there are styles can't be told apart: then all are grey, and their median is drawn.
_MOST_NAMED = len(SERIES)


def by_samples(tasks: Mapping[str, Mapping[str, Any]], title: str) -> str | None:
    """AUROC (left, with the range over sets of samples) and Brier score (right) of each task by samples for each row.

    `tasks`: by name, results with `by_samples` (`cometjax.test_time_scaling`). None where none has two points.
    """
    curves = {name: task["by_samples"] for name, task in tasks.items() if len(task.get("by_samples") or []) > 1}
    if not curves:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        auroc, brier = figure.subplots(1, 2)
        _curves(auroc, curves, "auroc", "AUROC")
        _curves(brier, curves, "brier", "Brier score")
        if len(curves) <= _MOST_NAMED:
            figure.legend(*brier.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(curves)))
        return to_svg(figure, title)


def _curves(axes: Axes, curves: Mapping[str, list[dict[str, Any]]], score: str, label: str) -> None:
    by_size: dict[int, list[float]] = {}
    for index, (name, table) in enumerate(curves.items()):
        points = [row for row in table if row[score] is not None]
        if not points:
            continue
        sizes = [row["samples"] for row in points]
        colour, style, marker = SERIES[index] if len(curves) <= _MOST_NAMED else (GREY, "-", "")
        axes.plot(
            sizes,
            [row[score] for row in points],
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4,
            linewidth=1.4 if marker else 0.5,
            label=name if marker else None,
        )
        if score == "auroc" and marker:
            axes.fill_between(
                sizes,
                [row["auroc_low"] for row in points],
                [row["auroc_high"] for row in points],
                color=colour,
                alpha=0.1,
                linewidth=0,
            )
        for row in points:
            by_size.setdefault(row["samples"], []).append(row[score])
    if len(curves) > _MOST_NAMED and by_size:
        sizes = sorted(by_size)
        medians = [float(np.median(by_size[size])) for size in sizes]
        axes.plot(sizes, medians, color=BLUE, linewidth=2, marker="o", markersize=4, label="median over tasks")
        axes.legend()
    ticks = sorted({row["samples"] for table in curves.values() for row in table})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(title=label, xlabel="samples for each row", ylabel=label)
    if score == "auroc":
        axes.axhline(0.5, color=INK, linestyle=":", linewidth=0.8)
