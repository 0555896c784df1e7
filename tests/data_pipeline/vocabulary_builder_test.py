"""Vocabulary policy: caps, fused values, results in words, intervals of one's own."""

import datetime

import ml_collections
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline import build_config, code_maps, grammar, intervals, statistics, text_values
from data_pipeline.columns import to_columns
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import tokenize
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.vocabulary_builder import VocabularyPolicy, build_vocabulary, measured_quantiles

START = datetime.datetime(2020, 1, 1)
MAP = code_maps.named("world")
SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}


def frame(rows) -> pl.DataFrame:
    """(subject, code, number, text) rows, an hour apart."""
    timed = [(row[0], START + datetime.timedelta(hours=i), *row[1:]) for i, row in enumerate(rows)]
    return pl.DataFrame(timed, schema=SCHEMA, orient="row").sort("subject_id", "time")


def build(events: pl.DataFrame, **policy) -> Vocabulary:
    return build_vocabulary(statistics.count(to_columns(events, MAP)), MAP, {}, VocabularyPolicy(**policy))


def tokens_of(events: pl.DataFrame, vocabulary: Vocabulary) -> list[str]:
    tokens = tokenize(events, vocabulary).record(0).tokens_T[4:-1]
    return [text for text in (vocabulary.tokens[token].text for token in tokens) if not text.startswith("INTERVAL")]


def test_a_cap_keeps_the_codes_of_most_subjects_and_the_first_by_name_of_equals() -> None:
    rows = [(s, f"LOINC//{code}", None, None) for s, codes in enumerate(["BCD", "BCD", "BA"]) for code in codes]
    rows += [(s, f"CPT//{code}", None, None) for s in range(3) for code in "12345"]
    vocabulary = build(frame(rows), max_codes={"LAB": 2})
    assert [event.concept for event in vocabulary.events if event.kind == "LAB" and event.concept[0] == "L"] == [
        "LAB//LOINC//B",
        "LAB//LOINC//C",
    ]
    assert sum(event.kind == "PROCEDURE" for event in vocabulary.events) == 6
    tokenized = tokenize(frame(rows), vocabulary)
    assert tokenized.row_counts["unknown_code"] == 3


def test_a_cap_never_keeps_a_code_without_its_shorter_forms() -> None:
    codes = ["E11.65", "E11.65", "E11.9", "I10", "E11.65"]
    vocabulary = build(
        frame([(s, f"ICD10CM//{c}", None, None) for s, c in enumerate(codes)]), max_codes={"DIAGNOSIS": 3}
    )
    kept = {event.concept.split("//")[-1] for event in vocabulary.events if event.kind == "DIAGNOSIS"}
    assert kept == {"DIAGNOSIS", "E11", "E116", "E1165"}


def test_two_codes_whose_parts_run_together_alike_are_never_one() -> None:
    own = code_maps.CodeMap("mine", (code_maps.Rule(r"DX\|(?P<p1>\d+)\|(?P<p2>\d+)", "DIAGNOSIS", "LOCAL"),))
    rows = [(0, "DX|1|23", None, None), (0, "DX|12|3", None, None)]

    def built(events: pl.DataFrame) -> Vocabulary:
        return build_vocabulary(statistics.count(to_columns(events, own)), own, {}, VocabularyPolicy())

    with pytest.raises(
        UserError, match=r"'LOCAL' reads two codes as one: LOCAL//1 LOCAL//2//23 and LOCAL//12 LOCAL//2//3"
    ):
        built(frame(rows))
    # Nor where training saw only one of them.
    vocabulary = built(frame(rows[1:]))
    assert tokens_of(frame(rows), vocabulary) == ["UNKNOWN//DIAGNOSIS", "LOCAL//12", "LOCAL//2//3"]
    counts = tokenize(frame(rows), vocabulary).row_counts
    assert (counts["kept"], counts["unknown_code"]) == (1, 1)


values = st.none() | st.sampled_from([1.0, 2.0, 3.0, 50.0, -7.5])
codes = st.sampled_from(["LOINC//A", "LOINC//B", "ATC//A10BA02", "ICD10CM//E11.65"])
words = st.none() | st.sampled_from(["neg", " POS ", "trace", "a  note of someone's own"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), codes, values, words), min_size=1, max_size=40))
def test_fused_and_split_tokens_spell_the_same_events_and_values(rows) -> None:
    events = frame(rows)
    policy = {"max_texts_per_code": 3, "min_subjects_per_code": 1}
    split, fused = build(events, **policy), build(events, value_encoding="fused", **policy)
    assert not any(token.kind == "VALUE" for token in fused.tokens)
    for one, other in zip(tokenize(events, split).records(), tokenize(events, fused).records(), strict=True):
        said = []
        for record, vocabulary in ((one, split), (other, fused)):
            assert grammar.is_valid(record.tokens_T.tolist(), vocabulary)
            parsed = grammar.parse(record.tokens_T.tolist(), vocabulary)
            assert not any(event.event == grammar.INVALID for event in parsed)
            said.append([(vocabulary.events[e.event].concept, e.decile, e.text) for e in parsed])
        assert said[0] == said[1]
    for vocabulary in (split, fused):
        assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_a_fused_value_is_one_token_with_its_code() -> None:
    events = frame([(0, "LOINC//A", float(i), None) for i in range(10)] + [(0, "CPT//1", None, None)])
    vocabulary = build(events, value_encoding="fused")
    assert tokens_of(events, vocabulary) == [f"LOINC//A//VALUE//{i}" for i in range(1, 11)] + ["CPT//1"]
    token = vocabulary.tokens[vocabulary.ids["LOINC//A//VALUE//3"]]
    assert (token.kind, token.grammar) == ("LAB", "first")
    # The code alone is never said where training always had a value.
    assert not grammar.is_valid(
        [*tokenize(events, vocabulary, end=False).record(0).tokens_T.tolist(), vocabulary.ids["LOINC//A"]], vocabulary
    )


def results(texts, code="LOINC//A"):
    return [(subject, code, None, text) for subject, text in enumerate(texts)]


def test_common_results_in_words_become_values_and_rare_ones_do_not() -> None:
    rows = results(["neg", "NEG ", "Neg", "pos", "POS", "pos", "Mr Smith"])
    vocabulary = build(frame(rows), min_subjects_per_code=3, max_texts_per_code=2)
    event = vocabulary.events[vocabulary.event_of_concept["LAB//LOINC//A"]]
    assert event.texts == ("NEG", "POS") and event.value == "optional"
    assert tokens_of(frame(rows[:1]), vocabulary) == ["LOINC//A", "TEXT//NEG"]
    assert tokens_of(frame(rows[-1:]), vocabulary) == ["LOINC//A"]
    assert "SMITH" not in vocabulary.to_json().upper()


@pytest.mark.parametrize(
    ("texts", "policy"),
    [
        (["A", "A", "B", "B", "C", "C"], {"max_texts_per_code": 2}),
        (["A", "A", "b", "c", "d"], {"max_texts_per_code": 5}),
        (["x" * 33] * 5, {"max_texts_per_code": 5}),
        (["A", "A", *(str(n) * 33 for n in range(10, 13))], {"max_texts_per_code": 5}),
        (["A", "A", *(" " * 200 + str(n) for n in range(10, 13))], {"max_texts_per_code": 5}),
        (["A", "A"], {"max_texts_per_code": 5, "min_subjects_per_code": 3}),
    ],
    ids=[
        "too many common ones",
        "most are rare",
        "too long",
        "most are too long",
        "most are far too long",
        "too few subjects",
    ],
)
def test_free_text_never_becomes_a_value(texts, policy) -> None:
    rows = results(texts) + [(99, "LOINC//A", None, None)] * 3
    vocabulary = build(frame(rows), **{"min_subjects_per_code": 2, **policy})
    assert not any(event.texts for event in vocabulary.events) and not vocabulary.texts


def test_spelling_tables_are_as_wide_as_one_codes_texts_however_many_codes_there_are() -> None:
    rows = [row for n in range(40) for row in results([f"R{n}", f"S{n}", f"R{n % 2}", None], f"LOINC//{n}")]
    vocabulary = build(frame(rows), max_texts_per_code=3)
    assert len(vocabulary.texts) == 80 and vocabulary.spelling.num_values == 10 + 3 + 1
    events = frame([(0, "LOINC//7", None, text) for text in ("S7", "R7", "R1", "R8", "R0")])
    said = tokens_of(events, vocabulary)
    assert said == ["LOINC//7", "TEXT//S7", "LOINC//7", "TEXT//R7", "LOINC//7", "TEXT//R1", "LOINC//7", "LOINC//7"]
    parsed = grammar.parse(tokenize(events, vocabulary).record(0).tokens_T.tolist(), vocabulary)
    assert [event.text for event in parsed] == ["S7", "R7", "R1", "", ""]


def test_subjects_are_counted_not_events() -> None:
    rows = [(0, "LOINC//A", None, "NEG")] * 9 + [(1, "LOINC//A", None, "NEG")]
    assert not build(frame(rows), min_subjects_per_code=3, max_texts_per_code=5).texts


def test_a_number_stands_before_a_text() -> None:
    rows = [(s, "LOINC//A", float(s), "NEG") for s in range(4)] + [(s, "LOINC//A", None, "NEG") for s in range(4)]
    vocabulary = build(frame(rows), max_texts_per_code=5)
    assert [e.value for e in vocabulary.events if e.concept == "LAB//LOINC//A"] == ["always"]
    assert tokens_of(frame(rows[2:3]), vocabulary) == ["LOINC//A", "VALUE//6"]


texts_strategy = st.lists(st.sampled_from([f"T{i}" for i in range(8)]), min_size=1, max_size=30)


@settings(deadline=None)
@given(texts_strategy, st.data())
def test_counts_of_texts_merge_to_the_same_however_subjects_are_parted(texts, data) -> None:
    old, text_values.MOST_DISTINCT_TEXTS = text_values.MOST_DISTINCT_TEXTS, 4
    try:
        rows = results(texts)
        part = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
        whole = statistics.count(to_columns(frame(rows), MAP)).texts
        parts = [
            statistics.count(to_columns(frame([row for row, p in zip(rows, part, strict=True) if p == k]), MAP)).texts
            for k in range(4)
        ]
        assert text_values.merge(parts).equals(whole)
        assert (whole["text"].to_list() == [""]) == (len(set(texts)) > 4)
    finally:
        text_values.MOST_DISTINCT_TEXTS = old


@settings(max_examples=40, deadline=None)
@example([299.0], "comet13")  # its longest duration, rounded up, would be the next interval's
@given(st.lists(st.floats(60.0, 1e9), min_size=1, max_size=60), st.sampled_from(list(intervals.PRESETS)))
def test_the_durations_of_an_interval_are_within_its_range_and_as_those_of_training(gaps, name) -> None:
    preset, gap_n = intervals.PRESETS[name], np.array(gaps)
    index_n, repeats_n = preset.classify(gap_n)
    histogram = preset.histogram(index_n, repeats_n, gap_n)
    assert histogram.sum() == (index_n >= 0).sum()
    quantiles = measured_quantiles(preset, [1.6] * len(preset.names), histogram)
    row_n = np.where(repeats_n > 1, len(preset.names), index_n)
    rest_n = np.where(repeats_n > 1, gap_n - repeats_n * preset.repeat_seconds, gap_n)
    for row, (low, high, own) in enumerate(zip(*preset.duration_ranges(), quantiles, strict=True)):
        if not len(seconds := rest_n[row_n == row]):
            assert set(own) == {2 if row < len(preset.names) else 0}
            continue
        assert list(own) == sorted(own) and low - 1 <= own[0] and own[-1] < high
        # Those of training, each to a bin; a gap beyond forty of the last is as long as forty.
        expected = np.quantile(np.clip(seconds, low, high), (np.arange(32) + 0.5) / 32, method="inverted_cdf")
        assert (np.abs(np.array(own) - expected) <= (high - low) / 64 + 1).all()


@pytest.mark.parametrize("preset", [*intervals.PRESETS.values(), intervals.custom("5m,1h,1d,30d")])
def test_the_range_of_an_interval_is_that_of_its_gaps(preset) -> None:
    gap_n = np.geomspace(preset.lower_seconds[0], 40.4 * preset.repeat_seconds, 20_000)
    index_n, repeats_n = preset.classify(gap_n)
    row_n = np.where(repeats_n > 1, len(preset.names), index_n)
    rest_n = np.where(repeats_n > 1, gap_n - repeats_n * preset.repeat_seconds, gap_n)
    for row, (low, high) in enumerate(zip(*preset.duration_ranges(), strict=True)):
        found = rest_n[row_n == row]
        assert low <= found.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < found.max() <= high


def test_intervals_of_ones_own() -> None:
    preset = intervals.custom("5m, 1h,1d,6mt")
    assert preset.names == ("5m-1h", "1h-1d", "1d-6mt", "6mt+")
    index, repeats = preset.classify(np.array([10.0, 300.0, 86_400.0, 3 * 182.625 * 86_400]))
    assert index.tolist() == [-1, 0, 2, 3] and repeats.tolist() == [0, 1, 1, 3]
    for bounds in ("", "5 minutes", "1h,5m", "0m,5m", "5m,5m"):
        with pytest.raises(UserError, match=r"config\.interval_bounds"):
            intervals.custom(bounds)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"interval_preset": "comet14"}, "interval_preset"),
        ({"interval_preset": "custom"}, "interval_bounds"),
        ({"interval_bounds": "5m"}, "interval_bounds"),
        ({"value_encoding": "both"}, "value_encoding"),
        ({"max_codes": {"LAB": -1}}, "max_codes.LAB"),
        ({"min_subjects_per_code": 0}, "min_subjects_per_code"),
        ({"max_texts_per_code": 0}, "max_texts_per_code"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(changes, key) -> None:
    config = build_config.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=rf"config\.{key}"):
        build_config.check(config)


def _a_typo(config) -> None:
    config.min_subject_per_code = 1


def _a_typo_in_the_cohort(config) -> None:
    config.cohort.min_ages = 18


def _a_key_left_out(config) -> None:
    del config["max_texts_per_code"]


def _a_number_as_text(config) -> None:
    config.min_values_per_code = "50"


def _an_optional_number_as_text(config) -> None:
    config.cohort = {**config.cohort.to_dict(), "max_age": "80"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_a_typo, "config.min_subject_per_code: unknown key"),
        (_a_typo_in_the_cohort, "config.cohort.min_ages: unknown key"),
        (_a_key_left_out, "config.max_texts_per_code: missing key"),
        (_a_number_as_text, "config.min_values_per_code: '50' is a str; use int"),
        (_an_optional_number_as_text, "config.cohort.max_age: '80' is a str; use int"),
    ],
)
def test_a_configuration_of_ones_own_has_the_defaults_keys_and_types(change, says) -> None:
    config = ml_collections.ConfigDict(build_config.get_config().to_dict())
    build_config.check(config)
    with config.ignore_type():
        change(config)
    with pytest.raises(UserError) as error:
        build_config.check(config)
    assert str(error.value).startswith(says)
