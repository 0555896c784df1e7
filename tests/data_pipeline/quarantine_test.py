"""--on_error=quarantine: what cannot be used is set aside and counted, and the rest is built as if it were alone."""

import datetime
import errno
import os
import pathlib

import numpy as np
import polars as pl
import pytest

from data_pipeline import build_config
from data_pipeline import corpus as corpus_module
from data_pipeline.build import build_corpus
from data_pipeline.errors import UserError

DAY = datetime.datetime(2020, 1, 1)
UNREADABLE = "not a readable parquet file (damaged, cut short, or something else)"
SPLITS = {1: "train", 2: "train", 3: "train", 4: "tuning", 5: "tuning"}


def rows_of(subject: int, count: int = 3):
    yield (subject, None, "SEX//F", None)
    for index in range(count):
        yield (subject, DAY + datetime.timedelta(hours=index), "LOINC//2345-7", float(index))


def config():
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=1, min_values_per_code=2)
    return content


def shards(**changed):
    good = {"0": [*rows_of(1), *rows_of(2)], "1": list(rows_of(3)), "2": [*rows_of(4), *rows_of(5)]}
    return good | {name.removeprefix("s"): list(rows) for name, rows in changed.items()}


def build(root: pathlib.Path, out: pathlib.Path, workers: int = 1):
    return build_corpus(root, out, config(), workers=workers, on_error="quarantine")


def set_aside(corpus) -> list[tuple]:
    return pl.read_parquet(corpus.root / "quarantine.parquet").rows()


def subjects(corpus) -> list[int]:
    return sorted(int(s) for name in corpus.manifest["splits"] for s in corpus.split(name).subject_ids_R)


def check_accounts(corpus, root: pathlib.Path) -> None:
    manifest = corpus.manifest
    rows = sum(sum(split["rows"].values()) for split in manifest["splits"].values())
    assert rows + manifest["quarantine"]["rows"] == manifest["source"]["rows"]
    assert sum(manifest["quarantine"]["rows_by_reason"].values()) == manifest["quarantine"]["rows"]
    if not manifest["quarantine"]["files"]:
        assert (
            manifest["source"]["rows"] == pl.scan_parquet(root / "data" / "*.parquet").select(pl.len()).collect()[0, 0]
        )


NAN, LATE = float("nan"), DAY + datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("first_file", "expected", "left"),
    [
        ([*rows_of(1), (2, DAY, None, None), *rows_of(2)], (2, 4, "code", "null", 5), {1, 3, 4, 5}),
        (
            [*rows_of(1), *rows_of(2), (2, LATE, "CPT//1", NAN)],
            (2, 8, "numeric_value", "not a finite 32-bit number", 5),
            {1, 3, 4, 5},
        ),
        (
            [*rows_of(1), *rows_of(2), (2, DAY, "CPT//1", None)],
            (2, 8, "time", "earlier than the row before it, of the same subject", 5),
            {1, 3, 4, 5},
        ),
        (
            [*rows_of(1), *rows_of(2), (1, LATE, "CPT//1", None)],
            (1, 8, "subject_id", "rows of a subject whose other rows stand further up", 5),
            {2, 3, 4, 5},
        ),
        ([*rows_of(1), (None, DAY, "CPT//1", None), *rows_of(2)], (None, 4, "subject_id", "null", 1), {1, 2, 3, 4, 5}),
        ([*rows_of(1), *rows_of(2), *rows_of(9)], (9, None, None, "the subject is in no split", 4), {1, 2, 3, 4, 5}),
    ],
)
def test_a_subject_with_a_row_that_cannot_be_used_is_set_aside(
    write_meds, tmp_path, first_file, expected, left
) -> None:
    root = write_meds(shards(s0=first_file), SPLITS)
    corpus = build(root, tmp_path / "corpus")
    assert set_aside(corpus) == [("data/0.parquet", *expected)]
    assert set(subjects(corpus)) == left
    check_accounts(corpus, root)
    with pytest.raises(UserError):
        build_corpus(root, tmp_path / "refused", config(), workers=1)


def test_what_is_left_is_built_as_if_it_were_alone(write_meds, tmp_path) -> None:
    bad = [*rows_of(1), *rows_of(2), (2, DAY, "CPT//1", None)]
    alone = build_corpus(
        write_meds(shards(s0=rows_of(1)), SPLITS, tmp_path / "good"), tmp_path / "alone", config(), workers=1
    )
    corpus = build(write_meds(shards(s0=bad), SPLITS), tmp_path / "corpus")
    assert corpus.fingerprint == alone.fingerprint
    assert alone.manifest["quarantine"]["rows"] == 0 and not (alone.root / "quarantine.parquet").exists()


def on_a_full_disk(_) -> bytes:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_lenient_run_has_set_aside_is_refused_when_it_is_taken_up_strictly(
    write_meds, tmp_path, monkeypatch
) -> None:
    root = write_meds(shards(s0=[*rows_of(1), *rows_of(2), (2, DAY, "CPT//1", None)]), SPLITS)
    with monkeypatch.context() as full, pytest.raises(UserError, match="No space left"):
        full.setattr(corpus_module, "encode_manifest", on_a_full_disk)
        build(root, tmp_path / "corpus")
    with pytest.raises(UserError, match="row 8, column time"):
        build_corpus(root, tmp_path / "corpus", config(), workers=1)


def test_a_subject_in_two_files_and_in_no_split_is_counted_once(write_meds, tmp_path) -> None:
    root = write_meds(shards(s0=[*rows_of(1), *rows_of(9)], s1=[*rows_of(3), *rows_of(9, 5)]), SPLITS)
    corpus = build(root, tmp_path / "corpus")
    assert [(subject, rows) for _, subject, _, _, _, rows in set_aside(corpus)] == [(9, 4), (9, 6)]
    check_accounts(corpus, root)


def test_nothing_of_input_that_was_repaired_or_removed_is_left(write_meds, tmp_path, monkeypatch) -> None:
    root = write_meds(shards(s0=[*rows_of(1), *rows_of(2), (2, DAY, "CPT//1", None)]), SPLITS)
    with monkeypatch.context() as full, pytest.raises(UserError, match="No space left"):
        full.setattr(corpus_module, "encode_manifest", on_a_full_disk)
        build(root, tmp_path / "corpus")
    write_meds(shards(), SPLITS)
    (root / "data" / "2.parquet").unlink()
    taken_up, anew = build(root, tmp_path / "corpus"), build(root, tmp_path / "anew")
    assert sorted(path.relative_to(anew.root) for path in anew.root.rglob("*")) == sorted(
        path.relative_to(taken_up.root) for path in taken_up.root.rglob("*")
    )
    assert taken_up.manifest == anew.manifest and not (anew.root / "tuning").exists()


def test_a_subject_in_two_files_is_set_aside_in_both(write_meds, tmp_path) -> None:
    root = write_meds(shards(s1=[*rows_of(3), *rows_of(2, 5)]), SPLITS)
    corpus = build(root, tmp_path / "corpus")
    reason = "the subject has rows in several files"
    assert set_aside(corpus) == [
        ("data/0.parquet", 2, None, None, reason, 4),
        ("data/1.parquet", 2, None, None, reason, 6),
    ]
    assert subjects(corpus) == [1, 3, 4, 5] and corpus.manifest["quarantine"]["subjects"] == 1
    # Neither part of the subject has left a trace in the vocabulary.
    alone = build(write_meds(shards(s0=rows_of(1)), SPLITS, tmp_path / "good"), tmp_path / "alone")
    assert corpus.fingerprint == alone.fingerprint
    check_accounts(corpus, root)


@pytest.mark.parametrize("spoil", ["cut", "column", "empty"])
def test_a_file_that_cannot_be_read_is_set_aside(write_meds, tmp_path, spoil) -> None:
    root = write_meds(shards(), SPLITS)
    path = root / "data" / "1.parquet"
    if spoil == "column":
        pl.read_parquet(path).drop("code").write_parquet(path)
    else:
        path.write_bytes(path.read_bytes()[:-20] if spoil == "cut" else b"")
    corpus = build(root, tmp_path / "corpus")
    reason = (
        "no column code" if spoil == "column" else "not a readable parquet file (damaged, cut short, or something else)"
    )
    rows = 4 if spoil == "column" else None
    assert set_aside(corpus) == [("data/1.parquet", None, None, None, reason, rows)]
    quarantine = corpus.manifest["quarantine"]
    assert (quarantine["files"], quarantine["files_of_unknown_length"]) == (1, int(rows is None))
    assert subjects(corpus) == [1, 2, 4, 5]
    check_accounts(corpus, root)


def test_folders_as_splits_may_hold_bad_files_too(write_meds, tmp_path) -> None:
    content = {"train/0": [*rows_of(1), (None, DAY, "CPT//1", None)], "train/1": rows_of(2), "tuning/0": rows_of(2)}
    root = write_meds({name: list(rows) for name, rows in content.items()}, {})
    (root / "metadata" / "subject_splits.parquet").unlink()
    (root / "data" / "tuning" / "1.parquet").write_bytes(b"")
    corpus = build(root, tmp_path / "corpus")
    assert subjects(corpus) == [1]
    assert corpus.manifest["quarantine"] == {
        "files": 1,
        "files_of_unknown_length": 1,
        "subjects": 1,
        "rows": 9,
        "rows_by_reason": {
            UNREADABLE: 0,
            "null": 1,
            "the subject has rows in several files": 8,
        },
    }


def test_a_number_that_does_not_fit_sets_its_subject_aside(write_meds, tmp_path) -> None:
    root = write_meds(shards(), SPLITS)
    path = root / "data" / "0.parquet"
    table = pl.read_parquet(path)
    values = pl.Series("numeric_value", [1e300 if row == 5 else None for row in range(len(table))], dtype=pl.Float64)
    table.with_columns(values).write_parquet(path)
    corpus = build(root, tmp_path / "corpus")
    assert set_aside(corpus) == [("data/0.parquet", 2, 5, "numeric_value", "not a finite 32-bit number", 4)]
    ids = pl.Series("subject_id", [2**64 - 1 if s == 2 else s for s in table["subject_id"]], dtype=pl.UInt64)
    table.with_columns(ids).write_parquet(path)
    corpus = build(root, tmp_path / "again")
    assert set_aside(corpus) == [("data/0.parquet", None, 4, "subject_id", "does not fit in a 64-bit integer", 4)]
    check_accounts(corpus, root)


def test_where_nothing_is_left_there_is_no_corpus(write_meds, tmp_path) -> None:
    root = write_meds(shards(), {9: "train"})
    with pytest.raises(UserError, match="no subject"):
        build(root, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_the_quarantine_does_not_depend_on_the_number_of_workers(write_meds, tmp_path) -> None:
    rng = np.random.default_rng(0)

    def some_rows(subject: int):
        hours = rng.permutation(3) if subject % 4 == 0 else range(3)
        for hour in hours:
            value = NAN if subject % 7 == 0 else 1.0
            yield subject, DAY + datetime.timedelta(hours=int(hour)), "CPT//1", value

    # The last subject of each file is the first of the next.
    content = {
        str(shard): [row for subject in range(10 * shard, 10 * shard + 11) for row in some_rows(subject)]
        for shard in range(4)
    }
    root = write_meds(content, dict.fromkeys(range(38), "train"))
    one = build(root, tmp_path / "one")
    two = build(root, tmp_path / "two", workers=2)
    assert len(set_aside(one)) > 8
    for path in one.root.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (two.root / path.relative_to(one.root)).read_bytes()
    check_accounts(one, root)
