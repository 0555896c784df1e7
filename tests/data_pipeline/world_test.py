"""The synthetic world: what it writes, and that its timelines have the structure it promises."""

import json
import pathlib
import subprocess
import sys

import meds
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from data_pipeline import vocabulary
from data_pipeline.errors import UserError
from data_pipeline.world import catalogue, conditions, rules, simulation, tables, write_world, writer
from data_pipeline.world.draws import Draws

SUBJECTS = 2_000
YEAR = 365.25 * 24 * 60


@pytest.fixture(scope="module")
def events() -> simulation.Events:
    return simulation.simulate(np.arange(1, SUBJECTS + 1), 7)


@pytest.fixture(scope="module")
def frame(events: simulation.Events) -> pl.DataFrame:
    """subject, row in the data set, minutes, code; without static rows and births."""
    texts = np.array([code.code for code in catalogue.CODES])
    frame = pl.DataFrame(
        {"subject": events.subject_id_E, "time": events.time_E, "code": texts[events.code_E], "value": events.value_E}
    )
    return frame.filter((pl.col("time") != simulation.NO_TIME) & (pl.col("code") != "MEDS_BIRTH"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("world") / "meds"
    write_world(out, 100, 3, shards=2)
    return out


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_with_one_and_with_two_workers(dataset, tmp_path):
    write_world(tmp_path / "again", 100, 3, shards=2, workers=2)
    assert contents(tmp_path / "again") == contents(dataset)


def test_another_seed_gives_other_timelines_and_other_splits(dataset, tmp_path):
    write_world(tmp_path / "other", 100, 4, shards=2)
    other, same = contents(tmp_path / "other"), contents(dataset)
    for name in ("data/train/0.parquet", "metadata/subject_splits.parquet"):
        assert other[name] != same[name]


def test_a_timeline_depends_on_seed_and_subject_only(events):
    alone = simulation.simulate(np.array([11, 1500]), 7)
    both = np.isin(events.subject_id_E, [11, 1500])
    for name in ("subject_id_E", "time_E", "code_E", "value_E"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(events, name)[both])


def test_every_file_conforms_to_meds(dataset):
    shards = sorted((dataset / "data").rglob("*.parquet"))
    assert [str(path.relative_to(dataset / "data")) for path in shards] == [
        "held_out/0.parquet", "train/0.parquet", "train/1.parquet", "tuning/0.parquet"
    ]  # fmt: skip
    for path in shards:
        meds.DataSchema.validate(pq.read_table(path, partitioning=None))
    meds.SubjectSplitSchema.validate(pq.read_table(dataset / meds.subject_splits_filepath))
    meds.CodeMetadataSchema.validate(pq.read_table(dataset / meds.code_metadata_filepath))
    metadata = json.loads((dataset / meds.dataset_metadata_filepath).read_text())
    meds.DatasetMetadataSchema.validate(metadata)
    assert metadata["meds_version"] == "0.4.1"


def test_rows_are_sorted_with_static_rows_first_and_each_subject_is_in_the_file_of_its_split(dataset):
    splits = pl.read_parquet(dataset / meds.subject_splits_filepath)
    assert dict(splits["split"].value_counts().iter_rows()) == {"train": 80, "tuning": 10, "held_out": 10}
    seen: list[int] = []
    for split in ("train", "tuning", "held_out"):
        for path in sorted((dataset / "data" / split).iterdir()):
            rows = pl.read_parquet(path)
            assert rows.equals(rows.sort("subject_id", "time", nulls_last=False, maintain_order=True))
            assert rows.group_by("subject_id").agg(pl.col("time").is_null().sum())["time"].unique().to_list() == [2]
            ids = rows["subject_id"].unique()
            assert set(ids) <= set(splits.filter(pl.col("split") == split)["subject_id"])
            seen += ids.to_list()
    assert sorted(seen) == list(range(1, 101))


def test_splits_do_not_depend_on_the_number_of_patients():
    few, many = writer.split_of(np.arange(1, 101), 5), writer.split_of(np.arange(1, 10_001), 5)
    np.testing.assert_array_equal(few, many[:100])
    assert np.bincount(many).tolist() == [8000, 1000, 1000]
    assert len(set(np.flatnonzero(many == 2) % 10)) == 10


def test_every_code_has_a_description_and_procedures_have_their_number_only(dataset):
    codes = pl.read_parquet(dataset / meds.code_metadata_filepath)
    descriptions = dict(codes.select("code", "description").iter_rows())
    written = pl.concat([pl.read_parquet(path) for path in (dataset / "data").rglob("*.parquet")])["code"].unique()
    assert all(descriptions[code] for code in written)
    for code, text in descriptions.items():
        if code.startswith("CPT//"):
            assert text == f"CPT {code.removeprefix('CPT//')}"


def test_the_rules_name_only_what_exists_and_cover_what_was_asked():
    tables.check_references()
    assert len(conditions.CHRONIC) + len(conditions.ACUTE) >= 150
    assert len(catalogue.DRUGS) >= 100 and len(catalogue.LABS) >= 40
    assert len(catalogue.PROCEDURES) >= 50 and len(catalogue.COMPLAINTS) >= 30
    assert len(conditions.PHENOTYPES) == 8


def test_nothing_happens_after_death_or_after_observation_ends(frame):
    last = frame.group_by("subject", maintain_order=True).agg(pl.col("code").last(), pl.col("time").max())
    deaths = frame.filter(pl.col("code") == "MEDS_DEATH")["subject"]
    assert 0.05 < len(deaths) / SUBJECTS < 0.3
    assert set(last.filter(pl.col("code") == "MEDS_DEATH")["subject"]) == set(deaths)
    assert deaths.is_unique().all()
    assert frame["time"].max() < simulation.END + simulation.MOST_DRIFT and frame["time"].min() >= simulation.FIRST


def test_events_of_one_instant_stand_by_kind_then_code_and_once(frame):
    kinds = {"ENCOUNTER_START": "ENCOUNTER", "ENCOUNTER_END": "ENCOUNTER", "ICD10CM": "DIAGNOSIS", "LOINC": "LAB",
             "ATC": "MEDICATION", "CPT": "PROCEDURE", "MEDS_DEATH": "DEATH", "OBSERVATION_END": "OTHER"}  # fmt: skip
    system = pl.col("code").str.split("//").list.first()
    order = system.replace(kinds).replace_strict(dict(zip(vocabulary.KINDS, range(99), strict=False)))
    keyed = frame.with_columns(order.alias("order"))
    assert keyed.equals(keyed.sort("subject", "time", "order", "code", maintain_order=True))
    assert keyed.select("subject", "time", "code").is_unique().all()


def test_one_encounter_is_open_at_a_time_and_events_lie_within_encounters(frame):
    for _, rows in frame.group_by("subject", maintain_order=True):
        open_type = ""
        for code in rows["code"]:
            system, _, rest = code.partition("//")
            kind = rest.split("//")[0]
            if system == "ENCOUNTER_START":
                assert open_type == ""
                open_type = kind
            elif system == "ENCOUNTER_END":
                assert open_type == kind
                open_type = ""
            elif code != "OBSERVATION_END":
                assert (open_type == "") == (code == "MEDS_DEATH")


def test_adults_only_and_ages_keep_off_the_borders_of_five_year_buckets(events):
    birth = events.code_E == catalogue.INDEX["MEDS_BIRTH"]
    first = np.flatnonzero(birth) + 1
    ages = (events.time_E[first] - events.time_E[birth]) / YEAR
    assert ages.min() >= 18 and ages.max() < 95
    np.testing.assert_array_less(0.04, np.minimum(ages % 5, 5 - ages % 5))


def test_gaps_stand_in_the_interval_bin_that_was_drawn_and_dates_near_the_clock():
    gap = np.repeat(np.arange(rules.GAPS), 500)
    u = np.tile(np.linspace(0, 1 - 1e-9, 500), rules.GAPS)
    before = np.random.default_rng(0).integers(-simulation.MOST_DRIFT, simulation.MOST_DRIFT + 1, len(gap))
    after = simulation.drift(before, gap, u)
    assert np.abs(after).max() <= simulation.MOST_DRIFT
    index, times = rules.PRESET.classify((rules.CLOCK_MINUTES[gap] + after - before) * 60.0)
    np.testing.assert_array_equal(index, np.minimum(gap, rules.FIRST_REPEAT))
    np.testing.assert_array_equal(times, np.maximum(gap - rules.FIRST_REPEAT, 0) + 1)


def test_values_are_those_of_tests_only_and_within_their_limits(frame):
    assert (frame["value"].is_not_nan() == frame["code"].str.starts_with("LOINC")).all()
    for lab in catalogue.LABS:
        values = frame.filter(pl.col("code") == f"LOINC//{lab.code}")["value"].to_numpy().astype(np.float64)
        assert len(values) and values.min() >= lab.low and values.max() <= lab.high
        np.testing.assert_allclose(values, np.round(values, lab.decimals), rtol=1e-6)


def test_prevalence_is_heavy_tailed(frame):
    chronic = [f"ICD10CM//{item.code}" for item in conditions.CHRONIC]
    counts = frame.filter(pl.col("code").is_in(chronic)).group_by("code").agg(pl.col("subject").n_unique())
    shares = np.sort(counts["subject"].to_numpy())[::-1] / SUBJECTS
    assert shares[0] > 0.25 and shares[len(shares) // 2] < 0.07
    # Zipf: a straight line in log rank against log share, not far from slope -1.
    ranks = np.arange(1, 61)
    assert -1.4 < np.polyfit(np.log(ranks), np.log(shares[:60]), 1)[0] < -0.6


def lengths(frame: pl.DataFrame) -> np.ndarray:
    """Tokens of each subject, roughly: parts of codes, deciles, and one interval an instant."""
    system = pl.col("code").str.split("//").list.first()
    tokens = system.replace_strict({"ICD10CM": 2, "LOINC": 2, "ATC": 3}, default=1)
    return frame.group_by("subject").agg(tokens.sum() + pl.col("time").n_unique())["code"].to_numpy()


def test_timelines_are_moderate_in_the_mean_with_a_heavy_tail(frame):
    tokens = lengths(frame)
    assert 250 < tokens.mean() < 500
    assert tokens.max() > 1500 and np.median(tokens) < 0.8 * tokens.mean()


def outcome_rate(index: pl.DataFrame, outcome: pl.DataFrame, days: int) -> float:
    """Share of `index` (subject, time) rows, observed long enough, that `outcome` follows within `days`."""
    minutes = days * 24 * 60
    index = index.with_row_index()
    joined = index.join(outcome.select("subject", pl.col("time").alias("after")), on="subject")
    hits = joined.filter((pl.col("after") > pl.col("time")) & (pl.col("after") <= pl.col("time") + minutes))
    observed = index.filter(
        (pl.col("time") + minutes <= simulation.END) | pl.col("index").is_in(hits["index"].unique().implode())
    )
    return hits["index"].n_unique() / len(observed)


def test_the_three_tasks_are_neither_rare_nor_common(frame):
    code = pl.col("code")
    discharges = frame.filter(code.str.starts_with("ENCOUNTER_END//INPATIENT") & ~code.str.ends_with("DIED"))
    admissions = frame.filter(code.str.starts_with("ENCOUNTER_START//INPATIENT"))
    assert 0.12 < outcome_rate(discharges, admissions, 30) < 0.20
    assert 0.05 < outcome_rate(discharges, frame.filter(code == "MEDS_DEATH"), 365) < 0.13
    diabetes = frame.filter(code.str.starts_with("ICD10CM//E11")).group_by("subject").agg(pl.col("time").min())
    ends = frame.filter(code.str.starts_with("ENCOUNTER_END//INPATIENT") | (code == "ENCOUNTER_END//OUTPATIENT"))
    free = ends.join(diabetes.rename({"time": "onset"}), on="subject", how="left")
    free = free.filter(pl.col("onset").is_null() | (pl.col("onset") > pl.col("time")))
    assert 0.04 < outcome_rate(free, diabetes, 730) < 0.12


def test_a_diagnosis_long_ago_decides_todays_values(frame):
    """Glucose after diabetes was coded in an earlier encounter, against those who never have it: no bigram sees it."""
    diabetes = (
        frame.filter(pl.col("code") == "ICD10CM//E11.9").group_by("subject").agg(pl.col("time").min().alias("onset"))
    )
    values = frame.filter(pl.col("code") == "LOINC//2345-7").join(diabetes, on="subject", how="left")
    known = values.filter(pl.col("onset") < pl.col("time"))["value"].to_numpy()
    free = values.filter(pl.col("onset").is_null())["value"].to_numpy()
    assert np.median(known) > np.quantile(free, 0.85)


def test_the_phenotype_shifts_values_and_drugs_of_subjects_with_the_same_conditions(events, frame):
    names = np.array(conditions.PHENOTYPES)[events.phenotype_P]
    phenotype = pl.DataFrame({"subject": events.subject_ids_P, "phenotype": names})
    known = frame.filter(pl.col("code").is_in(["ICD10CM//E11.9", "ICD10CM//E78.5"]))["subject"].unique()
    hdl = frame.filter((pl.col("code") == "LOINC//2085-9") & ~pl.col("subject").is_in(known.implode()))
    hdl = hdl.join(phenotype, on="subject").group_by("phenotype").agg(pl.col("value").mean())
    means = dict(hdl.iter_rows())
    assert means["ROBUST"] - means["METABOLIC"] > 10
    hypertensive = frame.filter(pl.col("code") == "ICD10CM//I10")["subject"].unique()
    drugs = frame.filter(pl.col("subject").is_in(hypertensive.implode())).join(phenotype, on="subject")
    lisinopril, amlodipine = pl.col("code") == "ATC//C09AA03", pl.col("code") == "ATC//C08CA01"
    counts = drugs.group_by("phenotype").agg(lisinopril.sum().alias("l"), amlodipine.sum().alias("a"))
    ratio = {name: a / b for name, a, b in counts.iter_rows()}
    assert ratio["METABOLIC"] > 4 * ratio["RENAL"]


def test_draws_are_uniform_and_independent_between_subjects():
    u = Draws(0, np.arange(4_000)).uniform(np.arange(4_000), 50)
    assert u.min() > 0 and u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - u.size / 20) ** 2 / (u.size / 20)).sum() < 50
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01


class Checking(simulation.Timelines):
    """Draws as ever, and looks at what it is asked to draw from."""

    def time(self, s, rows_n, weights_nxG):
        assert weights_nxG.min() >= 0 and weights_nxG.sum(axis=1).max() <= 1 + 1e-12
        return super().time(s, rows_n, weights_nxG)

    def one(self, s, element, rows_n, weights_nxW):
        assert weights_nxW.min() >= 0 and np.isfinite(weights_nxW).all() and (weights_nxW.sum(axis=1) > 0).all()
        return super().one(s, element, rows_n, weights_nxW)

    def some(self, s, element, rows_n, probabilities_nxW):
        assert np.isfinite(probabilities_nxW).all()
        assert probabilities_nxW.min() >= 0 and probabilities_nxW.max() <= 1
        return super().some(s, element, rows_n, probabilities_nxW)

    def tests(self, s, rows_n, probabilities_nxL, means_nxL):
        assert np.isfinite(means_nxL).all() and probabilities_nxL.min() >= 0 and probabilities_nxL.max() <= 1
        super().tests(s, rows_n, probabilities_nxL, means_nxL)


def test_probabilities_are_probabilities_in_every_state():
    drawing = Checking(np.arange(1, 301), 2)
    drawing.run()


@pytest.mark.parametrize(
    ("patients", "seed", "shards", "where"), [(9, 0, 1, "patients"), (100, -1, 1, "seed"), (100, 0, 11, "shards")]
)
def test_an_argument_out_of_range_is_named_and_nothing_is_written(tmp_path, patients, seed, shards, where):
    with pytest.raises(UserError, match=f"^{where}: "):
        write_world(tmp_path / "out", patients, seed, shards)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not an empty folder"):
        write_world(tmp_path, 20, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writer.simulation, "simulate", fail)
    with pytest.raises(UserError, match=r"out: cannot be written \(disk full\)"):
        write_world(tmp_path / "out", 20, 0)
    assert not list(tmp_path.iterdir())


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "data_pipeline.world", *arguments], capture_output=True, text=True)


def test_the_command_writes_a_data_set_describes_its_rules_and_refuses_in_one_line(tmp_path):
    out = tmp_path / "out"
    written = command("--out", str(out), "--patients", "20", "--shards", "1")
    assert written.returncode == 0 and "20 subjects" in written.stdout and (out / "metadata/dataset.json").exists()
    refused = command("--out", str(out))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and str(out) in refused.stderr
    both = command("--describe", "--score")
    assert (both.returncode, both.stderr) == (2, "error: --describe --score: asked for at once; give one of them\n")
    described = command("--describe").stdout
    for item in catalogue.CONDITIONS:
        assert item.code in described


def test_a_full_disk_is_told_in_a_line_and_what_a_killed_run_left_goes(tmp_path, monkeypatch):
    left = tmp_path / ".out.partial" / "data"
    left.mkdir(parents=True)

    def full(*_):
        assert not left.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_shard", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        write_world(tmp_path / "out", 60, 0)
    assert not list(tmp_path.iterdir())
