"""Simulated tokens read back as events and MEDS rows."""

import dataclasses
import functools

import meds
import numpy as np
import polars as pl
import pyarrow.parquet

from cometjax import trajectories
from cometjax.engine import Future
from data_pipeline import code_maps, intervals
from data_pipeline.vocabulary import DECILES, Event, Token, Vocabulary

NOW = 1_500_000_000_000_000
MEANS = tuple(float(10 * decile) for decile in range(1, DECILES + 1))


@functools.cache
def vocabulary_of() -> Vocabulary:
    preset = intervals.COMET13
    tokens = [Token("PAD", "SPECIAL", "pad"), Token("TIMELINE_END", "SPECIAL", "end"), Token("DEATH", "DEATH", "first")]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in preset.names]
    tokens += [Token(f"VALUE//{decile}", "VALUE", "value") for decile in range(1, DECILES + 1)]
    tokens += [
        Token("ICD10CM//E11", "DIAGNOSIS", "first"),
        Token("ICD10CM//2//6", "DIAGNOSIS", "part"),
        Token("LOINC//2345-7", "LAB", "first"),
    ]
    ids = {token.text: index for index, token in enumerate(tokens)}
    events = (
        Event("DEATH", "DEATH", "death", (ids["DEATH"],)),
        Event("DIAGNOSIS//ICD10CM//E11", "DIAGNOSIS", "", (ids["ICD10CM//E11"],)),
        Event("DIAGNOSIS//ICD10CM//E116", "DIAGNOSIS", "", (ids["ICD10CM//E11"], ids["ICD10CM//2//6"])),
        Event("LAB//LOINC//2345-7", "LAB", "", (ids["LOINC//2345-7"],), "always", MEANS[:-1], MEANS),
    )
    seconds = tuple(float(low) + 0.4 for low in preset.lower_seconds)
    return Vocabulary(tuple(tokens), events, preset, seconds, code_maps.named("generic"))


def future_of(*texts: str, stop: str = "length", start_seconds: int = 0, sample: int = 0) -> Future:
    ids = vocabulary_of().ids
    return Future(5, NOW, sample, np.array([ids[text] for text in texts], np.int32), stop, start_seconds)


FUTURE = future_of(
    "ICD10CM//E11", "INTERVAL//1d-3d", "ICD10CM//E11", "ICD10CM//2//6", "LOINC//2345-7", "VALUE//3", "INTERVAL//1h-2h",
    "DEATH", stop="death",
)  # fmt: skip


def test_events_have_their_concept_time_and_value() -> None:
    day, hour = 86_400_000_000, 3_600_000_000
    assert trajectories.events_of(FUTURE, vocabulary_of()) == [
        ("DIAGNOSIS//ICD10CM//E11", "DIAGNOSIS", NOW, None),
        ("DIAGNOSIS//ICD10CM//E116", "DIAGNOSIS", NOW + day, None),
        ("LAB//LOINC//2345-7", "LAB", NOW + day, 30.0),
        ("DEATH", "DEATH", NOW + day + hour, None),
    ]


def test_the_clock_starts_where_the_first_interval_began() -> None:
    future = future_of("INTERVAL//1d-3d", "ICD10CM//E11", start_seconds=-86_000)
    assert trajectories.events_of(future, vocabulary_of())[0][2] == NOW + 400_000_000


def test_tokens_that_spell_no_event_are_counted_and_left_out() -> None:
    broken = future_of("ICD10CM//2//6", "LOINC//2345-7", "INTERVAL//1h-2h", "VALUE//2", "ICD10CM//E11", "LOINC//2345-7")
    vocabulary = vocabulary_of()
    assert [event[0] for event in trajectories.events_of(broken, vocabulary)] == ["DIAGNOSIS//ICD10CM//E11"]
    assert trajectories.count_invalid(broken, vocabulary) == (4, 5)
    assert trajectories.count_invalid(FUTURE, vocabulary) == (0, 4)


def test_meds_rows_obey_the_standard_and_the_trajectory_schema(tmp_path) -> None:
    rows = trajectories.to_meds([FUTURE, future_of(sample=1)], vocabulary_of())
    trajectories.write_parquet(rows, tmp_path / "rows.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    meds.DataSchema.validate(table)
    assert not table.schema.field("prediction_time").nullable
    assert rows.schema == pl.Schema(trajectories.SCHEMA)
    assert rows["prediction_time"].null_count() == 0 and rows["time"].null_count() == 0
    assert rows["code"].to_list()[-3:] == ["MEDS_DEATH", "TRAJECTORY_END//death", "TRAJECTORY_END//length"]
    assert rows["numeric_value"].to_list()[:3] == [None, None, 30.0]
    assert (rows["time"] >= rows["prediction_time"]).all()


def test_no_futures_are_an_empty_table_of_the_same_schema() -> None:
    assert trajectories.to_meds([], vocabulary_of()).schema == pl.Schema(trajectories.SCHEMA)


def test_results_in_words_are_the_text_of_their_rows() -> None:
    known = vocabulary_of()
    tokens = (*known.tokens, Token("TEXT//NEG", "VALUE", "value"))
    lab = dataclasses.replace(known.events[-1], texts=("NEG",))
    vocabulary = dataclasses.replace(known, tokens=tokens, events=(*known.events[:-1], lab))
    future = future_of("LOINC//2345-7")
    future = dataclasses.replace(future, tokens_T=np.append(future.tokens_T, vocabulary.ids["TEXT//NEG"]))
    rows = trajectories.to_meds([future], vocabulary)
    assert rows.select("code", "numeric_value", "text_value").row(0) == ("LAB//LOINC//2345-7", None, "NEG")
