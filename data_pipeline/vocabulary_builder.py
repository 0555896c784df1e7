"""From the training split's counts to a vocabulary: which codes are kept, how values are cut, which tokens exist."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from data_pipeline import follow_up, intervals, static_prefix, text_values
from data_pipeline.code_maps import CodeMap
from data_pipeline.columns import OBSERVATION_END
from data_pipeline.errors import UserError
from data_pipeline.statistics import Statistics
from data_pipeline.vocabulary import (
    DEATH,
    DECILES,
    KINDS,
    PREFIX_SYSTEMS,
    TIMELINE_END,
    Event,
    Token,
    Vocabulary,
    fused_text,
)

QUANTILES = 32  # of the durations of an interval's tokens
# Kinds whose rare codes become UNKNOWN//<kind>.
EVENT_KINDS = tuple(kind for kind in KINDS if kind not in ("SPECIAL", "DEMOGRAPHIC", "INTERVAL", "VALUE", DEATH))


@dataclasses.dataclass(frozen=True)
class VocabularyPolicy:
    """What a vocabulary is to hold.

    Attributes:
        preset: which interval tokens there are.
        min_subjects_per_code: a code (or a result in words) that fewer training subjects have has no token.
        min_values_per_code: the numbers of a code with fewer of them in training have none.
        max_codes: kind → how many codes it may have, those of most training subjects; 0 or missing: any number.
        value_encoding: one of vocabulary.VALUE_ENCODINGS.
        max_texts_per_code: a code with more common results in words than this has none.
        observed_until: where records end: follow_up.AUTO, follow_up.LAST_EVENT, or a date.
    """

    preset: intervals.IntervalPreset = intervals.COMET13
    min_subjects_per_code: int = 1
    min_values_per_code: int = 2
    max_codes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    value_encoding: str = "split"
    max_texts_per_code: int = 0
    observed_until: str = follow_up.AUTO


def build_vocabulary(
    statistics: Statistics, code_map: CodeMap, descriptions: Mapping[str, str], policy: VocabularyPolicy
) -> Vocabulary:
    """Make the vocabulary; interval means are those of the preset's ranges until `measured_intervals` sets the data's.

    A code that is seen in too few training subjects, or is one too many of its kind, is kept in its longest shorter
    form that is not, and is UNKNOWN//<kind> where there is none. Values of a code with too few of them in training, or
    with only one distinct value, are not used.

    Raises:
        UserError: codes of different parts have one concept.
    """
    _check_spellings(statistics.concepts)
    kept = _keep_codes(statistics.concepts, policy)
    descriptions = _describe(code_map, descriptions)
    values = _choose_values(statistics, policy)
    tokens = [
        *_fixed_tokens(statistics.static, policy),
        *_value_tokens(kept, values, policy),
        *_event_tokens(kept, values, descriptions, policy),
    ]
    ids = {token.text: index for index, token in enumerate(tokens)}
    events = [Event(DEATH, DEATH, "death", (ids[DEATH],), description="Death")]
    events += [Event(f"UNKNOWN//{kind}", kind, "", (ids[f"UNKNOWN//{kind}"],)) for kind in EVENT_KINDS]
    for row in kept.iter_rows(named=True):
        concept = row["concept"]
        events.append(
            Event(
                concept=concept,
                kind=row["kind"],
                role=row["role"],
                tokens=tuple(ids[text] for text in row["parts"]),
                description=descriptions.get(concept, ""),
                **vars(values.get(concept, _NO_VALUES)),
            )
        )
    return Vocabulary(
        tuple(tokens),
        tuple(events),
        policy.preset,
        _preset_means(policy.preset),
        code_map,
        policy.value_encoding,
        knows_follow_up=_knows_follow_up(statistics, code_map, policy),
    )


def _knows_follow_up(statistics: Statistics, code_map: CodeMap, policy: VocabularyPolicy) -> bool:
    if policy.observed_until != follow_up.AUTO:
        return policy.observed_until != follow_up.LAST_EVENT
    ends = [index for index, rule in enumerate(code_map.rules) if rule.role == OBSERVATION_END]
    return bool(statistics.rules["rule"].is_in(ends).any())


def _check_spellings(concepts: pl.DataFrame) -> None:
    """Raise UserError if two codes have one concept, though they are told apart by where their parts begin.

    They would share a description, values and tasks, and only one of the two would have tokens.
    """
    spellings = concepts.group_by("concept").agg(pl.col("parts").unique().sort())
    for concept, parts in spellings.filter(pl.col("parts").list.len() > 1).sort("concept").head(1).iter_rows():
        one, other = (spelling.replace("\n", " ") for spelling in parts[:2])
        raise UserError(
            f"system {concept.split('//')[1]!r} reads two codes as one: {one} and {other}",
            where="code map",
            fix="take what stands between the parts into one of them, or give the codes two systems",
        )


def _keep_codes(concepts: pl.DataFrame, policy: VocabularyPolicy) -> pl.DataFrame:
    """The codes that get an event, by name; parts as lists."""
    common = concepts.filter((pl.col("subjects") >= policy.min_subjects_per_code) & (pl.col("kind") != DEATH))
    # A shorter form is in as many subjects as the code, and comes before it by name: no code is kept without it.
    ranked = common.sort(["subjects", "concept"], descending=[True, False])
    caps = {kind: cap for kind, cap in policy.max_codes.items() if cap}
    most = pl.col("kind").replace_strict(caps, default=None, return_dtype=pl.Int64)
    kept = ranked.filter((pl.int_range(pl.len()).over("kind") < most).fill_null(True))
    return kept.sort("concept").with_columns(pl.col("parts").str.split("\n"))


def measured_intervals(
    preset: intervals.IntervalPreset, interval_us_I: Sequence[int], interval_tokens_I: Sequence[int]
) -> tuple[float, ...]:
    """Mean seconds per interval token, from exact sums; an interval that never occurs has its range's middle."""
    means = _preset_means(preset)
    return tuple(
        us / tokens / 1e6 if tokens else mean
        for us, tokens, mean in zip(interval_us_I, interval_tokens_I, means, strict=True)
    )


def measured_quantiles(
    preset: intervals.IntervalPreset, mean_seconds_I: Sequence[float], histogram_GxB: np.ndarray
) -> tuple[tuple[int, ...], ...]:
    """Of each row of `IntervalPreset.duration_ranges` (G = I + 1) the whole seconds that equally many gaps have
    (QUANTILES of them, rising); of one without gaps the mean, of repeats without gaps 0."""
    quantiles = []
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    means = (*mean_seconds_I, 0.0)
    for low, high, mean, counts_B in zip(*preset.duration_ranges(), means, histogram_GxB, strict=True):
        if not counts_B.any():
            quantiles.append((round(mean),) * QUANTILES)
            continue
        edges = np.linspace(low, high, len(counts_B) + 1)
        upto = np.append(0, np.cumsum(counts_B)) / counts_B.sum()
        # Rounded down, so that none reaches the next interval.
        quantiles.append(tuple(int(seconds) for seconds in np.floor(np.interp(at, upto, edges))))
    return tuple(quantiles)


def _preset_means(preset: intervals.IntervalPreset) -> tuple[float, ...]:
    bounds = np.array(preset.lower_seconds)
    return (*(float(x) for x in np.sqrt(bounds[:-1] * bounds[1:])), preset.repeat_seconds)


def _fixed_tokens(static: pl.DataFrame, policy: VocabularyPolicy) -> Iterable[Token]:
    yield Token("PAD", "SPECIAL", "pad")
    yield Token(TIMELINE_END, "SPECIAL", "end", "End of the record")
    frequent = static.filter(pl.col("subjects") >= policy.min_subjects_per_code)["token"].sort().to_list()
    for system in PREFIX_SYSTEMS:
        yield Token(f"{system}//UNKNOWN", "DEMOGRAPHIC", "static")
        known = static_prefix.AGE_TOKENS if system == "AGE" else frequent
        for text in known:
            if text.startswith(f"{system}//") and text != f"{system}//UNKNOWN":
                yield Token(text, "DEMOGRAPHIC", "static")
    for name in policy.preset.names:
        yield Token(f"INTERVAL//{name}", "INTERVAL", "interval")


def _value_tokens(kept: pl.DataFrame, values: Mapping[str, "_Values"], policy: VocabularyPolicy) -> Iterable[Token]:
    """The value tokens that all codes share, then those of events that no code names."""
    if policy.value_encoding == "split":
        for decile in range(1, DECILES + 1):
            yield Token(f"VALUE//{decile}", "VALUE", "value")
        for text in sorted({text for concept in kept["concept"] for text in values.get(concept, _NO_VALUES).texts}):
            yield Token(f"TEXT//{text}", "VALUE", "value")
    yield Token(DEATH, DEATH, "first", "Death")
    for kind in EVENT_KINDS:
        yield Token(f"UNKNOWN//{kind}", kind, "first", "A code that is too rare to be kept")


def _event_tokens(
    kept: pl.DataFrame, values: Mapping[str, "_Values"], descriptions: Mapping[str, str], policy: VocabularyPolicy
) -> Iterable[Token]:
    tokens: dict[str, Token] = {}
    for row in kept.sort("kind", "concept").iter_rows(named=True):
        texts = row["parts"]
        for position, text in enumerate(texts):
            whole = len(texts) == 1
            _add_token(
                tokens,
                Token(
                    text,
                    row["kind"],
                    "part" if position else "first",
                    descriptions.get(row["concept"], "") if whole else "",
                ),
            )
        if policy.value_encoding == "fused":
            for value in values.get(row["concept"], _NO_VALUES).names():
                _add_token(
                    tokens, Token(fused_text(texts[-1], value), row["kind"], "part" if len(texts) > 1 else "first")
                )
    return sorted(tokens.values(), key=lambda token: (KINDS.index(token.kind), token.grammar, token.text))


def _add_token(tokens: dict[str, Token], token: Token) -> None:
    known = tokens.setdefault(token.text, token)
    if known.kind != token.kind or known.grammar != token.grammar:
        raise UserError(
            f"system {token.text.split('//')[0]!r} is used for kinds {known.kind} and {token.kind}",
            where="code map",
            fix="give each kind a system of its own",
        )
    if token.description:
        tokens[token.text] = token


@dataclasses.dataclass(frozen=True)
class _Values:
    """What values an event takes: the fields of Event that say so."""

    value: str = "never"
    edges: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The texts of their value tokens."""
        deciles = [f"VALUE//{decile}" for decile in range(1, DECILES + 1)] if self.edges else []
        return deciles + [f"TEXT//{text}" for text in self.texts]


_NO_VALUES = _Values()


def _choose_values(statistics: Statistics, policy: VocabularyPolicy) -> dict[str, _Values]:
    """Concept → its values, for those whose values are used."""
    total = dict(statistics.concepts.select("concept", "events").iter_rows())
    cuts: dict[str, tuple[tuple[float, ...], tuple[float, ...], int]] = {}
    for (concept,), histogram in statistics.values.sort("concept", "value").group_by("concept", maintain_order=True):
        values, events = histogram["value"].to_numpy(), histogram["events"].to_numpy()
        if events.sum() >= policy.min_values_per_code and len(values) > 1:
            cuts[str(concept)] = (*deciles(values, events), int(events.sum()))
    texts = text_values.choose(statistics.texts, policy.min_subjects_per_code, policy.max_texts_per_code)
    chosen = {}
    for concept in sorted(cuts.keys() | texts.keys()):
        edges, means, numbers = cuts.get(concept, ((), (), 0))
        words, worded = texts.get(concept, ((), 0))
        chosen[concept] = _Values("always" if numbers + worded == total[concept] else "optional", edges, means, words)
    return chosen


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
