"""From the training split's counts to a vocabulary: which codes are kept, how values are cut, which tokens exist."""

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from data_pipeline import intervals, static_prefix
from data_pipeline.code_maps import CodeMap
from data_pipeline.errors import UserError
from data_pipeline.statistics import Statistics
from data_pipeline.vocabulary import DEATH, DECILES, KINDS, PREFIX_SYSTEMS, TIMELINE_END, Event, Token, Vocabulary

# Kinds whose rare codes become UNKNOWN//<kind>.
EVENT_KINDS = tuple(kind for kind in KINDS if kind not in ("SPECIAL", "DEMOGRAPHIC", "INTERVAL", "VALUE", DEATH))


def build_vocabulary(
    statistics: Statistics,
    code_map: CodeMap,
    descriptions: Mapping[str, str],
    *,
    interval_preset: str,
    min_subjects_per_code: int,
    min_values_per_code: int,
) -> Vocabulary:
    """Make the vocabulary; interval means are those of the preset's ranges until `measured` sets the data's.

    A code seen in fewer than `min_subjects_per_code` training subjects is kept in its longest shorter form that is
    seen in as many, and is UNKNOWN//<kind> where there is none. Values of a code with fewer than `min_values_per_code`
    of them in training, or with only one distinct value, are not used.
    """
    kept = statistics.concepts.filter(
        (pl.col("subjects") >= min_subjects_per_code) & (pl.col("kind") != DEATH)
    ).with_columns(pl.col("parts").str.split("\n"))
    descriptions = _describe(code_map, descriptions)
    preset = intervals.PRESETS[interval_preset]
    tokens = [*_fixed_tokens(statistics.static, preset, min_subjects_per_code), *_code_tokens(kept, descriptions)]
    ids = {token.text: index for index, token in enumerate(tokens)}
    cuts = _cut_values(statistics, min_values_per_code)
    events = [Event(DEATH, DEATH, "death", (ids[DEATH],), description="Death")]
    events += [Event(f"UNKNOWN//{kind}", kind, "", (ids[f"UNKNOWN//{kind}"],)) for kind in EVENT_KINDS]
    for row in kept.sort("concept").iter_rows(named=True):
        value, edges, means = cuts.get(row["concept"], ("never", (), ()))
        spelling = tuple(ids[text] for text in row["parts"])
        description = descriptions.get(row["concept"], "")
        events.append(Event(row["concept"], row["kind"], row["role"], spelling, value, edges, means, description))
    return Vocabulary(tuple(tokens), tuple(events), preset, _preset_means(preset), code_map)


def measured_intervals(
    preset: intervals.IntervalPreset, interval_us_I: np.ndarray, interval_tokens_I: np.ndarray
) -> tuple[float, ...]:
    """Mean seconds per interval token, from exact sums; an interval that never occurs has its range's middle."""
    means = _preset_means(preset)
    return tuple(
        int(us) / int(tokens) / 1e6 if tokens else mean
        for us, tokens, mean in zip(interval_us_I, interval_tokens_I, means, strict=True)
    )


def _preset_means(preset: intervals.IntervalPreset) -> tuple[float, ...]:
    bounds = np.array(preset.lower_seconds)
    return (*(float(x) for x in np.sqrt(bounds[:-1] * bounds[1:])), preset.repeat_seconds)


def _fixed_tokens(static: pl.DataFrame, preset: intervals.IntervalPreset, min_subjects: int) -> Iterable[Token]:
    yield Token("PAD", "SPECIAL", "pad")
    yield Token(TIMELINE_END, "SPECIAL", "end", "End of the record")
    frequent = static.filter(pl.col("subjects") >= min_subjects)["token"].sort().to_list()
    for system in PREFIX_SYSTEMS:
        yield Token(f"{system}//UNKNOWN", "DEMOGRAPHIC", "static")
        known = static_prefix.AGE_TOKENS if system == "AGE" else frequent
        for text in known:
            if text.startswith(f"{system}//") and text != f"{system}//UNKNOWN":
                yield Token(text, "DEMOGRAPHIC", "static")
    for name in preset.names:
        yield Token(f"INTERVAL//{name}", "INTERVAL", "interval")
    for decile in range(1, DECILES + 1):
        yield Token(f"VALUE//{decile}", "VALUE", "value")
    yield Token(DEATH, DEATH, "first", "Death")
    for kind in EVENT_KINDS:
        yield Token(f"UNKNOWN//{kind}", kind, "first", "A code that is too rare to be kept")


def _code_tokens(kept: pl.DataFrame, descriptions: Mapping[str, str]) -> Iterable[Token]:
    tokens: dict[str, Token] = {}
    for row in kept.iter_rows(named=True):
        for position, text in enumerate(row["parts"]):
            whole = position == 0 and len(row["parts"]) == 1
            token = Token(
                text,
                row["kind"],
                "part" if position else "first",
                descriptions.get(row["concept"], "") if whole else "",
            )
            known = tokens.setdefault(text, token)
            if known.kind != token.kind or known.grammar != token.grammar:
                raise UserError(
                    f"system {text.split('//')[0]!r} is used for kinds {known.kind} and {token.kind}",
                    where="code map",
                    fix="give each kind a system of its own",
                )
            if token.description:
                tokens[text] = token
    return sorted(tokens.values(), key=lambda token: (KINDS.index(token.kind), token.grammar, token.text))


def _cut_values(statistics: Statistics, min_values: int) -> dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """Concept → (value, edges, means), for those whose values are used."""
    total = dict(statistics.concepts.select("concept", "events").iter_rows())
    cuts = {}
    for (concept,), histogram in statistics.values.sort("concept", "value").group_by("concept", maintain_order=True):
        values, events = histogram["value"].to_numpy(), histogram["events"].to_numpy()
        if events.sum() >= min_values and len(values) > 1:
            edges, means = deciles(values, events)
            cuts[str(concept)] = ("always" if events.sum() == total[concept] else "optional", edges, means)
    return cuts


def deciles(values: np.ndarray, counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nine cuts and ten means of a histogram: distinct rising values and how often each occurs.

    Cut k is the smallest value that at least k/10 of the observations do not exceed (Hyndman and Fan 1996, type 1), so
    it is exact and does not depend on order. A decile that ties leave empty has its cut for a mean.
    """
    cumulative = np.cumsum(counts)
    # 10 * cumulative >= k * n in integers: no rounding.
    cuts = values[np.searchsorted(DECILES * cumulative, np.arange(1, DECILES) * cumulative[-1])]
    decile = np.searchsorted(cuts, values, side="left")
    weights = np.bincount(decile, counts, minlength=DECILES)
    sums = np.bincount(decile, counts * values, minlength=DECILES)
    fallback = np.append(cuts, values[-1])
    means = np.where(weights > 0, sums / np.maximum(weights, 1), fallback)
    return tuple(float(cut) for cut in cuts), tuple(float(mean) for mean in means)


def _describe(code_map: CodeMap, descriptions: Mapping[str, str]) -> dict[str, str]:
    """Concept → description, of the first MEDS code by name that maps to it."""
    codes = sorted(descriptions)
    described: dict[str, str] = {}
    for code, concept in zip(codes, code_map.map_codes(codes), strict=True):
        if descriptions[code]:
            described.setdefault(concept.name, descriptions[code])
    return described
