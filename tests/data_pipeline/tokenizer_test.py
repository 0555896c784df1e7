"""The tokenizer: what a timeline looks like, that it obeys the grammar, and that it reads back as what it was."""

import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import code_maps, grammar, statistics, vocabulary_builder
from data_pipeline.columns import to_columns
from data_pipeline.tokenizer import tokenize
from data_pipeline.vocabulary import Vocabulary

START = datetime.datetime(2020, 1, 1)
BIRTH = datetime.datetime(1970, 6, 1)
CODES = (
    "ICD10CM//E11.65",
    "ICD10CM//E11",
    "ICD10CM//I10",
    "ATC//A10BA02",
    "ATC//A10",
    "LOINC//2345-7",
    "CPT//99213",
    "ENCOUNTER_START//OUTPATIENT",
    "ENCOUNTER_END//OUTPATIENT",
    "DEPARTMENT//CARDIOLOGY",
    "MEDS_DEATH",
)


def at(minutes: float) -> datetime.datetime:
    return START + datetime.timedelta(minutes=minutes)


def frame(rows) -> pl.DataFrame:
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def subject(number: int, rows, static=(("SEX//F",), ("RACE//WHITE",))) -> pl.DataFrame:
    head = [(number, None, code, None) for (code,) in static] + [(number, BIRTH, "MEDS_BIRTH", None)]
    return frame(head + [(number, *row) for row in rows])


def make_vocabulary(events: pl.DataFrame, min_subjects: int = 1, min_values: int = 2) -> Vocabulary:
    code_map = code_maps.named("world")
    return vocabulary_builder.build_vocabulary(
        statistics.count(to_columns(events, code_map)),
        code_map,
        {},
        vocabulary_builder.VocabularyPolicy(min_subjects_per_code=min_subjects, min_values_per_code=min_values),
    )


def texts(events: pl.DataFrame, vocabulary: Vocabulary, **kwargs) -> list[str]:
    return [vocabulary.tokens[token].text for token in tokenize(events, vocabulary, **kwargs).record(0).tokens_T]


def test_a_timeline_is_prefix_events_intervals_values_and_end() -> None:
    values = [(at(5), "LOINC//2345-7", float(value)) for value in range(100)]
    vocabulary = make_vocabulary(subject(1, [(at(0), "ICD10CM//E11.65", None), *values]))
    rows = [
        (at(0), "ENCOUNTER_START//OUTPATIENT", None),
        (at(0), "ICD10CM//E11.65", None),
        (at(20), "LOINC//2345-7", 55.0),
        (at(20.5), "LOINC//2345-7", 3.0),
    ]
    assert texts(subject(1, rows), vocabulary) == [
        "SEX//F",
        "RACE//WHITE",
        "AGE//45-49",
        "PERIOD//2020-2024",
        "UNKNOWN//ENCOUNTER",
        "ICD10CM//E11",
        "ICD10CM//2//6",
        "ICD10CM//3//5",
        "INTERVAL//15m-1h",
        "LOINC//2345-7",
        "VALUE//6",
        "LOINC//2345-7",
        "VALUE//1",
        "TIMELINE_END",
    ]


def test_half_years_repeat_and_stop_at_forty() -> None:
    rows = [(at(0), "ICD10CM//I10", None), (at(60 * 24 * 365.25 * 1.2), "ICD10CM//I10", None)]
    events = subject(1, rows)
    vocabulary = make_vocabulary(events)
    assert texts(events, vocabulary).count("INTERVAL//6mt+") == 2
    rows[1] = (at(60 * 24 * 365.25 * 30), "ICD10CM//I10", None)
    assert texts(subject(1, rows), vocabulary).count("INTERVAL//6mt+") == 40


def test_events_of_an_instant_do_not_depend_on_the_order_of_rows() -> None:
    rows = [(at(0), code, None) for code in CODES if code != "LOINC//2345-7"]
    rows += [(at(0), "LOINC//2345-7", value) for value in (3.0, 1.0, 2.0)]
    vocabulary = make_vocabulary(subject(1, rows))
    expected = texts(subject(1, rows), vocabulary)
    assert expected[4].startswith("ENCOUNTER_START") and expected[-2] == "DEATH"
    assert texts(subject(1, rows[::-1]), vocabulary) == expected


def test_rare_codes_are_shortened_and_then_unknown() -> None:
    shared = [(at(0), "ICD10CM//E11.65", None), (at(0), "CPT//99213", None)]
    events = pl.concat([subject(1, shared), subject(2, [(at(0), "ICD10CM//E11.9", None)])])
    vocabulary = make_vocabulary(events, min_subjects=2)
    tokenized = tokenize(events, vocabulary)
    first = [vocabulary.tokens[token].text for token in tokenized.record(0).tokens_T[4:]]
    assert first == ["ICD10CM//E11", "UNKNOWN//PROCEDURE", "TIMELINE_END"]
    assert tokenized.row_counts["shortened_code"] == 2 and tokenized.row_counts["unknown_code"] == 1


def test_a_window_begins_with_the_age_and_period_of_its_start() -> None:
    rows = [(at(0), "ICD10CM//I10", None), (at(60 * 24 * 365.25 * 6), "ICD10CM//I10", None)]
    events = subject(1, rows)
    vocabulary = make_vocabulary(events)
    record = tokenize(events, vocabulary).record(0)
    late = [vocabulary.tokens[token].text for token in record.prefix_at(int(record.prefix_starts[-1]))]
    assert late == ["SEX//F", "RACE//WHITE", "AGE//55-59", "PERIOD//2025-2029"]
    assert list(record.prefix_at(0)) == list(record.tokens_T[:4])
    # The change holds from the interval that leads to the second event.
    assert vocabulary.tokens[record.tokens_T[record.prefix_starts[1]]].text.startswith("INTERVAL")


def test_age_alone_changes_the_prefix_too() -> None:
    rows = [(at(0), "ICD10CM//I10", None), (at(60 * 24 * 300), "ICD10CM//I10", None)]
    events = subject(1, rows)
    vocabulary = make_vocabulary(events)
    record = tokenize(events, vocabulary).record(0)
    ages = [vocabulary.tokens[prefix[2]].text for prefix in record.prefixes]
    periods = [vocabulary.tokens[prefix[3]].text for prefix in record.prefixes]
    assert ages == ["AGE//45-49", "AGE//50-54"] and periods == ["PERIOD//2020-2024"] * 2


def test_a_value_on_a_cut_belongs_to_the_decile_below_it() -> None:
    values = [(at(5), "LOINC//2345-7", float(value)) for value in range(100)]
    vocabulary = make_vocabulary(subject(1, values))
    edge = vocabulary.events[vocabulary.event_of_concept["LAB//LOINC//2345-7"]].edges[0]
    for value, decile in ((edge, "VALUE//1"), (float(np.nextafter(np.float32(edge), np.float32(99))), "VALUE//2")):
        assert texts(subject(1, [(at(0), "LOINC//2345-7", value)]), vocabulary)[5] == decile


def test_a_value_missing_where_training_always_had_one_is_unknown_and_counted() -> None:
    values = [(at(5), "LOINC//2345-7", float(value)) for value in range(20)]
    vocabulary = make_vocabulary(subject(1, values))
    events = subject(1, [(at(0), "LOINC//2345-7", None)])
    assert texts(events, vocabulary)[4:] == ["UNKNOWN//LAB", "TIMELINE_END"]
    assert tokenize(events, vocabulary).row_counts["missing_value"] == 1


def test_a_subject_without_events_has_an_unknown_age_and_period() -> None:
    events = pl.concat([subject(1, []), subject(2, [(at(0), "ICD10CM//I10", None)]), subject(3, [])])
    vocabulary = make_vocabulary(events)
    tokenized = tokenize(events, vocabulary)
    assert [len(record.tokens_T) for record in tokenized.records()] == [5, 6, 5]
    last = [vocabulary.tokens[token].text for token in tokenized.record(2).tokens_T]
    assert last == ["SEX//F", "RACE//WHITE", "AGE//UNKNOWN", "PERIOD//UNKNOWN", "TIMELINE_END"]


def test_age_is_unknown_before_birth_and_one_group_from_a_hundred_on() -> None:
    years = {1960: "AGE//UNKNOWN", 1971: "AGE//0-4", 2071: "AGE//100+", 2080: "AGE//100+"}
    # Of several births the earliest counts.
    later_birth = (datetime.datetime(1978, 1, 1), "MEDS_BIRTH", None)
    rows = sorted([later_birth, *((datetime.datetime(year, 1, 1), "ICD10CM//I10", None) for year in years)])
    head = [(1, None, "SEX//F", None), (1, BIRTH, "MEDS_BIRTH", None)]
    events = frame(head + [(1, *row) for row in rows]).sort("time", maintain_order=True)
    vocabulary = make_vocabulary(events)
    record = tokenize(events, vocabulary).record(0)
    starts = np.flatnonzero(record.tokens_T == vocabulary.ids["ICD10CM//I10"])
    assert [vocabulary.tokens[record.prefix_at(start)[2]].text for start in starts] == list(years.values())


def test_who_a_subject_is_has_a_token_only_if_enough_subjects_are_it() -> None:
    """A race that one person has, or the decade in which one person was seen, would single that person out."""
    common = [subject(number, [(at(0), "CPT//99213", None)]) for number in (1, 2)]
    # Told at each of three admissions, and still one person.
    told = [(at(minutes), code, None) for minutes in (0, 1, 2) for code in ("SEX//M", "RACE//RARE")]
    early = [(datetime.datetime(2012, month, 1), "CPT//99213", None) for month in (1, 2, 3)]
    events = pl.concat([*common, subject(3, early + told, static=())])
    static = statistics.count(to_columns(events, code_maps.named("world"))).static
    assert dict(static.iter_rows()) == {
        "SEX//F": 2,
        "SEX//M": 1,
        "RACE//WHITE": 2,
        "RACE//RARE": 1,
        "PERIOD//2010-2014": 1,
        "PERIOD//2020-2024": 2,
    }
    vocabulary = make_vocabulary(events, min_subjects=2)
    said = {token.text for token in vocabulary.tokens if token.grammar == "static" and not token.text.startswith("AGE")}
    unknown = {"SEX//UNKNOWN", "RACE//UNKNOWN", "PERIOD//UNKNOWN"}
    assert said == {"SEX//F", "RACE//WHITE", "PERIOD//2020-2024", *unknown}
    prefix = tokenize(events, vocabulary).record(2).prefixes[-1]
    assert {vocabulary.tokens[token].text for token in prefix} == {*unknown, "AGE//40-44"}


def test_rows_without_a_time_are_counted_and_no_events() -> None:
    events = subject(1, [(at(0), "CPT//99213", None)], static=(("SEX//F",), ("CPT//99213",), ("ICD10CM//I10",)))
    tokenized = tokenize(events, make_vocabulary(events))
    assert tokenized.row_counts["undated"] == 2 and tokenized.row_counts["kept"] == 1
    assert len(tokenized.tokens_T) == 6


def test_deciles_are_cut_exactly() -> None:
    edges, means = vocabulary_builder.deciles(np.arange(20.0), np.full(20, 7))
    assert edges == tuple(np.arange(1.0, 19.0, 2.0)) and means == tuple(np.arange(0.5, 20.0, 2.0))
    # A decile that ties leave empty has its cut for a mean.
    edges, means = vocabulary_builder.deciles(np.array([1.0, 2.0]), np.array([95, 5]))
    assert edges == (1.0,) * 9 and means == (1.0,) * 9 + (2.0,)


rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([0.0, 0.4, 1.0, 7.0, 90.0, 60 * 30.0, 60 * 24 * 9.0, 60 * 24 * 400.0]),
        st.sampled_from(CODES),
        st.one_of(st.none(), st.floats(-1e3, 1e3, width=32)),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows_strategy, st.integers(1, 3))
def test_tokens_obey_the_grammar_and_read_back_as_the_events(rows, min_subjects) -> None:
    by_subject: dict[int, list] = {}
    for number, gap, code, value in rows:
        own = by_subject.setdefault(number, [])
        last = own[-1][0] if own else START
        own.append((last + datetime.timedelta(minutes=gap), code, value if code.startswith("LOINC") else None))
    events = pl.concat([subject(number, own) for number, own in sorted(by_subject.items())])
    vocabulary = make_vocabulary(events, min_subjects)
    tokenized = tokenize(events, vocabulary)
    assert sum(tokenized.row_counts.values()) == len(events)
    assert len(tokenized.tokens_T) == tokenized.offsets_S1[-1]
    for record, (_, own) in zip(tokenized.records(), sorted(by_subject.items()), strict=True):
        tokens = record.tokens_T.tolist()
        assert grammar.is_valid(tokens, vocabulary)
        parsed = grammar.parse(tokens, vocabulary)
        assert len(parsed) == len(own)
        assert not any(event.event == grammar.INVALID for event in parsed)
        if min_subjects == 1:
            named = sorted(vocabulary.events[event.event].concept for event in parsed)
            concepts = [vocabulary.code_map.map(code).name for _, code, value in own]
            lacking = sum(name == "UNKNOWN//LAB" for name in named)
            assert lacking == tokenized.row_counts["missing_value"]
            if not lacking:
                assert named == sorted(concepts)


@pytest.mark.parametrize("broken", [["first", "static"], ["value"], ["part"], ["interval", "interval2"], ["interval"]])
def test_the_grammar_refuses_what_no_timeline_holds(broken) -> None:
    events = subject(
        1, [(at(0), "ICD10CM//E11.65", None), (at(1), "LOINC//2345-7", 1.0), (at(2), "LOINC//2345-7", 2.0)]
    )
    vocabulary = make_vocabulary(events)
    example = {
        "first": vocabulary.ids["LOINC//2345-7"],
        "static": vocabulary.ids["SEX//F"],
        "value": vocabulary.ids["VALUE//1"],
        "part": vocabulary.ids["ICD10CM//2//6"],
        "interval": vocabulary.interval_ids[0],
        "interval2": vocabulary.interval_ids[1],
    }
    whole = tokenize(events, vocabulary, end=False).record(0).tokens_T.tolist()
    assert grammar.is_valid(whole, vocabulary)
    assert not grammar.is_valid([*whole, *(example[name] for name in broken)], vocabulary)


def test_codes_of_one_concept_stand_together_by_value() -> None:
    rows = [(at(0), "LOINC//2345-7", value) for value in (1.0, 3.0)] + [(at(0), "LOINC//2345-7 ", 2.0)]
    vocabulary = make_vocabulary(subject(1, rows))
    assert texts(subject(1, rows), vocabulary)[4:-1:2] == ["LOINC//2345-7"] * 3
    deciles = [int(text.split("//")[1]) for text in texts(subject(1, rows), vocabulary)[5:-1:2]]
    assert deciles == sorted(deciles) and len(set(deciles)) == 3


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_values_are_counted_in_order_and_exactly(values) -> None:
    events = subject(1, [(at(0), "LOINC//2345-7", value) for value in values])
    counted = statistics.count(to_columns(events, code_maps.named("world"))).values
    expected = sorted({float(np.float32(value)) + 0.0 for value in values})
    assert counted["value"].to_list() == expected
    assert counted["events"].to_list() == [sum(float(v) == value for v in values) for value in expected]
