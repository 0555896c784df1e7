"""Where a record ends: with its last event, or with observation, after the silence until then."""

import datetime

import numpy as np
import polars as pl
import pytest

from cometjax import tasks
from data_pipeline import build_config, code_maps, grammar, meds, statistics, vocabulary_builder
from data_pipeline.build import build_corpus
from data_pipeline.columns import to_columns
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.show_tables import how_records_end
from data_pipeline.show_timeline import timeline
from data_pipeline.tokenizer import CodeTable, tokenize, tokenize_columns
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.world.reading import Reader

START = datetime.datetime(2020, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
HALF_YEAR = 182.625


def row(subject: int, days: float | None, code: str) -> tuple:
    return (subject, None if days is None else START + datetime.timedelta(days=days), code, None)


def person(subject: int, *rows: tuple[float, str], age: int = 50) -> list[tuple]:
    return [row(subject, None, "SEX//F"), row(subject, -365.25 * age, "MEDS_BIRTH"), *(row(subject, *r) for r in rows)]


def vocabulary_of(rows: list[tuple], **policy) -> Vocabulary:
    world = code_maps.named("world")
    counts = statistics.count(to_columns(pl.DataFrame(rows, schema=SCHEMA, orient="row"), world))
    return vocabulary_builder.build_vocabulary(counts, world, {}, vocabulary_builder.VocabularyPolicy(**policy))


def tails(rows: list[tuple], vocabulary: Vocabulary, **how) -> list[list[str]]:
    """What stands after each subject's only event."""
    tokenized = tokenize(pl.DataFrame(rows, schema=SCHEMA, orient="row"), vocabulary, **how)
    for record in tokenized.records():
        assert not how.get("end", True) or grammar.is_valid(record.tokens_T.tolist(), vocabulary)
    return [[vocabulary.tokens[token].text for token in record.tokens_T[5:]] for record in tokenized.records()]


PEOPLE = [
    *person(1, (0, "CPT//99213"), (10, "OBSERVATION_END")),
    *person(2, (0, "CPT//99213"), (3.4 * HALF_YEAR, "OBSERVATION_END")),
    *person(3, (0, "CPT//99213")),
    *person(4, (0, "MEDS_DEATH"), (10, "OBSERVATION_END")),
    *person(5, (0, "OBSERVATION_END"), (1, "CPT//99213")),
    *person(6, (10, "OBSERVATION_END")),
]
SILENT = ["INTERVAL//1w-2w", "TIMELINE_END"]
END = ["TIMELINE_END"]


def test_the_silence_until_observation_ends_is_told_but_not_of_the_dead() -> None:
    vocabulary = vocabulary_of(PEOPLE)
    assert vocabulary.knows_follow_up
    long = ["INTERVAL//6mt+"] * 3 + END
    assert tails(PEOPLE, vocabulary) == [SILENT, long, END, END, END, []]  # of the last one the prefix and the end
    assert tails(PEOPLE, vocabulary, end=False)[:2] == [[], []]
    counted = tokenize(pl.DataFrame(PEOPLE, schema=SCHEMA, orient="row"), vocabulary)
    assert counted.open_ended == 2  # subjects 3 and 5
    assert counted.row_counts["observation_end"] == 5 and sum(counted.row_counts.values()) == len(PEOPLE)
    assert not sum(counted.interval_tokens_I)  # silences are no gaps between events
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_nothing_is_told_where_training_has_no_such_event_or_it_is_not_wanted() -> None:
    without = [r for r in PEOPLE if r[2] != "OBSERVATION_END"]
    for vocabulary in (vocabulary_of(without), vocabulary_of(PEOPLE, observed_until="last_event")):
        assert not vocabulary.knows_follow_up and "follow_up" not in vocabulary.to_json()
        assert tails(PEOPLE, vocabulary)[:3] == [END, END, END]


def test_one_date_may_end_all_and_its_day_is_observed() -> None:
    vocabulary = vocabulary_of(PEOPLE, observed_until="2020-01-10")
    assert (
        tails(
            PEOPLE,
            vocabulary,
        )[0]
        == SILENT
    )
    frame = pl.DataFrame(PEOPLE, schema=SCHEMA, orient="row")
    columns = to_columns(frame, vocabulary.code_map)
    codes = CodeTable.build(columns.concepts, vocabulary)
    for date, interval, living in (("2020-01-07", "1w-2w", 0), ("2020-01-06", "3d-1w", 0), ("2019-12-01", "", 4)):
        told = tokenize_columns(columns, codes, vocabulary, observed_until=date)
        ends = [vocabulary.tokens[token].text for token in told.record(2).tokens_T[5:]]
        assert ends == ([f"INTERVAL//{interval}"] if interval else []) + END
        assert told.open_ended == living


@pytest.fixture
def data(write_meds):
    rows = {f"train/{i}": [r for r in PEOPLE if r[0] == i] for i in range(1, 7)}
    return write_meds(rows, dict.fromkeys(range(1, 7), "train"))


def config(**changes):
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=1)
    content.update(**changes)
    return content


def ends_of(corpus: Corpus) -> list[list[str]]:
    split = corpus.split("train")
    return [
        [corpus.vocabulary.tokens[token].text for token in split.record(index).tokens_T[5:]]
        for index in range(len(split))
    ]


def test_a_build_tells_of_whom_nothing_is_known(data, tmp_path, capsys) -> None:
    corpus = build_corpus(data, tmp_path / "c", config(), workers=1)
    assert ends_of(corpus)[:2] == [SILENT, ["INTERVAL//6mt+"] * 3 + END]
    assert corpus.manifest["splits"]["train"]["subjects_without_observation_end"] == 2
    assert "nothing tells how long 2 living subjects were observed after the last event" in capsys.readouterr().err
    assert how_records_end(corpus, ["train"]) == "records end with observation, but for 2 whose end is not known"
    dated = build_corpus(data, tmp_path / "d", config(observed_until="2020-01-10"), workers=1)
    assert how_records_end(dated, ["train"]) == "records end with observation"
    assert ends_of(dated)[2] == SILENT and "observed" not in capsys.readouterr().err


def test_a_cohorts_last_date_and_oldest_age_end_observation_too(data, tmp_path) -> None:
    asked = config()
    asked.cohort.last_date = "2020-01-04"
    corpus = build_corpus(data, tmp_path / "c", asked, workers=1)
    assert ends_of(corpus)[0] == ["INTERVAL//3d-1w", "TIMELINE_END"]
    asked.cohort.update(last_date=None, max_age=50)
    corpus = build_corpus(data, tmp_path / "d", asked, workers=1)
    assert ends_of(corpus)[1] == ["INTERVAL//6mt+"] * 2 + END  # a year, and not 1.7


@pytest.mark.parametrize("told, asked", [("auto", "last_event"), ("last_event", "2020-01-01")])
def test_a_frozen_vocabulary_that_means_another_end_is_refused(data, tmp_path, told, asked) -> None:
    source = build_corpus(data, tmp_path / "source", config(observed_until=told), workers=1)
    with pytest.raises(UserError, match=r"config\.observed_until"):
        build_corpus(data, tmp_path / "c", config(observed_until=asked), workers=1, vocabulary=source.root)


def test_the_date_of_other_data_is_free_under_a_frozen_vocabulary(data, tmp_path) -> None:
    source = build_corpus(data, tmp_path / "source", config(), workers=1)
    corpus = build_corpus(data, tmp_path / "c", config(observed_until="2020-01-02"), workers=1, vocabulary=source.root)
    assert ends_of(corpus)[0] == ["INTERVAL//1d-3d", "TIMELINE_END"]
    assert corpus.manifest["config"]["observed_until"] == "2020-01-02"


def test_what_is_no_date_is_refused(data, tmp_path) -> None:
    with pytest.raises(UserError, match=r"config\.observed_until: '2020-13-01' is not a date"):
        build_corpus(data, tmp_path / "c", config(observed_until="2020-13-01"), workers=1)


def test_the_end_of_observation_is_no_event_of_a_task_and_not_the_datas_end(data) -> None:
    events = tasks.read_events(meds.open_dataset(data), [1, 2], code_maps.named("world"))
    assert {concept.role for concept in events.concepts} == {"sex", "birth", ""}
    assert events.end_us == (START + datetime.timedelta(days=1) - datetime.datetime(1970, 1, 1)) // datetime.timedelta(
        microseconds=1
    )


def test_a_timeline_says_how_it_ends() -> None:
    vocabulary = vocabulary_of(PEOPLE)
    records = list(tokenize(pl.DataFrame(PEOPLE, schema=SCHEMA, orient="row"), vocabulary).records())
    assert list(timeline(records[0], vocabulary))[-1].endswith("Not observed any longer")
    assert list(timeline(records[3], vocabulary))[-1].endswith("End of the record")


@pytest.mark.parametrize("observed_until", ["auto", "last_event"])
def test_the_worlds_probabilities_of_what_follows_a_last_event_sum_to_one(world_meds, tmp_path, observed_until) -> None:
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20, observed_until=observed_until)
    corpus = build_corpus(world_meds, tmp_path / "c", content, workers=1)
    reader, vocabulary = Reader(corpus.vocabulary), corpus.vocabulary
    tuning, death = corpus.split("tuning"), vocabulary.ids["DEATH"]
    records = [tuning.record(index).tokens_T for index in np.argsort(tuning.lengths_R)[:8]]
    tokens = next(tokens_T for tokens_T in records if death not in tokens_T)[:-1]
    while tokens[-1] in vocabulary.interval_ids:  # the silence
        tokens = tokens[:-1]
    reading = reader.read([np.append(tokens, token) for token in range(len(vocabulary))])
    p = np.exp(np.nan_to_num(reading.log_T[reading.offsets_S1[1:] - 1], nan=-np.inf))
    assert (p[vocabulary.ids["TIMELINE_END"]] > 0) == (observed_until == "last_event")
    assert (p[list(vocabulary.interval_ids)] > 0).any() and abs(p.sum() - 1) < 1e-9


def test_the_generic_map_takes_an_end_of_observation_for_no_event() -> None:
    generic = code_maps.named("generic")
    for code, role in (("OBSERVATION_END", "observation_end"), ("observation_period_end", "observation_end")):
        assert generic.map(code).role == role
    assert generic.map("OBSERVATION//END_TIDAL_CO2").role == generic.map("OBSERVATION_ENDOSCOPY").role == ""
