"""Coverage: the manifest says which rule took what, and names only codes that enough subjects have."""

import datetime

import polars as pl

from data_pipeline import build_config, coverage, show_tables
from data_pipeline.build import build_corpus
from data_pipeline.code_maps import NO_RULE
from data_pipeline.corpus import Corpus

T0 = datetime.datetime(2020, 1, 1)


def build(write_meds, tmp_path, rows, **changes) -> Corpus:
    splits = {row[0]: "train" for row in rows} | {99: "tuning"}
    root = write_meds({"train/0": rows, "tuning/0": [(99, T0, "SECRET", None)]}, splits)
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=2, **changes)
    return build_corpus(root, tmp_path / "corpus", config, workers=1)


def rows_of(subject: int, *codes: str):
    return [(subject, T0, code, None) for code in codes]


def test_every_training_event_is_under_one_rule(world_meds, world_corpus) -> None:
    covered = Corpus.open(world_corpus).manifest["training_coverage"]
    splits = pl.read_parquet(world_meds / "metadata" / "subject_splits.parquet")
    events = pl.concat([pl.read_parquet(path, columns=["subject_id", "code"]) for path in world_meds.rglob("data/*/*")])
    events = events.join(splits.filter(pl.col("split") == "train"), on="subject_id", how="semi")
    assert covered["events"] == len(events) == sum(rule["events"] for rule in covered["rules"])
    assert sum(rule["codes"] for rule in covered["rules"]) == events["code"].n_unique()
    assert covered["no_rule"] == {"codes": 0, "events": 0, "unnamed": 0, "top": []}


def test_codes_are_named_only_if_enough_subjects_have_them(write_meds, tmp_path) -> None:
    rows = [row for subject in (1, 2, 3) for row in rows_of(subject, "COMMON", "COMMON", "CPT//1")]
    # Many events, but one subject's.
    rows += rows_of(4, *["RARE"] * 50, "CPT//2", "CPT//2")
    corpus = build(write_meds, tmp_path, rows)
    covered = corpus.manifest["training_coverage"]
    assert covered["no_rule"] == {
        "codes": 2,
        "events": 56,
        "unnamed": 1,
        "top": [{"concept": "OTHER//OTHER//COMMON", "subjects": 3, "events": 6}],
    }
    assert covered["unknown"] == {
        "codes": 2,
        "events": 52,
        "unnamed": 2,
        "top": [],
        "by_system": [
            {"kind": "OTHER", "system": "OTHER", "codes": 1, "events": 50},
            {"kind": "PROCEDURE", "system": "CPT", "codes": 1, "events": 2},
        ],
    }
    assert {rule["rule"]: rule["events"] for rule in covered["rules"]}[NO_RULE] == 56
    for text in (*map(str, (corpus.manifest, corpus.vocabulary.to_json())), *show_tables.overview(corpus, ["train"])):
        assert "RARE" not in text and "SECRET" not in text and "CPT//2" not in text


def test_a_capped_code_is_unknown_and_named(write_meds, tmp_path) -> None:
    rows = [row for subject in (1, 2, 3) for row in rows_of(subject, "CPT//1", "CPT//1", "CPT//2")]
    corpus = build(write_meds, tmp_path, rows, max_codes={"PROCEDURE": 1})
    unknown = corpus.manifest["training_coverage"]["unknown"]
    assert unknown["top"] == [{"concept": "PROCEDURE//CPT//2", "subjects": 3, "events": 3}] and unknown["unnamed"] == 0


def test_the_manifest_stays_small_however_many_codes_are_lost(write_meds, tmp_path) -> None:
    rows = [row for subject in (1, 2, 3) for row in rows_of(subject, *(f"CODE{number}" for number in range(200)))]
    covered = build(write_meds, tmp_path, rows).manifest["training_coverage"]
    assert covered["no_rule"]["codes"] == 200 and len(covered["no_rule"]["top"]) == coverage.TOP


def test_show_prints_what_was_lost(write_meds, tmp_path) -> None:
    rows = [row for subject in (1, 2, 3) for row in rows_of(subject, "COMMON", "CPT//1")]
    rows += rows_of(4, "RARE")
    lines = show_tables.overview(build(write_meds, tmp_path, rows), ["train"])
    assert "codes that no rule took: 2, in 4 training rows (57.14%)" in lines
    assert any(line.split() == ["OTHER//OTHER//COMMON", "3", "3"] for line in lines)
    assert "1 of them, which fewer than 3 subjects have, are not named" in lines
