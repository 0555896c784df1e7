"""Reading MEDS: what is accepted, and the one clear line for each mistake."""

import contextlib
import datetime
import json
import pathlib
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import meds
from data_pipeline.errors import UserError
from data_pipeline.parquet_tables import TIMESTAMP

T0 = datetime.datetime(2020, 1, 1)
HOUR = datetime.timedelta(hours=1)
NAN, INF = float("nan"), float("inf")


def events(**columns: object) -> pl.DataFrame:
    """Two subjects, five rows; whole columns may be given in place of the good ones."""
    good = {
        "subject_id": pl.Series([1, 1, 1, 7, 7], dtype=pl.Int64),
        "time": pl.Series([None, T0, T0 + HOUR, None, T0], dtype=pl.Datetime("us")),
        "code": ["SEX//F", "SECRETCODE", "LAB", "SEX//M", "LAB"],
        "numeric_value": pl.Series([None, None, 1.5, None, -2.0], dtype=pl.Float32),
        "text_value": [None, "note", None, None, None],
    }
    return pl.DataFrame(good | columns)


@pytest.fixture
def shard(tmp_path: pathlib.Path):
    """shard(frame) -> path of a parquet file that holds it."""

    def write(frame: pl.DataFrame, name: str = "0.parquet") -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
        return path

    return write


@pytest.fixture
def root(tmp_path: pathlib.Path, shard) -> pathlib.Path:
    """A good data set of two shards and four subjects."""
    shard(events(), "meds/data/train/0.parquet")
    shard(events(subject_id=[3, 3, 3, 4, 4]), "meds/data/tuning/0.parquet")
    splits = pl.DataFrame({"subject_id": [1, 7, 3, 4], "split": ["train", "train", "tuning", "tuning"]})
    shard(splits, "meds/metadata/subject_splits.parquet")
    codes = {"code": ["LAB", "SEX//F", "X"], "description": ["A lab", None, " "], "parent_codes": [["a"], [], []]}
    shard(pl.DataFrame(codes), "meds/metadata/codes.parquet")
    about = {"dataset_name": "tiny", "dataset_version": "9", "meds_version": "0.3.3"}
    (tmp_path / "meds/metadata/dataset.json").write_text(json.dumps(about))
    return tmp_path / "meds"


def message(function, *args: object) -> str:
    """The one line of the UserError that a call raises, checked to hold no clinical content."""
    with pytest.raises(UserError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text and "SECRETCODE" not in text and "2020" not in text
    return text


# Shards


def test_a_good_shard_is_read_as_it_lies(shard) -> None:
    path = shard(events(extra=[1, 2, 3, 4, 5]))
    frame = meds.read_shard(path)
    assert frame.schema == {
        "subject_id": pl.Int64,
        "time": pl.Datetime("us"),
        "code": pl.String,
        "numeric_value": pl.Float32,
    }
    assert frame.equals(events().drop("text_value"))
    assert meds.read_shard(path, text_values=True).equals(events())


def test_columns_of_other_types_are_read_where_nothing_is_lost(shard) -> None:
    good = events()
    other = good.with_columns(
        pl.col("subject_id").cast(pl.UInt32),
        pl.col("time").cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"),
        pl.col("code").cast(pl.Categorical),
        pl.col("numeric_value").cast(pl.Float64),
    )
    assert meds.read_shard(shard(other)).equals(good.drop("text_value"))
    whole = good.with_columns(numeric_value=pl.Series([None, None, 1, None, 2]))
    assert meds.read_shard(shard(whole))["numeric_value"].to_list() == [None, None, 1.0, None, 2.0]


def test_a_table_without_values_may_leave_them_out_or_have_the_null_type(shard) -> None:
    for frame in (events().drop("numeric_value"), events(numeric_value=[None] * 5)):
        values = meds.read_shard(shard(frame))["numeric_value"]
        assert values.dtype == pl.Float32 and values.null_count() == 5


@pytest.mark.parametrize("column", ["subject_id", "time", "code"])
def test_a_missing_column_is_named(shard, column: str) -> None:
    path = shard(events().drop(column))
    assert message(meds.read_shard, path).startswith(f"{path}: no column {column}; it has ")


def test_meds_before_0_3_is_recognized(shard) -> None:
    path = shard(events().rename({"subject_id": "patient_id"}))
    assert "before version 0.3" in message(meds.read_shard, path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("subject_id", ["1", "1", "1", "7", "7"]),
        ("subject_id", [1.0, 1.0, 1.0, 7.0, 7.0]),
        ("time", ["2020-01-01"] * 5),
        ("time", [1, 2, 3, 1, 2]),
        ("time", pl.Series([T0] * 5).dt.replace_time_zone("America/New_York")),
        ("code", [1, 2, 3, 4, 5]),
        ("code", [None] * 5),
        ("numeric_value", ["1.0"] * 5),
        ("numeric_value", [True] * 5),
    ],
)
def test_a_wrong_type_is_named_with_the_type_it_should_be(shard, column: str, values: object) -> None:
    path = shard(events(**{column: values}))
    text = message(meds.read_shard, path)
    assert text.startswith(f"{path}: column {column} holds ") and "but must be a" in text


@pytest.mark.parametrize(
    ("row", "column", "values", "what"),
    [
        (3, "subject_id", [1, 1, 1, None, 7], "null"),
        (4, "code", ["A", "A", "A", "A", None], "null"),
        (2, "numeric_value", [None, None, NAN, None, 1.0], "not a finite"),
        (4, "numeric_value", [None, None, 1.0, None, -INF], "not a finite"),
        (2, "numeric_value", pl.Series([None, None, 1e300, None, 1.0], dtype=pl.Float64), "not a finite"),
        (0, "subject_id", pl.Series([2**64 - 1] * 5, dtype=pl.UInt64), "does not fit"),
        (2, "time", [None, T0 + HOUR, T0, None, T0], "earlier than the row before"),
        (1, "time", [T0, None, T0, None, T0], "earlier than the row before"),
        (4, "subject_id", [1, 1, 7, 7, 1], "further up"),
        (2, "time", pl.Series([None, 0, 2**62, None, 0]).cast(pl.Datetime("us")), "not a date of the years 1 to 9999"),
        (1, "time", pl.Series([None, -(2**63), 0, None, 0]).cast(pl.Datetime("us")), "not a date of the years"),
    ],
)
def test_a_bad_row_is_named(shard, row: int, column: str, values: object, what: str) -> None:
    path = shard(events(**{column: values}))
    text = message(meds.read_shard, path)
    assert text.startswith(f"{path}, row {row}, column {column}: ") and what in text


def test_subjects_need_no_order_and_a_time_may_fall_from_one_to_the_next(shard) -> None:
    frame = events(subject_id=[9, 9, 9, 2, 2])
    assert meds.read_shard(shard(frame))["subject_id"].to_list() == [9, 9, 9, 2, 2]


def test_a_file_name_is_no_pattern(shard) -> None:
    shard(events().clear(), "1.parquet")
    assert len(meds.read_shard(shard(events(), "[1].parquet"))) == 5


def test_an_empty_shard_is_read(shard) -> None:
    assert len(meds.read_shard(shard(events().clear()))) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_named(shard, share: float) -> None:
    path = shard(events())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert message(meds.read_shard, path).startswith(f"{path}: not a readable parquet file")


@pytest.mark.parametrize("dictionary", [True, False])
def test_text_in_another_encoding_is_called_so(tmp_path, dictionary) -> None:
    path = tmp_path / "0.parquet"
    table = events(code=["Gr\u00f6\u00dfe".encode("latin-1")] * 5).to_arrow()
    code = table["code"].combine_chunks().cast(pa.binary()).view(pa.string())
    pq.write_table(table.set_column(2, "code", code), path, use_dictionary=dictionary)
    assert message(meds.read_shard, path) == f"{path}: holds text that is not UTF-8; write the file again in UTF-8"


def test_a_damaged_byte_is_found_or_harmless_and_no_library_speaks_up(shard, capfd) -> None:
    path = shard(events())
    content = path.read_bytes()
    outcomes = set()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            outcomes.add(len(meds.read_shard(path)) == 5)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
    assert capfd.readouterr() == ("", "")


def test_page_checksums_are_verified(shard, tmp_path) -> None:
    path = tmp_path / "checked.parquet"
    # Neither compressed nor coded: without checksums a changed bit of a value would be a value.
    table = events(numeric_value=pl.Series([None, 0.0, 0.5, None, 1.0], dtype=pl.Float32))
    pq.write_table(table.to_arrow(), path, write_page_checksum=True, compression="none", use_dictionary=False)
    content = path.read_bytes()
    place = content.index(np.float32(0.5).tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    assert "not a readable parquet file" in message(meds.read_shard, path)


def test_rows_that_a_damaged_length_hides_are_missed(shard) -> None:
    path = shard(events())
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x02]) + content[position + 1 :])
        with contextlib.suppress(UserError):
            assert len(meds.read_shard(path)) == 5


def test_milliseconds_that_do_not_fit_are_named(shard) -> None:
    times = pl.Series([None, 0, 2**62, None, 0]).cast(pl.Datetime("ms"))
    path = shard(events(time=times))
    assert message(meds.read_shard, path) == f"{path}, row 2, column time: does not fit in a {TIMESTAMP.name}"


def test_a_missing_file_and_a_file_that_is_no_parquet_are_named(tmp_path) -> None:
    assert message(meds.read_shard, tmp_path / "none.parquet").startswith(f"{tmp_path / 'none.parquet'}: no such file")
    (tmp_path / "text.parquet").write_text("subject_id,time,code\n1,2020,SECRETCODE\n")
    assert "not a readable parquet file" in message(meds.read_shard, tmp_path / "text.parquet")


def test_validating_is_cheap(shard) -> None:
    rows = 200_000
    frame = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(200), rows // 200),
            "time": pl.Series(np.tile(np.arange(rows // 200), 200)).cast(pl.Datetime("us")),
            "code": [f"CODE{index % 1000}" for index in range(rows)],
            "numeric_value": pl.Series(np.ones(rows), dtype=pl.Float32),
        }
    )
    path = shard(frame)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        meds.read_shard(path)
        seconds.append(time.process_time() - start)
    # 5 ms on a quiet machine, reading included; Python row by row takes 200.
    assert min(seconds) < 0.1


# Data sets


def test_a_good_data_set_is_opened(root) -> None:
    dataset = meds.open_dataset(root)
    assert (dataset.name, dataset.version, dataset.meds_version) == ("tiny", "9", "0.3.3")
    assert dataset.shards == (root / "data/train/0.parquet", root / "data/tuning/0.parquet")
    assert dataset.splits.schema == {"subject_id": pl.Int64, "split": pl.String}
    assert dataset.descriptions == {"LAB": "A lab"}
    assert dataset.notes == ()


def test_hidden_files_are_no_data(root) -> None:
    (root / "data/train/._0.parquet").write_bytes(b"x")
    (root / "data/.tmp").mkdir()
    (root / "data/.tmp/1.parquet").write_bytes(b"x")
    assert len(meds.open_dataset(root).shards) == 2


def test_a_link_to_nowhere_is_not_passed_over(root) -> None:
    (root / "data/train/1.parquet").symlink_to(root / "nowhere")
    dataset = meds.open_dataset(root)
    assert len(dataset.shards) == 3
    assert "no such file" in message(meds.read_shard, root / "data/train/1.parquet")


def test_the_mimic_demo_is_read_whole(mimic_demo) -> None:
    dataset = meds.open_dataset(mimic_demo)
    assert dataset.meds_version == "0.3.3" and not dataset.notes
    assert sum(len(meds.read_shard(shard)) for shard in dataset.shards) == 916_166


def test_a_missing_or_empty_data_set_is_refused(root, tmp_path, shard) -> None:
    (tmp_path / "table.parquet").touch()
    assert "is a file; give the folder" in message(meds.open_dataset, tmp_path / "table.parquet")
    (tmp_path / "csv" / "data").mkdir(parents=True)
    (tmp_path / "csv" / "data" / "0.csv").touch()
    assert "but .csv files; MEDS is parquet: convert" in message(meds.open_dataset, tmp_path / "csv")
    assert "no such folder" in message(meds.open_dataset, tmp_path / "none")
    assert "no folder data/" in message(meds.open_dataset, root / "metadata")
    for path in meds.open_dataset(root).shards:
        events().clear().write_parquet(path)
    assert "no rows in its 2 parquet files" in message(meds.open_dataset, root)
    for path in (root / "data").rglob("*.parquet"):
        path.unlink()
    assert "empty data set" in message(meds.open_dataset, root)


def test_without_a_split_table_the_folders_are_the_splits_and_it_says_so(root) -> None:
    (root / "metadata/subject_splits.parquet").unlink()
    dataset = meds.open_dataset(root)
    assert dict(dataset.splits.iter_rows()) == {1: "train", 7: "train", 3: "tuning", 4: "tuning"}
    assert ["the folders under data/ are the splits" in note for note in dataset.notes] == [True]


def test_without_a_split_table_a_subject_in_two_folders_is_refused(root) -> None:
    (root / "metadata/subject_splits.parquet").unlink()
    events().write_parquet(root / "data/tuning/0.parquet")
    text = message(meds.open_dataset, root)
    assert "data/train/0.parquet" in text and "data/tuning/0.parquet" in text


def test_without_a_split_table_and_split_folders_one_is_asked_for(root) -> None:
    (root / "metadata/subject_splits.parquet").unlink()
    (root / "data/train").rename(root / "data/all")
    text = message(meds.open_dataset, root)
    assert text.startswith(f"{root / 'metadata/subject_splits.parquet'}: no such file; write it")


@pytest.mark.parametrize(
    ("splits", "complaint"),
    [
        ({"subject_id": [1, 7, 1], "split": ["train", "train", "tuning"]}, "row 2, column subject_id: a subject that"),
        ({"subject_id": [1, None], "split": ["train", "train"]}, "row 1, column subject_id: null"),
        ({"subject_id": [1, 7], "split": [None, "train"]}, "row 0, column split: null"),
        ({"subject_id": ["1"], "split": ["train"]}, "column subject_id holds String"),
        ({"subject_id": [1]}, "no column split"),
        ({"subject_id": pl.Series([], dtype=pl.Int64), "split": pl.Series([], dtype=pl.String)}, "no rows in it"),
    ],
)
def test_a_wrong_split_table_is_refused(root, splits: dict[str, object], complaint: str) -> None:
    pl.DataFrame(splits).write_parquet(root / "metadata/subject_splits.parquet")
    text = message(meds.open_dataset, root)
    assert text.startswith(str(root / "metadata/subject_splits.parquet")) and complaint in text


def test_missing_metadata_is_told_and_not_hidden(root) -> None:
    (root / "metadata/dataset.json").unlink()
    (root / "metadata/codes.parquet").unlink()
    dataset = meds.open_dataset(root)
    assert dataset.name == "meds" and dataset.descriptions == {}
    assert [note.split(":")[0] for note in dataset.notes] == [
        "no metadata/dataset.json",
        "no metadata/codes.parquet",
    ]


def test_a_folder_that_is_a_link_is_read_like_any_other(root, tmp_path) -> None:
    (root / "metadata/subject_splits.parquet").unlink()
    whole = meds.open_dataset(root)
    (root / "data/tuning").rename(tmp_path / "elsewhere")
    (root / "data/tuning").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(root / "data")
    linked = meds.open_dataset(root)
    assert linked.shards == whole.shards and linked.splits.equals(whole.splits)
    assert [path.relative_to(root).as_posix() for path in linked.shards] == [
        "data/train/0.parquet",
        "data/tuning/0.parquet",
    ]


def test_an_unknown_version_is_told(root) -> None:
    (root / "metadata/dataset.json").write_text('{"meds_version": "0.9.1"}')
    (note,) = meds.open_dataset(root).notes
    assert "says MEDS version 0.9.1" in note


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00"])
def test_a_broken_dataset_json_is_refused(root, text: str) -> None:
    (root / "metadata/dataset.json").write_text(text)
    assert message(meds.open_dataset, root).startswith(str(root / "metadata/dataset.json"))


def test_a_code_table_without_descriptions_is_enough(root) -> None:
    pl.DataFrame({"code": ["LAB"]}).write_parquet(root / "metadata/codes.parquet")
    dataset = meds.open_dataset(root)
    assert dataset.descriptions == {} and dataset.notes == ("metadata/codes.parquet describes no code",)


def test_a_subject_in_two_files_is_refused_naming_both() -> None:
    a, b, c = pathlib.Path("a"), pathlib.Path("b"), pathlib.Path("c")
    meds.check_subjects_once({})
    meds.check_subjects_once({a: pl.Series([1, 1, 2]), b: np.array([3]), c: pl.Series([], dtype=pl.Int64)})
    text = message(meds.check_subjects_once, {a: pl.Series([5]), b: np.array([1, 2]), c: pl.Series([3, 2, 2])})
    assert text.startswith("b: a subject lies both here and in c;")


# Some subjects


def test_subjects_are_gathered_from_all_files_in_order(root) -> None:
    dataset = meds.open_dataset(root)
    frame = meds.read_subjects(dataset, {7, 3, 12345})
    whole = pl.concat([meds.read_shard(shard) for shard in dataset.shards])
    expected = whole.filter(pl.col("subject_id").is_in([3, 7])).sort("subject_id", maintain_order=True)
    assert frame.equals(expected)
    assert meds.read_subjects(dataset, []).schema == expected.schema
    assert meds.read_subjects(dataset, pl.Series([7], dtype=pl.Int64), text_values=True)["text_value"].len() == 2


def test_events_of_one_instant_keep_the_order_of_the_file(root) -> None:
    codes = [f"CODE{index * 37 % 5000}" for index in range(5000)]
    frame = pl.DataFrame({"subject_id": [1] * 5000, "time": [T0] * 5000, "code": codes})
    frame.write_parquet(root / "data/train/0.parquet")
    assert meds.read_subjects(meds.open_dataset(root), [1])["code"].to_list() == codes


def test_a_fault_among_the_wanted_subjects_is_named_by_its_row_in_the_file(root) -> None:
    path = root / "data/train/0.parquet"
    events(numeric_value=[None, None, 1.0, None, INF]).write_parquet(path)
    dataset = meds.open_dataset(root)
    assert message(meds.read_subjects, dataset, [7]).startswith(f"{path}, row 4, column numeric_value")
    assert len(meds.read_subjects(dataset, [1])) == 3


def test_a_cell_that_does_not_fit_is_the_business_of_its_own_subject(root) -> None:
    path = root / "data/train/0.parquet"
    late = pl.Series([None, 1, 2**62, None, 1], dtype=pl.Int64).cast(pl.Datetime("ms"))
    events(time=late).write_parquet(path, row_group_size=1)
    dataset = meds.open_dataset(root)
    assert message(meds.read_subjects, dataset, [1]).startswith(f"{path}, row 2, column time: does not fit")
    events(time=late).write_parquet(path)
    assert len(meds.read_subjects(dataset, [7])) == 2


def test_the_type_of_a_column_that_is_not_read_does_not_matter(shard, capfd) -> None:
    path = shard(events())
    prices = pa.array([None] * 5, pa.decimal256(50, 2))  # polars has no such type, and panics
    pq.write_table(pq.read_table(path).append_column("price", prices), path)
    assert len(meds.read_shard(path)) == 5
    assert not capfd.readouterr().err


def test_a_wanted_subject_in_two_files_is_refused(root) -> None:
    events().write_parquet(root / "data/tuning/0.parquet")
    assert "lies both here and in" in message(meds.read_subjects, meds.open_dataset(root), [1])


# Labels


def labels(**columns: object) -> pl.DataFrame:
    good = {"subject_id": [7, 1], "prediction_time": [T0, T0], "boolean_value": [True, None]}
    return pl.DataFrame(good | columns)


def test_labels_keep_their_order_and_their_known_columns(shard) -> None:
    path = shard(labels(extra=[1, 2], integer_value=pl.Series([3, None], dtype=pl.Int32)))
    frame = meds.read_labels(path, {1, 7})
    assert frame.schema == {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean,
        "integer_value": pl.Int64,
    }
    assert frame.rows() == [(7, T0, True, 3), (1, T0, None, None)]


def test_a_folder_of_labels_is_read_file_by_file(shard, tmp_path) -> None:
    shard(labels(), "labels/b/1.parquet")
    shard(labels(subject_id=[2, 3]).drop("boolean_value"), "labels/a.parquet")
    shard(labels().clear(), "labels/c.parquet")
    frame = meds.read_labels(tmp_path / "labels", pl.Series([1, 2, 3, 7]))
    assert frame["subject_id"].to_list() == [2, 3, 7, 1]
    assert frame["boolean_value"].to_list() == [None, None, True, None]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"subject_id": [7, 99]}, ", row 1, column subject_id: 1 of 2 rows name subjects that the data set does not"),
        ({"subject_id": [None, 7]}, ", row 0, column subject_id: null"),
        ({"prediction_time": [T0, None]}, ", row 1, column prediction_time: null"),
        (
            {"prediction_time": pl.Series([0, 2**62]).cast(pl.Datetime("us"))},
            ", row 1, column prediction_time: not a date of the years 1 to 9999",
        ),
        ({"prediction_time": ["2020-01-01"] * 2}, ": column prediction_time holds String"),
        ({"boolean_value": [0, 1]}, ": column boolean_value holds Int64"),
        ({"float_value": [1.0, NAN]}, ", row 1, column float_value: not a finite number"),
        ({"categorical_value": [1, 2]}, ": column categorical_value holds Int64"),
    ],
)
def test_wrong_labels_are_refused(shard, columns: dict[str, object], complaint: str) -> None:
    path = shard(labels(**columns))
    assert message(meds.read_labels, path, {1, 7}).startswith(f"{path}{complaint}")


def test_a_row_without_history_is_named_by_file_and_row_where_history_is_asked_for(write_meds, shard) -> None:
    events = [(1, None, "GENDER//F", None), (7, T0, "DEATH", None)]
    begins = meds.first_events(meds.open_dataset(write_meds({"train/0": events}, {1: "train", 7: "train", 8: "train"})))
    second = datetime.timedelta(seconds=1)
    for rows, bad in (([7, 1, 7], 2), ([1, 8, 7], 1)):
        path = shard(pl.DataFrame({"subject_id": rows, "prediction_time": [T0, T0 - 9 * second, T0 - second]}))
        assert len(meds.read_labels(path, {1, 7, 8})) == 3
        told = message(meds.read_labels, path, {1, 7, 8}, begins)
        assert told.startswith(f"{path}, row {bad}, column prediction_time: the subject has no data at or before")


@pytest.mark.parametrize("column", ["subject_id", "prediction_time"])
def test_a_missing_label_column_is_named(shard, column: str) -> None:
    assert f"no column {column}" in message(meds.read_labels, shard(labels().drop(column)), {1, 7})


def test_empty_and_missing_labels_are_refused(shard, tmp_path) -> None:
    assert "no label rows" in message(meds.read_labels, shard(labels().clear()), {1})
    assert "no such file or folder" in message(meds.read_labels, tmp_path / "none", {1})
    (tmp_path / "folder").mkdir()
    assert "no parquet file" in message(meds.read_labels, tmp_path / "folder", {1})
