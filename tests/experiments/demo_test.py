"""The demo's folder and table; its stages have tests of their own."""

import json
import pathlib

import pytest

from data_pipeline.errors import UserError
from experiments import demo

SUMMARY = {
    "tuning_loss": 1.0,
    "bigram_loss": 2.5,
    "unigram_loss": 5.0,
    "train_tokens_per_s": 12345.6,
    "wall_s": 371.2,
    "tasks": {
        "death": {"auroc": 0.139, "low": None, "high": None, "n": 19, "positives": 1},
        "onset": {"auroc": None, "low": None, "high": None, "n": 4, "positives": 0},
        "readmission": {"auroc": 0.781, "low": 0.694, "high": 0.844, "n": 250, "positives": 39},
    },
}


def test_the_table_tells_the_gain_and_what_cannot_be_told() -> None:
    lines = demo.summary_table(SUMMARY, pathlib.Path("report.html")).splitlines()
    assert any("1.500 better" in line for line in lines)
    by_task = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in SUMMARY["tasks"]}
    assert "0.694 - 0.844" in by_task["readmission"]
    assert "0.139" in by_task["death"] and "too few" in by_task["death"]
    assert by_task["onset"].split()[1] == "-"
    assert not any("floor" in line for line in lines)


def test_the_table_tells_what_the_world_knows() -> None:
    known = {"floor": 0.628, "excess": 0.372, "excess_by_kind": {"DIAGNOSIS": 0.9, "VALUE": 0.11}}
    tasks = {name: task | {"best_auroc": 0.88} for name, task in SUMMARY["tasks"].items()}
    table = demo.summary_table(SUMMARY | known | {"tasks": tasks}, pathlib.Path("report.html"))
    assert "0.372 above it" in table and "diagnosis 0.900, value 0.110" in table and table.count("0.880") == 3


def test_an_interrupted_demo_goes_on_and_a_finished_one_starts_anew(tmp_path) -> None:
    workdir = tmp_path / "demo"
    assert demo._open_workdir(workdir, None) == 0.0
    (workdir / "corpus").mkdir()
    (workdir / "demo.json").write_text(json.dumps({"meds": None, "wall_s": 7.0}))
    assert demo._open_workdir(workdir, None) == 7.0 and (workdir / "corpus").exists()
    (workdir / "summary.json").write_text("{}")
    assert demo._open_workdir(workdir, None) == 0.0 and not (workdir / "corpus").exists()


def test_a_demo_of_other_data_starts_anew(tmp_path) -> None:
    workdir = tmp_path / "demo"
    demo._open_workdir(workdir, None)
    (workdir / "corpus").mkdir()
    demo._open_workdir(workdir, tmp_path / "meds")
    assert not (workdir / "corpus").exists()


def test_wrong_data_are_refused_before_an_earlier_demo_goes(tmp_path) -> None:
    with pytest.raises(UserError, match="none"):
        demo.run_demo(tmp_path / "new", tmp_path / "none")
    assert not (tmp_path / "new").exists()
    workdir = tmp_path / "demo"
    demo._open_workdir(workdir, None)
    (workdir / "corpus").mkdir()
    with pytest.raises(UserError, match="none"):
        demo.run_demo(workdir, tmp_path / "none")
    assert (workdir / "corpus").exists()


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(UserError, match="no demo"):
        demo._open_workdir(tmp_path, None)
    assert (tmp_path / "precious").read_text() == "mine"
