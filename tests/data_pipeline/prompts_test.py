"""Prompts: the tokenizer's output up to the prediction time, and nothing that comes after it."""

import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest

from data_pipeline import meds, prompts
from data_pipeline.columns import NO_TIME, to_columns
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.prompts import build_prompts
from data_pipeline.tokenizer import tokenize


@pytest.fixture(scope="module")
def vocabulary(world_corpus):
    return Corpus.open(world_corpus).vocabulary


@pytest.fixture(scope="module")
def dataset(world_meds):
    return meds.open_dataset(world_meds)


@pytest.fixture(scope="module")
def labels(dataset):
    """Two prediction times in the middle of each of twelve subjects' histories, each at one of its events."""
    events = meds.read_shard(dataset.shards[0]).filter(pl.col("time").is_not_null())
    rows = []
    for (subject,), own in list(events.partition_by("subject_id", as_dict=True, maintain_order=True).items())[:12]:
        rows += [(subject, own["time"][len(own) // part]) for part in (3, 2)]
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_a_prompt_is_the_beginning_of_the_corpus_record(dataset, labels, vocabulary, world_corpus) -> None:
    corpus = Corpus.open(world_corpus)
    whole = {}
    for name in ("train", "tuning", "held_out"):
        reader = corpus.split(name)
        whole |= {reader.record(index).subject_id: reader.record(index) for index in range(len(reader))}
    for prompt in build_prompts(dataset, labels, vocabulary):
        tokens_T = prompt.record.tokens_T
        assert len(tokens_T) > 4
        np.testing.assert_array_equal(tokens_T, whole[prompt.subject_id].tokens_T[: len(tokens_T)])
        # The prediction times are those of events, and an event at that very time belongs to the history.
        assert prompt.last_time_us == prompt.prediction_time_us


def test_changing_any_later_event_changes_nothing(dataset, labels, vocabulary, tmp_path, world_meds) -> None:
    before = build_prompts(dataset, labels, vocabulary)
    latest = labels.group_by("subject_id").agg(pl.col("prediction_time").max())
    later = pl.col("time") > pl.col("prediction_time")
    changed = 0
    for path in world_meds.rglob("*.parquet"):
        target = tmp_path / "meds" / path.relative_to(world_meds)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.parent.name != "data":
            target.write_bytes(path.read_bytes())
            continue
        spoilt = (
            pl.read_parquet(path)
            .join(latest, on="subject_id", how="left", maintain_order="left")
            .with_columns(
                code=pl.when(later).then(pl.lit("MEDS_DEATH")).otherwise(pl.col("code")),
                numeric_value=pl.when(later).then(None).otherwise(pl.col("numeric_value")),
            )
        )
        changed += spoilt.filter(later).height
        spoilt.drop("prediction_time").write_parquet(target)
    (tmp_path / "meds/metadata/dataset.json").write_bytes((world_meds / "metadata/dataset.json").read_bytes())
    assert changed > 300
    for prompt, spoilt in zip(
        before, build_prompts(meds.open_dataset(tmp_path / "meds"), labels, vocabulary), strict=True
    ):
        np.testing.assert_array_equal(prompt.record.tokens_T, spoilt.record.tokens_T)
        assert prompt.last_time_us == spoilt.last_time_us


def test_a_long_history_keeps_its_prefix_and_its_latest_whole_entries(dataset, labels, vocabulary) -> None:
    for prompt in build_prompts(dataset, labels, vocabulary):
        tokens = prompt.tokens(40)
        if len(prompt.record.tokens_T) <= 40:
            np.testing.assert_array_equal(tokens, prompt.record.tokens_T)
            continue
        assert 30 <= len(tokens) <= 40 and tokens.dtype == np.int32
        assert [vocabulary.tokens[t].grammar for t in tokens[:4]] == ["static"] * 4
        assert vocabulary.tokens[tokens[4]].grammar in ("first", "interval")
        np.testing.assert_array_equal(tokens[4:], prompt.record.tokens_T[-len(tokens) + 4 :])


def test_a_prediction_time_before_all_data_is_refused(dataset, vocabulary, write_meds) -> None:
    day = datetime.datetime(2020, 1, 1)
    root = write_meds({"train/0": [(7, day, "CPT//99213", None)]}, {7: "train"})
    labels = pl.DataFrame({"subject_id": [7], "prediction_time": [day - datetime.timedelta(days=1)]})
    with pytest.raises(UserError, match="row 0"):
        build_prompts(meds.open_dataset(root), labels, vocabulary)


def test_an_entry_is_an_event_with_the_intervals_that_lead_to_it(vocabulary, write_meds) -> None:
    days = [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=number) for number in (0, 0, 20, 400)]
    dataset = meds.open_dataset(write_meds({"train/0": [(7, day, "CPT//99213", None) for day in days]}, {7: "train"}))
    labels = pl.DataFrame({"subject_id": [7], "prediction_time": [days[-1]]})
    (prompt,) = build_prompts(dataset, labels, vocabulary)
    spelt = [vocabulary.tokens[token].grammar for token in prompt.record.tokens_T[4:]]
    assert spelt == ["first", "first", "interval", "first", "interval", "interval", "first"]
    assert prompt.event_starts.tolist() == [4, 5, 6, 8]
    # Without room for both intervals of the last event there is no entry.
    assert [len(prompt.tokens(most)) for most in (11, 10, 9, 8, 7, 6)] == [11, 10, 9, 7, 7, 4]


def test_a_window_that_begins_later_has_the_age_and_the_period_of_then(dataset, labels, vocabulary) -> None:
    prompts = build_prompts(dataset, labels, vocabulary)
    moved = 0
    for prompt, later in zip(prompts[::2], prompts[1::2], strict=True):
        np.testing.assert_array_equal(prompt.prefix_before(1), prompt.record.prefixes[-1])
        np.testing.assert_array_equal(prompt.prefix_before(len(prompt.record.tokens_T)), prompt.record.prefixes[0])
        seconds = (later.prediction_time_us - prompt.prediction_time_us) // 1_000_000
        expected, prefix = later.record.prefixes[-1], prompt.prefix_after(seconds, vocabulary)
        np.testing.assert_array_equal(prefix[2:], expected[2:])
        np.testing.assert_array_equal(prefix[:2], prompt.record.prefixes[-1][:2])
        moved += (prefix != prompt.record.prefixes[-1]).any()
        unborn = dataclasses.replace(prompt, birth_us=NO_TIME).prefix_after(seconds, vocabulary)
        assert vocabulary.tokens[unborn[2]].text == "AGE//UNKNOWN"
    assert moved > 3


def test_few_events_are_tokenized_at_once_however_long_a_history_is(dataset, labels, vocabulary, monkeypatch) -> None:
    whole = build_prompts(dataset, labels, vocabulary)
    longest = meds.read_subjects(dataset, labels["subject_id"]).group_by("subject_id").len()["len"].max()
    sizes = []

    def counted(events: pl.DataFrame, *args, **kwargs):
        sizes.append(len(events))
        return to_columns(events, *args, **kwargs)

    monkeypatch.setattr(prompts, "EVENTS_AT_ONCE", 500)
    monkeypatch.setattr(prompts, "to_columns", counted)
    for prompt, expected in zip(build_prompts(dataset, labels, vocabulary), whole, strict=True):
        np.testing.assert_array_equal(prompt.record.tokens_T, expected.record.tokens_T)
        np.testing.assert_array_equal(prompt.event_starts, expected.event_starts)
        assert (prompt.subject_id, prompt.last_time_us) == (expected.subject_id, expected.last_time_us)
    assert 2 < len(sizes) < len(labels) and max(sizes) <= 500 + longest


def test_a_prefix_tells_only_what_was_told_by_then(vocabulary, write_meds) -> None:
    """Race is often written at each admission: told before the first, it would tell that an admission comes."""
    day = {number: datetime.datetime(2020, 1, 1) + datetime.timedelta(days=number) for number in (0, 10, 20, 300, 400)}
    rows = [(7, None, "SEX//F", None), (7, day[0], "CPT//99213", None)]
    rows += [(7, day[10], code, None) for code in ("RACE//WHITE", "RACE//OTHER", "RACE//BLACK")]
    rows += [(7, day[20], "CPT//99213", None), (7, day[300], "RACE//ASIAN", None), (7, day[400], "CPT//99213", None)]
    dataset = meds.open_dataset(write_meds({"train/0": rows}, {7: "train"}))
    whole = tokenize(meds.read_subjects(dataset, [7]), vocabulary).record(0)

    def race(record, start: int) -> str:
        return vocabulary.tokens[record.prefix_at(start)[1]].text

    # A window knows what was told by its first instant: the first row counts, of one time the first by code.
    assert [race(whole, start) for start in whole.prefix_starts] == ["RACE//UNKNOWN", "RACE//BLACK"]
    assert vocabulary.tokens[whole.tokens_T[whole.prefix_starts[1]]].grammar == "interval"
    labels = pl.DataFrame({"subject_id": [7] * 5, "prediction_time": list(day.values())})
    prompts = build_prompts(dataset, labels, vocabulary)
    for prompt, (latest, tokens) in zip(prompts, [(0, 5), (0, 5), (20, 7), (20, 7), (400, 10)], strict=True):
        record = prompt.record
        assert prompt.last_time_us == int((day[latest] - datetime.datetime(1970, 1, 1)).total_seconds() * 1e6)
        np.testing.assert_array_equal(record.tokens_T, whole.tokens_T[:tokens])
        assert [race(record, start) for start in range(tokens)] == [race(whole, start) for start in range(tokens)]


def test_a_subject_without_events_has_the_prefix_that_its_rows_tell(vocabulary, write_meds) -> None:
    rows = [(7, datetime.datetime(2020, 1, 1), "RACE//WHITE", None), (7, datetime.datetime(2020, 1, 2), "SEX//F", None)]
    dataset = meds.open_dataset(write_meds({"train/0": rows}, {7: "train"}))
    labels = pl.DataFrame({"subject_id": [7, 7], "prediction_time": [row[1] for row in rows]})
    for prompt, sex in zip(build_prompts(dataset, labels, vocabulary), ("SEX//UNKNOWN", "SEX//F"), strict=True):
        said = [vocabulary.tokens[token].text for token in prompt.tokens(100)]
        assert said == [sex, "RACE//WHITE", "AGE//UNKNOWN", "PERIOD//UNKNOWN"]
