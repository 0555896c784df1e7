"""Figures of a corpus: its kinds, vocabulary, lengths, gaps and deciles, as inline SVG half a page wide."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.svg import BLUE, GREY, INK, ORANGE, PALE, SERIES, STYLE, to_svg

# Splits with fewer are left out of the histogram of lengths.
FEW_SUBJECTS = 50
_WIDTH, _HEIGHT = 4.7, 3.1


def _draw(title: str, draw: Callable[..., None], *arguments: Any, height: float = _HEIGHT) -> str:
    """One set of axes, drawn by `draw(axes, *arguments)`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        draw(axes, *arguments)
        axes.set_title(title)
        return to_svg(figure, title)


def kinds(tokens_by_kind: Mapping[str, int]) -> str:
    """Share of the tokens of each kind, as bars with their figures."""
    return _draw("Tokens by kind", _kinds, tokens_by_kind, height=0.9 + 0.24 * len(tokens_by_kind))


def _kinds(axes: Axes, tokens_by_kind: Mapping[str, int]) -> None:
    total = max(1, sum(tokens_by_kind.values()))
    ordered = sorted(tokens_by_kind.items(), key=lambda item: item[1])
    shares = [count / total for _, count in ordered]
    names = [name.replace("_", " ").lower() for name, _ in ordered]
    axes.barh(range(len(shares)), shares, color=BLUE, height=0.66)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {share:.1%}" if share >= 0.001 else " < 0.1%", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of tokens", xlim=(0, 1.18 * max(shares, default=1)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def vocabulary_coverage(counts_V: np.ndarray, is_code_V: np.ndarray) -> str:
    """Share of a sample's tokens that the most frequent so many tokens make up: of all tokens, and of codes."""
    return _draw("Vocabulary coverage", _vocabulary_coverage, counts_V, is_code_V)


def _vocabulary_coverage(axes: Axes, counts_V: np.ndarray, is_code_V: np.ndarray) -> None:
    for (colour, style, _), name, counts in zip(
        SERIES, ("all tokens", "first tokens of codes"), (counts_V, counts_V[is_code_V]), strict=False
    ):
        seen = np.sort(counts[counts > 0])[::-1]
        if len(seen):
            cumulative = np.cumsum(seen) / seen.sum()
            needed = int(np.searchsorted(cumulative, 0.9)) + 1
            label = f"{name}: 90% by {needed:,}"
            axes.plot(np.arange(1, len(seen) + 1), cumulative, color=colour, linestyle=style, label=label)
            axes.plot([needed], [cumulative[needed - 1]], "o", color=colour, markersize=4.5)
    axes.set(xscale="log", ylim=(0, 1.03), xlabel="most frequent tokens, so many", ylabel="share of tokens")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")


def lengths(lengths_by_split: Mapping[str, np.ndarray], context: int) -> str:
    """Share of each split's subjects by tokens, on a logarithmic axis; a line at the usual row of a model."""
    return _draw("Tokens per subject", _lengths, lengths_by_split, context)


def _lengths(axes: Axes, lengths_by_split: Mapping[str, np.ndarray], context: int) -> None:
    # A histogram of a few subjects shows their number and little else.
    filled = {name: lengths for name, lengths in lengths_by_split.items() if len(lengths) >= FEW_SUBJECTS}
    if not filled:
        axes.text(0.5, 0.5, "too few subjects", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_axis_off()
        return
    longest = max(int(lengths.max()) for lengths in filled.values())
    shortest = max(1, min(int(lengths.min()) for lengths in filled.values()))
    fewest = min(len(lengths) for lengths in filled.values())
    edges = np.geomspace(shortest, longest + 1, int(np.clip(2 * fewest ** (1 / 3), 8, 30)) + 1)
    for index, (name, lengths) in enumerate(filled.items()):
        colour, style, _ = SERIES[index % len(SERIES)]
        share = np.histogram(lengths, edges)[0] / len(lengths)
        if index == 0:
            axes.stairs(share, edges, fill=True, color=PALE)
        axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.5, label=name.replace("_", " "))
    if shortest <= context <= longest:
        axes.axvline(context, color=GREY, linestyle=":", linewidth=1.2, label=f"{context:,} tokens")
    axes.set(xscale="log", xlabel="tokens", ylabel="share of the split's subjects", ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, columnspacing=1.2)


def gaps(names: Sequence[str], counts: np.ndarray) -> str:
    """Share of a sample's interval tokens of each length."""
    return _draw("Gaps between events", _gaps, names, counts, height=0.9 + 0.21 * len(names))


def _gaps(axes: Axes, names: Sequence[str], counts: np.ndarray) -> None:
    shares = counts / max(1, counts.sum())
    axes.barh(range(len(names)), shares, color=BLUE, height=0.7)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {share:.1%}" if share else " none", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of interval tokens", ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.2 * max(shares.max(), 1e-9)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def deciles(counts: np.ndarray) -> str:
    """Share of a sample's values in each decile: a tenth each, but where values are tied."""
    return _draw("Values by decile", _deciles, counts)


def _deciles(axes: Axes, counts: np.ndarray) -> None:
    places = np.arange(1, len(counts) + 1)
    axes.bar(places, counts / max(1, counts.sum()), color=BLUE, width=0.7)
    axes.axhline(1 / len(counts), color=ORANGE, linestyle="--", linewidth=1.3, label="a tenth each")
    axes.set(xlabel="decile of the training values", ylabel="share of values")
    axes.set_xticks(places)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.legend(loc="upper right")
