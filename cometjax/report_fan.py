"""Figures of one subject: the history, a fan of sampled futures, and the share of them with each outcome by time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cometjax.futures import CENSORED
from cometjax.report_story import Story, Strip
from data_pipeline.svg import BLUE, GREY, INK, ORANGE, PALE, SERIES, STYLE, WIDTH, to_svg

# How a future may end before its horizon, and how that is drawn.
_STOPS = (("death", "x", "death"), ("length", "|", "out of tokens"), ("unobserved", "$]$", "observation ended"))


def fan(story: Story, title: str) -> str:
    """A subject's history by kind (left) and one strip for each sampled future (right); the recorded future on top."""
    strips = len(story.futures) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2 + 0.19 * strips))
        past, future = figure.subplots(1, 2, width_ratios=[0.8, 1.2])
        _history_lanes(past, story)
        _future_strips(future, story)
        order = ("encounter start", "other event", *(name for *_, name in _STOPS), *story.tasks)
        shown = sorted(zip(*future.get_legend_handles_labels(), strict=True), key=lambda pair: order.index(pair[1]))
        handles, names = zip(*shown, strict=True) if shown else ((), ())
        figure.legend(
            handles, names, loc="outside lower center", ncols=max(1, int(110 / (6 + max(map(len, names), default=0))))
        )
        return to_svg(figure, title)


def _history_lanes(axes: Axes, story: Story) -> None:
    lanes = story.lanes
    oldest = min((event.days for event in story.history), default=0.0)
    unit, length = ("years", 365.25) if oldest < -730 else ("days", 1.0)
    for height, lane in enumerate(lanes):
        times = [event.days / length for event in story.history if event.lane == lane]
        alpha = float(np.clip(25 / np.sqrt(1 + len(times)) / 5, 0.25, 1.0))
        axes.vlines(times, height - 0.36, height + 0.36, color=INK, linewidth=0.8, alpha=alpha)
    axes.axvline(0, color=ORANGE, linewidth=2)
    axes.set_yticks(range(len(lanes)), [lane.replace("_", " ").lower() for lane in lanes])
    axes.set(title="History", xlabel=f"{unit} before the prediction time", ylim=(len(lanes) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.margins(x=0.02)


def _future_strips(axes: Axes, story: Story) -> None:
    strips = [story.recorded, *story.futures]
    labelled: set[str] = set()

    def once(name: str) -> str:
        # matplotlib leaves labels that begin with an underscore out of the legend.
        shown = f"_{name}" if name in labelled else name
        labelled.add(name)
        return shown

    for line, strip in enumerate(strips):
        height = line + (0.6 if line else 0)
        axes.plot([0, strip.days], [height, height], color=PALE, linewidth=1, zorder=1)
        for is_encounter, colour, reach, name in (
            (False, GREY, 0.17, "other event"),
            (True, BLUE, 0.36, "encounter start"),
        ):
            days = [event.days for event in strip.events if (event.lane == "ENCOUNTER") == is_encounter]
            if days:
                axes.vlines(
                    days,
                    height - reach,
                    height + reach,
                    color=colour,
                    linewidth=1.0 + 0.5 * is_encounter,
                    label=once(name),
                    zorder=2,
                )
        for task, (_, _, marker) in zip(story.tasks, _outcome_series(story.tasks), strict=True):
            if (day := strip.outcomes.get(task)) is not None:
                axes.plot(
                    [day],
                    [height],
                    marker=marker,
                    color=ORANGE,
                    markeredgecolor=INK,
                    markersize=6.5,
                    linestyle="none",
                    label=once(task),
                    zorder=4,
                )
        for stop, marker, name in _STOPS:
            if strip.stop == stop and strip.days < story.horizon_days:
                axes.plot([strip.days], [height], marker=marker, color=INK, markersize=6, label=once(name), zorder=3)
    axes.axvline(0, color=ORANGE, linewidth=2)
    axes.axhline(0.8, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks([0, 1.6, len(story.futures) + 0.6], ["recorded", "sample 1", f"sample {len(story.futures)}"])
    axes.set(
        title=f"{len(story.futures)} sampled futures",
        xlabel="days after the prediction time",
        ylim=(len(strips) + 0.3, -0.8),
        xlim=(-0.01 * story.horizon_days, 1.02 * story.horizon_days),
    )


def _outcome_series(tasks: Iterable[str]) -> Iterator[tuple[str, Any, str]]:
    markers = ("X", "o", "s", "^", "D", "P", "v", "*")
    for index, _ in enumerate(tasks):
        colour, style, _ = SERIES[index % len(SERIES)]
        yield colour, style, markers[index % len(markers)]


def counts_and_incidence(story: Story, title: str) -> str:
    """Cumulative events, history into futures (left), and the share of futures with each outcome by time (right)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        counts, incidence = figure.subplots(1, 2)
        _cumulative_counts(counts, story)
        _cumulative_incidence(incidence, story)
        return to_svg(figure, title)


def _cumulative_counts(axes: Axes, story: Story) -> None:
    window = max(2 * story.horizon_days, 365.0)
    past = np.sort([event.days for event in story.history])
    axes.step([*past, 0], [*range(1, len(past) + 1), len(past)], where="post", color=INK, label="history")
    start, shown = len(past), int((past >= -window).sum())
    for index, strip in enumerate(story.futures):
        days = np.sort([event.days for event in strip.events if event.days <= story.horizon_days])
        axes.step(
            [0, *days, min(strip.days, story.horizon_days)],
            [start, *(start + 1 + np.arange(len(days))), start + len(days)],
            where="post",
            color=BLUE,
            linewidth=0.8,
            alpha=0.55,
            label=None if index else "sampled future",
        )
    days = np.sort([event.days for event in story.recorded.events])
    axes.step(
        [0, *days, story.recorded.days],
        [start, *(start + 1 + np.arange(len(days))), start + len(days)],
        where="post",
        color=ORANGE,
        linestyle="--",
        label="recorded future",
    )
    axes.axvline(0, color=GREY, linestyle=":", linewidth=1)
    axes.set(title="Events so far", xlabel="days from the prediction time", ylabel="cumulative number of events")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(max(-window, min([*past, -0.3 * story.horizon_days])), story.horizon_days * 1.01)
    axes.set_ylim(bottom=max(0, start - shown - 1))
    axes.legend(loc="upper left")


def _incidence(strips: Sequence[Strip], task: str, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Kaplan and Meier's share with the outcome by day 0 and each of `days`, on which it happens; standard errors)."""
    censored = np.sort([s.days for s in strips if s.stop in CENSORED and s.outcomes.get(task) is None])
    place = np.arange(len(days))
    at_risk = len(strips) - place - np.searchsorted(censored, days)
    survival = np.cumprod(np.append(1.0, 1 - 1 / at_risk))
    terms = np.divide(1.0, at_risk * (at_risk - 1), out=np.zeros(len(days)), where=at_risk > 1)
    return 1 - survival, survival * np.sqrt(np.cumsum(np.append(0.0, terms)))


def _cumulative_incidence(axes: Axes, story: Story) -> None:
    top = 0.3
    for task, (colour, style, marker) in zip(story.tasks, _outcome_series(story.tasks), strict=True):
        horizon = story.tasks[task]
        times = (strip.outcomes.get(task) for strip in story.futures)
        days = np.sort([day for day in times if day is not None and day <= horizon])
        x = np.concatenate(([0.0], days, [horizon]))
        share, error = _incidence(story.futures, task, days)
        share, error = np.append(share, share[-1]), 1.96 * np.append(error, error[-1])
        said = f"{task}: {share[-1]:.2f} ± {error[-1]:.2f}; scored {story.risks[task]:.3f}"
        axes.step(x, share, where="post", color=colour, linestyle=style, label=said)
        axes.fill_between(
            x,
            np.maximum(0, share - error),
            np.minimum(1, share + error),
            step="post",
            color=colour,
            alpha=0.1,
            linewidth=0,
        )
        top = max(top, float(np.max(share + error)))
        if (recorded := story.recorded.outcomes.get(task)) is not None and recorded <= horizon:
            axes.plot(
                [recorded],
                [0.0],
                marker=marker,
                color=colour,
                markeredgecolor=INK,
                markersize=8,
                clip_on=False,
                linestyle="none",
                label=f"{task}: recorded",
            )
    axes.set(
        title="Cumulative incidence",
        xlabel="days after the prediction time",
        ylabel="share of sampled futures",
        ylim=(0, min(1.0, top) * 1.35),
        xlim=(0, story.horizon_days * 1.01),
    )
    axes.legend(loc="upper right", title="share at the task's horizon ± 1.96 SE; scored risk", title_fontsize=8.5)
