"""Building a corpus: its bytes, its accounts, and what happens when the input or the place is wrong."""

import datetime
import json
import pathlib
import shutil

import numpy as np
import polars as pl
import pytest

from data_pipeline import build_config, grammar
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.show_tables import overview
from data_pipeline.vocabulary import Vocabulary

DAY = datetime.datetime(2020, 1, 1)


def rows_of(subject: int, count: int = 3):
    yield (subject, None, "SEX//F", None)
    for index in range(count):
        yield (subject, DAY + datetime.timedelta(hours=index), "LOINC//2345-7", float(index))


def config(**changes):
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=1, min_values_per_code=2)
    content.update(**changes)
    return content


@pytest.fixture
def small(write_meds):
    shards = {"train/0": [*rows_of(1), *rows_of(2)], "train/1": list(rows_of(3)), "tuning/0": list(rows_of(4, 5))}
    return write_meds(shards, {1: "train", 2: "train", 3: "train", 4: "tuning"})


def test_a_corpus_reads_back_as_what_was_built(small, tmp_path) -> None:
    corpus = build_corpus(small, tmp_path / "corpus", config(), workers=1)
    train = corpus.split("train")
    assert [train.record(index).subject_id for index in range(len(train))] == [1, 2, 3] == list(train.subject_ids_R)
    for index in range(len(train)):
        record = train.record(index)
        assert len(record.tokens_T) == train.lengths_R[index]
        assert grammar.is_valid(record.tokens_T.tolist(), corpus.vocabulary)
    assert corpus.manifest["splits"]["tuning"]["subjects"] == 1


def test_the_bytes_do_not_depend_on_the_number_of_workers(world_meds, world_corpus, tmp_path) -> None:
    changes = json.loads((world_corpus / "corpus.json").read_text())["config"]
    build_corpus(world_meds, tmp_path / "two", config(**changes), workers=2)
    files = sorted(path.relative_to(world_corpus) for path in world_corpus.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    for file in files:
        assert (world_corpus / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_every_row_of_the_input_is_accounted_for(world_meds, world_corpus) -> None:
    manifest = Corpus.open(world_corpus).manifest
    rows = sum(sum(split["rows"].values()) for split in manifest["splits"].values())
    assert rows == sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in world_meds.rglob("data/*/*"))


def test_only_training_subjects_make_the_vocabulary(write_meds, tmp_path) -> None:
    shards = {"train/0": list(rows_of(1)), "tuning/0": [(2, DAY, "CPT//99213", None)]}
    corpus = build_corpus(write_meds(shards, {1: "train", 2: "tuning"}), tmp_path / "c", config(), workers=1)
    assert "CPT//99213" not in corpus.vocabulary.ids
    assert corpus.manifest["splits"]["tuning"]["rows"]["unknown_code"] == 1


def test_interval_means_are_those_of_the_training_split(write_meds, tmp_path) -> None:
    of = {"train/0": (1, 70), "train/1": (2, 90), "tuning/0": (3, 61)}  # a subject and the minutes between its events
    rows = {
        name: [(subject, DAY + datetime.timedelta(minutes=minute), "CPT//99213", None) for minute in (0, minutes)]
        for name, (subject, minutes) in of.items()
    }
    root = write_meds(rows, {1: "train", 2: "train", 3: "tuning"})
    vocabulary = build_corpus(root, tmp_path / "c", config(), workers=1).vocabulary
    assert vocabulary.seconds_per_token()[vocabulary.ids["INTERVAL//1h-2h"]] == 80 * 60
    # Half of them last 70 minutes and half 90, to a 64th of the hour; of an interval without a gap a mean is known.
    quantiles = np.array(vocabulary.interval_quantiles[3]) / 60
    assert (np.abs(quantiles[:16] - 70) < 1).all() and (np.abs(quantiles[16:] - 90) < 1).all()
    assert set(vocabulary.interval_quantiles[0]) == {round(vocabulary.interval_seconds[0])}
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_interval_means_hold_for_more_patient_years_than_64_bits_count(write_meds, tmp_path) -> None:
    """A large hospital's: 292,000 years of microseconds fill an int64. Here 3,000 and 1,500 spans of 110 years."""
    span = [DAY.replace(year=1910), DAY.replace(year=2020)]
    files = {"train/0": range(1, 3001), "train/1": range(3001, 4501)}
    rows = {
        name: [(s, time, "CPT//99213", None) for s in subjects for time in span] for name, subjects in files.items()
    }
    root = write_meds(rows, dict.fromkeys(range(1, 4501), "train"))
    vocabulary = build_corpus(root, tmp_path / "c", config(), workers=1).vocabulary
    seconds = (span[1] - span[0]).total_seconds()
    _, (repeats,) = vocabulary.interval_preset.classify(np.array([seconds]))
    assert vocabulary.interval_seconds[-1] == pytest.approx(seconds / repeats)


def test_the_world_tokenizes_by_the_grammar(world_corpus) -> None:
    corpus = Corpus.open(world_corpus)
    reader = corpus.split("train")
    for index in range(0, len(reader), 10):
        assert grammar.is_valid(reader.record(index).tokens_T.tolist(), corpus.vocabulary)


def test_the_mimic_demo_tokenizes_by_the_grammar(mimic_demo, tmp_path) -> None:
    corpus = build_corpus(mimic_demo, tmp_path / "c", config(code_map="mimic", min_subjects_per_code=5), workers=1)
    reader = corpus.split("held_out")
    assert len(reader) == 10
    for index in range(len(reader)):
        assert grammar.is_valid(reader.record(index).tokens_T.tolist(), corpus.vocabulary)
    rows = [split["rows"] for split in corpus.manifest["splits"].values()]
    assert sum(sum(counts.values()) for counts in rows) == 916_166


def test_a_place_that_holds_something_is_refused(small, tmp_path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("precious")
    with pytest.raises(UserError, match="already exists"):
        build_corpus(small, tmp_path / "c", config(), workers=1)
    assert (tmp_path / "c" / "mine").read_text() == "precious"


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_a_place_that_is_no_name_is_refused(small, tmp_path, monkeypatch, place) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="not the name of a new folder"):
        build_corpus(small, pathlib.Path(place), config(), workers=1)


def _no_split(root: pathlib.Path) -> None:
    path = root / "metadata/subject_splits.parquet"
    pl.read_parquet(path).filter(pl.col("subject_id") != 2).write_parquet(path)


def _remove_column(root: pathlib.Path) -> None:
    path = root / "data/train/0.parquet"
    pl.read_parquet(path).drop("code").write_parquet(path)


def _wrong_type(root: pathlib.Path) -> None:
    path = root / "data/train/0.parquet"
    pl.read_parquet(path).with_columns(pl.col("numeric_value").cast(pl.String)).write_parquet(path)


def _unsorted(root: pathlib.Path) -> None:
    path = root / "data/train/0.parquet"
    table = pl.read_parquet(path)
    table[[0, 2, 1, 3, *range(4, len(table))]].write_parquet(path)


def _in_two_files(root: pathlib.Path) -> None:
    table = pl.read_parquet(root / "data/train/0.parquet")
    table.filter(pl.col("subject_id") == 1).write_parquet(root / "data/train/2.parquet")


def _nan(root: pathlib.Path) -> None:
    path = root / "data/train/0.parquet"
    table = pl.read_parquet(path)
    table.with_columns(pl.lit(np.nan, pl.Float32).alias("numeric_value")).write_parquet(path)


def _empty(root: pathlib.Path) -> None:
    for path in root.glob("data/*/*.parquet"):
        path.unlink()


def _truncated(root: pathlib.Path) -> None:
    path = root / "data/train/1.parquet"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_remove_column, "code"),
        (_wrong_type, "numeric_value"),
        (_unsorted, "row 2"),
        (_in_two_files, "2.parquet"),
        (_nan, "numeric_value"),
        (_empty, "data"),
        (_truncated, "1.parquet"),
        (_no_split, r"no split.*subject_splits\.parquet"),
    ],
)
def test_bad_input_is_one_clear_line_and_no_corpus(small, tmp_path, spoil, says) -> None:
    spoil(small)
    with pytest.raises(UserError, match=says) as error:
        build_corpus(small, tmp_path / "out" / "corpus", config(), workers=1)
    assert "\n" not in str(error.value) and str(small) in str(error.value)
    assert not (tmp_path / "out" / "corpus").exists()
    kept = list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else []
    assert all(str(path) in str(error.value) for path in kept)


def test_every_row_is_accounted_for_with_every_policy_on(world_meds, tmp_path) -> None:
    """Sums match the input exactly, split by split: codes capped, values fused, rows and subjects left out."""
    root = tmp_path / "meds"
    shutil.copytree(world_meds, root)
    for path in root.glob("data/*/*.parquet"):
        events = pl.read_parquet(path)
        said = pl.when(pl.col("code").hash() % 3 == 0).then(pl.lit("neg")).otherwise(pl.lit("pos"))
        texts = pl.when(pl.col("numeric_value").is_null() & pl.col("code").str.starts_with("CPT")).then(said)
        # Some births are not known.
        events.with_columns(text_value=texts).filter(
            (pl.col("code") != "MEDS_BIRTH") | (pl.col("subject_id") % 7 > 0)
        ).write_parquet(path)
    changes = {
        "interval_preset": "custom",
        "interval_bounds": "5m,1h,1d,1w,30d,6mt",
        "min_subjects_per_code": 10,
        "max_codes": {"LAB": 10, "PROCEDURE": 15, "DIAGNOSIS": 30},
        "value_encoding": "fused",
        "text_values": True,
        "cohort": {"min_age": 40, "max_age": 80, "first_date": "2015-01-01", "min_encounters": 2},
    }
    corpus = build_corpus(root, tmp_path / "c", config(**changes), workers=1)
    events = pl.concat([pl.read_parquet(path) for path in root.glob("data/*/*.parquet")])
    splits = pl.read_parquet(root / "metadata/subject_splits.parquet")
    reasons: set[str] = set()
    for name, split in corpus.manifest["splits"].items():
        of_split = events.join(splits.filter(pl.col("split") == name), on="subject_id", how="semi")
        assert sum(split["rows"].values()) == len(of_split)
        subjects = split["subjects"] + sum(split["subjects_left_out"].values())
        assert subjects == of_split["subject_id"].n_unique()
        reasons |= {reason for reason, rows in split["rows"].items() if rows}
        reasons |= {reason for reason, count in split["subjects_left_out"].items() if count}
        reader = corpus.split(name)
        for index in range(len(reader)):
            tokens = reader.record(index).tokens_T.tolist()
            assert grammar.is_valid(tokens, corpus.vocabulary) and len(tokens) > 5
    assert reasons == {
        "kept",
        "shortened_code",
        "unknown_code",
        "static",
        "birth",
        "filtered_age_unknown",
        "filtered_age",
        "filtered_period",
        "observation_end",
        "filtered_subject",
        "age_unknown",
        "age",
        "period",
        "too_few_encounters",
    }
    assert corpus.vocabulary.texts == ("NEG", "POS")
    assert sum(event.kind == "LAB" for event in corpus.vocabulary.events) == 11
    changes["interval_bounds"] = "1m"
    two = build_corpus(root, tmp_path / "d", config(**changes), workers=2)
    assert two.manifest["splits"]["train"]["rows"] == corpus.manifest["splits"]["train"]["rows"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "corpus.json", "a\nb"])
def test_a_split_that_cannot_be_a_folder_is_refused(write_meds, tmp_path, name) -> None:
    root = write_meds({"0": [*rows_of(1), *rows_of(2)]}, {1: "train", 2: name})
    with pytest.raises(UserError, match="a split's name cannot be a folder's; use train, tuning"):
        build_corpus(root, tmp_path / "c", config(), workers=1)
    assert not list(tmp_path.glob("*up*")) and not (tmp_path / "c").exists()


def test_a_standard_split_under_another_name_is_refused_and_one_more_split_is_not(write_meds, tmp_path) -> None:
    rows = {"0": [row for subject in range(1, 5) for row in rows_of(subject)]}
    root = write_meds(rows, {1: "train", 2: "tuning", 3: "test", 4: "test"})
    with pytest.raises(UserError, match="nobody is in held_out; its splits are test, train, tuning; rename them"):
        build_corpus(root, tmp_path / "c", config(), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["meds"]
    root = write_meds(rows, {1: "train", 2: "tuning", 3: "test", 4: "held_out"})
    assert len(build_corpus(root, tmp_path / "c", config(), workers=1).split("test")) == 1


def test_subjects_with_a_split_and_no_event_are_counted(write_meds, tmp_path, capsys) -> None:
    root = write_meds({"0": [*rows_of(1), *rows_of(3)]}, {subject: "train" for subject in (0, 1, 2, 3, 9)})
    corpus = build_corpus(root, tmp_path / "c", config(), workers=1)
    assert corpus.manifest["source"]["subjects_without_events"] == 3
    assert f"{root}: 3 subjects have a split and no event" in capsys.readouterr().err


def test_a_cohort_without_training_subjects_is_a_clear_line(small, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no subject of the cohort.*config\.cohort"):
        build_corpus(small, tmp_path / "c", config(cohort={"min_encounters": 2}), workers=1)


def test_a_split_without_subjects_of_the_cohort_is_there_and_empty(write_meds, tmp_path) -> None:
    born = datetime.datetime(1980, 1, 1)
    rows = {s: [(s, born, "MEDS_BIRTH", None), (s, DAY, f"CPT//{s}", None)] for s in (1, 2)}
    rows[2][0] = (2, datetime.datetime(2010, 1, 1), "MEDS_BIRTH", None)
    root = write_meds({"train/0": rows[1], "tuning/0": rows[2]}, {1: "train", 2: "tuning"})
    corpus = build_corpus(root, tmp_path / "c", config(cohort={"min_age": 18}), workers=1)
    assert len(corpus.split("train")) == 1 and not len(corpus.split("tuning").lengths_R)
    told = [line.split() for line in overview(corpus, ["train", "tuning"])]
    assert ["age", "0", "1"] in told and ["too", "few", "encounters", "0", "0"] in told
    assert corpus.manifest["splits"]["tuning"]["subjects_left_out"]["age"] == 1
