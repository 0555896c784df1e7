"""The suite: 78 tasks that the synthetic world answers, each told in words; the same table in the documentation."""

import pathlib
import subprocess
import sys

import polars as pl
import pytest

from cometjax import labels, tasks
from data_pipeline import code_maps, meds
from experiments.tasks import __main__ as listing
from experiments.tasks import suite

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALL = suite.make_tasks()


@pytest.fixture(scope="module")
def world_events(world_meds) -> tuple[tasks.Events, list[int]]:
    dataset = meds.open_dataset(world_meds)
    subjects = dataset.splits["subject_id"].to_list()
    return tasks.read_events(dataset, subjects, code_maps.named("world")), subjects


@pytest.fixture(scope="module")
def labelled(world_events) -> dict[str, labels.Labels]:
    return {task.name: labels.label(*world_events, task) for task in ALL}


@pytest.mark.parametrize(
    ("task", "taken", "left"),
    [
        # Of ICD-10-CM, and after the bar of ICD-9-CM.
        ("onset_hypertension", "I10 I110 I129 I130 | 4019 40391", "I150 I160 | 40501"),
        ("onset_stroke", "I639 | 43491 43301 434", "I6529 | 43310 43390 43490"),
        ("onset_fibrillation", "I4891 I480 I48 | 42731", "I4892 I483 | 42732"),
        ("onset_copd", "J449 J439 | 4928 49121 496", "J45901 | 4930"),
        ("onset_coronary_disease", "I2510 I25700 I25810 I259 I25 | 41401 4149 414", "I252 I255 | 412 41410"),
        ("onset_dementia", "F0390 G309 | 29420 29410 3310", "F05 | 2930"),
        ("onset_sleep_apnea", "G4733 | 32723 78057", "G4700 | 78050"),
        ("onset_obesity", "E669 E66 | 27800 27801", "E663 | 27802"),
        ("onset_anemia", "D509 D519 D571 D649 | 2859 2819", "D65 D540 | 2860"),
        ("coronary_infarction", "I214 I222 | 41071 4107 410", "I236 | 41072"),
        ("diabetes_neuropathy", "E1140 | 25060 2506", "E1040 | 25061"),
        ("chest_pain_unspecified", "R079 R0789 R07 | 78650", "R070 R071 R0781 | 78652"),
        ("shortness_of_breath_asthma", "J4521 J45901 | 49392", "J45991 J45909 J45902 | 49390"),
        (
            "abdominal_pain_cholecystitis",
            "K810 K81 K8000 K8012 K8042 | 5750 57400 57512",
            "K811 K8010 K8044 | 57410 57511",
        ),
        ("abdominal_pain_diverticulitis", "K5720 K5732 K5712 K5780 | 56211 56201", "K5730 K5790 K573 | 56210"),
        ("abdominal_pain_gastroenteritis", "K529 A084 A09 | 5589 0088 0090", "K5200 A047 | 5583 00845"),
    ],
)
def test_a_diagnosis_takes_the_codes_that_its_words_tell_in_both_classifications(task, taken, left) -> None:
    (outcome,) = (one.outcome for one in ALL if one.name == task)
    for codes, is_taken in ((taken, True), (left, False)):
        for system, own in zip(("ICD10CM", "ICD9CM"), codes.split("|"), strict=True):
            for code in own.split():
                assert bool(tasks.compiled(outcome).fullmatch(f"DIAGNOSIS//{system}//{code}")) == is_taken, code


def test_there_are_78_and_a_task_file_holds_the_same_ones() -> None:
    assert len(ALL) == len({task.name for task in ALL}) == 78
    assert sorted(tasks.tasks_from_config(suite.get_config()), key=lambda t: t.name) == sorted(
        ALL, key=lambda t: t.name
    )
    assert {task.censoring for task in suite.make_tasks("assume_complete")} == {"assume_complete"}
    assert {task.family for task in ALL} == set(suite.FAMILIES)


def test_every_task_has_rows_and_nearly_all_have_positives_and_negatives_on_a_small_world(labelled) -> None:
    assert all(len(own.frame) for own in labelled.values())
    positives = {name: own.frame["boolean_value"].sum() for name, own in labelled.items()}
    assert sum(count > 0 for count in positives.values()) >= 76, [
        name for name, count in positives.items() if not count
    ]
    assert sum(count >= 5 for count in positives.values()) >= 72
    binary = [task.name for task in ALL if task.kind == "binary"]
    assert all(not labelled[name].frame["boolean_value"].all() for name in binary)


def test_amounts_vary(labelled) -> None:
    for task in ALL:
        if task.kind != "binary":
            values = labelled[task.name].frame[labels.VALUE_COLUMN[task.kind]]
            assert values.n_unique() > 2 and values.min() >= 0, task.name
            if task.kind == "duration":
                assert values.min() > 0 and values.max() <= task.horizon_days, task.name


def test_tasks_of_a_family_share_their_prompts(labelled) -> None:
    rows = [
        labels.draw_rows(labelled[task.name].frame, 40, seed=0).select("subject_id", "prediction_time") for task in ALL
    ]
    assert len(pl.concat(rows).unique()) < 0.3 * sum(map(len, rows))


def test_a_row_is_a_function_of_what_is_recorded_up_to_its_time(world_events, labelled) -> None:
    # Cut every subject's record at one instant: rows at it or before are the same ones, for the same reasons.
    events, subjects = world_events
    cut_us = int(events.frame.filter(pl.col("time_us") > 0)["time_us"].median())
    past = tasks.Events(events.frame.filter(pl.col("time_us") <= cut_us), events.concepts, events.end_us)
    for task in ALL[::4]:
        before = pl.col("prediction_time").cast(pl.Int64) <= cut_us
        whole = (
            labelled[task.name].frame.filter(before).drop("boolean_value", labels.VALUE_COLUMN[task.kind], strict=False)
        )
        assert labels.label(past, subjects, task).frame.select(whole.columns).equals(whole), task.name


def test_the_list_names_every_task_and_says_what_a_data_set_has_of_it(world_meds) -> None:
    command = [sys.executable, "-m", "experiments.tasks", "--list", "--meds", str(world_meds), "--split=train,held_out"]
    printed = subprocess.run([*command, "--code_map=world"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    lines = printed.stdout.splitlines()
    assert len(lines) == 80 and lines[-1] == "78 tasks, 78 of them can run", printed.stderr
    for task, line in zip(ALL, lines[1:], strict=False):
        assert line.startswith(task.name) and task.kind in line and task.metric in line and "rows" in line


def test_a_task_says_why_a_data_set_cannot_answer_it(world_meds) -> None:
    # Read by a map that knows no encounter, no task has an index; by another name the codes are others.
    dataset = meds.open_dataset(world_meds)
    found = listing.survey(dataset, code_maps.named("mimic"), ALL, "held_out")
    assert len(found) == 78 and all(text.startswith("cannot run: ") for text in found.values())
    assert "index ENCOUNTER" in found["readmission_30d"] and "code map 'mimic'" in found["readmission_30d"]


def test_mimic_answers_most_and_says_what_it_lacks(mimic_demo) -> None:
    dataset = meds.open_dataset(mimic_demo)
    found = listing.survey(
        dataset, code_maps.named("mimic"), suite.make_tasks("assume_complete"), "train,tuning,held_out"
    )
    cannot = {name: text for name, text in found.items() if text.startswith("cannot run")}
    assert 15 <= len(cannot) <= 25
    assert sum("CHIEF_COMPLAINT" in text for text in cannot.values()) == 14
    assert "readmission_30d" not in cannot and "onset_diabetes" not in cannot
    for task in ALL:  # a count has no positive rows
        assert task.name in cannot or found[task.name].endswith(" positive") == (task.kind == "binary")


def test_the_documentation_has_the_current_table() -> None:
    table = listing.markdown(ALL)
    assert table in (ROOT / "docs" / "tasks.md").read_text(), "python -m experiments.tasks --list --markdown"
    for task in ALL:
        assert task.description.count("  ") == 0 and len(task.description) < 200
