"""The comparison as one HTML file that works offline: tables and inline SVG figures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import markupsafe
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.html_templates import environment_beside
from data_pipeline.svg import BLUE, GREY, SERIES, STYLE, WIDTH, to_svg
from experiments.plausibility import privacy, statistics

TEMPLATE = "report.html.j2"
_WIDEST_GAPS = 12
Pair = tuple[np.ndarray, np.ndarray]
_NAMES = ("generated", "held out")
_RATES = {
    "events_mean": "events in a window, mean",
    "encounters_mean": "encounters in a window, mean",
    "wrong_sex_per_1000": "events of a code that training shows for the other sex only, per 1,000 of such codes",
    "wrong_age_per_1000": "events at an age outside of all that training shows for the code, per 1,000",
}
_QUANTILES = {"gaps_days": "between events", "visits_days": "between encounters' starts", "stays_days": "of encounters"}


@dataclasses.dataclass(frozen=True)
class Series:
    """What is drawn, each of (generated, held-out): windows per 1,000 by code, ln odds ratios by pair, days between
    events, encounters by window, distances to training, and lengths of verbatim copies."""

    prevalences: Pair
    odds: Pair
    gaps: Pair
    encounters: Pair
    distance: Pair
    copy: Pair


def render(results: Mapping[str, Any], series: Series) -> str:
    """The page."""
    environment = environment_beside(__file__)
    environment.filters |= {
        "number": _number,
        "count": lambda value: f"{value:,}",
        "percent": _percent,
        "extent": _extent,
    }
    return environment.get_template(TEMPLATE).render(
        results=results,
        run=results["run"],
        titles=statistics.TITLES,
        rates=_RATES,
        quantiles=_QUANTILES,
        window_tokens=privacy.WINDOW_TOKENS,
        run_tokens=privacy.RUN,
        differing=sorted(results["codes"], key=_log_ratio, reverse=True)[:_WIDEST_GAPS],
        figures={
            name: markupsafe.Markup(svg)  # made here, from numbers
            for name, svg in {
                "codes": _codes(series),
                "times": _times(series),
                "privacy": _privacy(series),
            }.items()
        },
    )


def _log_ratio(code: Mapping[str, Any]) -> float:
    return abs(np.log1p(code["generated"]) - np.log1p(code["held_out"]))


def _codes(series: Series) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2))
        has_pairs = len(series.odds[0]) > 0
        single, *others = figure.subplots(1, 2 if has_pairs else 1, squeeze=False)[0]
        ours, theirs = (np.maximum(values, 0.5) for values in series.prevalences)
        single.plot(theirs, ours, linestyle="none", marker="o", markersize=3, color=BLUE, alpha=0.6)
        single.set(xscale="log", yscale="log", title="Prevalence of codes, windows per 1,000")
        for paired in others:
            paired.plot(*series.odds[::-1], linestyle="none", marker="o", markersize=2.5, color=BLUE, alpha=0.4)
            paired.set(title="Pairs of codes, ln odds ratio")
        for axes in (single, *others):
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color=GREY, linestyle=":", linewidth=1)
            axes.set(xlabel="held out", ylabel="generated")
            axes.set_box_aspect(0.9)
        drawn = "Prevalence of codes, and odds ratios of pairs" if has_pairs else "Prevalence of codes"
        return to_svg(figure, f"{drawn}, generated against held-out")


def _times(series: Series) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        gaps, encounters = figure.subplots(1, 2)
        ours, theirs = (np.maximum(days * 24, 1 / 60) for days in series.gaps)
        _cumulative(gaps, (ours, theirs))
        gaps.set(xscale="log", title="Time between events", xlabel="hours", ylabel="share at most")
        _cumulative(encounters, series.encounters)
        encounters.set(title="Encounters in a window", xlabel="encounters", ylabel="share at most")
        return to_svg(figure, "Time between events and number of encounters, generated and held-out")


def _privacy(series: Series) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        distance, copy = figure.subplots(1, 2)
        _cumulative(distance, series.distance)
        distance.set(title="Distance to the nearest training timeline", xlabel="distance", ylabel="share at most")
        _cumulative(copy, series.copy)
        copy.set(title="Longest verbatim copy from training", xlabel="tokens", ylabel="share at most")
        return to_svg(figure, "Distances to training timelines and lengths of verbatim copies")


def _cumulative(axes: Axes, pair: Pair) -> None:
    for values, name, (colour, style, _) in zip(pair, _NAMES, SERIES, strict=False):
        ordered = np.sort(values[np.isfinite(values)])
        if len(ordered):
            axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), color=colour, linestyle=style, label=name)
    axes.set_ylim(0, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001  (a dash for "none", as in print)


def _extent(entry: Mapping[str, Any], digits: int = 3, *, percent: bool = False) -> str:
    """`low to high` of an entry; a dash where either is not known."""
    if entry["low"] is None or entry["high"] is None:
        return "–"  # noqa: RUF001
    low, high = (_percent(value) if percent else _number(value, digits) for value in (entry["low"], entry["high"]))
    return f"{low} to {high}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"  # noqa: RUF001
