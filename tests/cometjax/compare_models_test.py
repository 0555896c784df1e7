"""One page for several evaluations: of the same rows only, counting only tasks with enough events, working offline."""

import json
import pathlib
import re
import shutil
import subprocess

import polars as pl
import pytest

from cometjax import compare_models, comparison_page, evaluations, model_comparison, tasks
from data_pipeline.errors import UserError
from experiments.tasks import suite
from tests.cometjax import made_up_evaluations

ASKED = ("emergency_chest_imaging", "readmission_30d", "emergency_admission", "count_encounters_1y", "time_to_test")
NOWHERE = tasks.Task(name="nowhere", index="DEATH", horizon_days=9, outcome="DIAGNOSIS//ICD9CM//250.*")
MIN_EVENTS = 20
CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), "")


@pytest.fixture(scope="module")
def folders(world_meds, world_corpus, tmp_path_factory) -> dict[str, pathlib.Path]:
    """Evaluations of a model that knows little, one that knows much, and one that was asked fewer rows."""
    root = tmp_path_factory.mktemp("evaluations")
    asked = [task for task in tasks.tasks_from_config(suite.get_config()) if task.name in ASKED]
    where = {"split": "tuning,held_out"}
    rows = made_up_evaluations.ask(world_meds, world_corpus, [*asked, NOWHERE], rows=120, **where)
    fewer = made_up_evaluations.ask(world_meds, world_corpus, [*asked, NOWHERE], rows=110, **where)
    return {
        "large": made_up_evaluations.write(root / "large", rows, "large", parameters=900_000, skill=1.0),
        "small": made_up_evaluations.write(root / "small", rows, "sm<a>ll", parameters=9_000, skill=0.1),
        "fewer": made_up_evaluations.write(root / "fewer", fewer, "fewer", parameters=5_000, skill=0.1),
    }


@pytest.fixture(scope="module")
def compared(folders) -> pathlib.Path:
    out = folders["large"].parent / "compared"
    found = evaluations.read([folders["large"], folders["small"]])
    said = compare_models.write(out, found, min_events=MIN_EVENTS, progress=False)
    assert "large against sm<a>ll: better on" in said and "cannot run: nowhere: outcome DIAGNOSIS//ICD9CM" in said
    return out


def changed(folder: pathlib.Path, out: pathlib.Path, change) -> pathlib.Path:
    """A copy with another results.json."""
    shutil.copytree(folder, out)
    results = json.loads((out / "results.json").read_text())
    change(results)
    (out / "results.json").write_text(json.dumps(results))
    return out


def test_tasks_of_few_events_are_shown_and_not_counted(compared) -> None:
    comparison = json.loads((compared / "comparison.json").read_text())
    few = {name for name, task in comparison["tasks"].items() if task["positives"] < MIN_EVENTS}
    assert few and set(comparison["tasks"]) == set(ASKED) and set(comparison["cannot_run"]) == {"nowhere"}
    for summary in comparison["between_models"].values():
        names = [name for part in ("better", "worse", "not_told_apart", "untested") for name in summary[part]]
        assert sorted([*names, *few]) == sorted(ASKED) and set(summary["few_events"]) == few
    counted = comparison["models"]["large"]["counted_tasks"]
    assert counted == sum(task["metric"] == "auroc" and name not in few for name, task in comparison["tasks"].items())
    page = (compared / "report.html").read_text()
    assert page.count('class="few"') == len(few)


def test_the_model_that_knows_more_is_better_in_every_metric(folders) -> None:
    small, large = evaluations.read([folders["large"], folders["small"]])
    assert (small.name, large.name) == ("sm<a>ll", "large")  # by size
    for name in ASKED:
        forth = model_comparison.model_gain(large, small, name)
        back = model_comparison.model_gain(small, large, name)
        assert forth["value"] > 0.05 and back["value"] == pytest.approx(-forth["value"]), name
        metric = model_comparison.metric_of(large.asked[name])
        differ = large.asked[name][metric] - small.asked[name][metric]
        assert forth["value"] == pytest.approx(differ if metric == "auroc" else -differ), name


def test_baselines_of_the_whole_suite_are_compared_on_all_its_tasks(compared) -> None:
    comparison = json.loads((compared / "comparison.json").read_text())
    against = comparison["against_baselines"]["large"]
    counts = {
        name: sum(len(own) for key, own in summary.items() if isinstance(own, list))
        for name, summary in against.items()
    }
    assert counts == {"prevalence": 5, "logistic_regression": 3}
    assert {"count_encounters_1y", "time_to_test"} <= set(against["prevalence"]["better"])


def test_other_rows_are_refused_with_both_counts(folders) -> None:
    with pytest.raises(UserError, match=r"110 rows in common: 110 rows of \d+ subjects and 120 rows of"):
        evaluations.read([folders["large"], folders["fewer"]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["run"].update(corpus_fingerprint="ab" * 32), "the corpus: 0f0f.* and abab"),
        (lambda r: r["run"]["dataset"].update(subjects=301), "of 300 subjects and made up 1 of 301"),
        (lambda r: r["tasks"]["readmission_30d"].update(horizon_days=31), r"horizon_days 30.* and horizon_days 31"),
        (lambda r: r["cannot_run"].pop("nowhere"), "task 'nowhere': cannot run .* and not asked"),
        (lambda r: r["run"]["options"].update(max_training_subjects=99), "max_training_subjects: 100 and 99"),
        (lambda r: r.pop("losses"), "lacks losses; evaluate again"),
    ],
)
def test_what_was_asked_otherwise_is_refused_with_both_values(folders, tmp_path, change, says) -> None:
    other = changed(folders["small"], tmp_path / "other", change)
    with pytest.raises(UserError, match=says) as refusal:
        evaluations.read([folders["small"], other])
    assert "\n" not in str(refusal.value)


def test_a_folder_that_is_none_and_names_that_do_not_fit_are_refused(folders, tmp_path) -> None:
    with pytest.raises(UserError, match="is no evaluation's folder"):
        evaluations.read([tmp_path])
    with pytest.raises(UserError, match="is given twice"):
        evaluations.read([folders["large"], folders["large"]])
    with pytest.raises(UserError, match="2 names for 2 evaluations, 1 of them different"):
        evaluations.read([folders["large"], folders["small"]], ["a", "a"])


def test_one_evaluation_makes_a_page_too(folders, tmp_path) -> None:
    found = evaluations.read([folders["large"]], ["L"])
    compare_models.write(tmp_path / "page", found, min_events=10_000, progress=False)
    text = (tmp_path / "page" / "report.html").read_text()
    assert "No task has 10000 events" in text and "Does size help" not in text
    assert "<small>of 0</small>" not in text


def test_what_no_task_has_is_not_counted_as_none_of_none(compared) -> None:
    comparison = json.loads((compared / "comparison.json").read_text())
    comparison["models"]["large"] |= {"counted_tasks": 1, "tasks_with_slope": 0, "slopes_within": 0}
    said = comparison_page.text_table(comparison)
    assert re.search(r"^large: .*\n  median AUROC 0\.\d{3} over 1 task with at least 20 events$", said, re.MULTILINE)


def test_subjects_are_called_unseen_only_where_no_training_subject_is_scored(folders, compared, tmp_path) -> None:
    def of_train(results: dict) -> None:
        results["run"]["options"]["split"] = "train"

    found = evaluations.read([changed(folders["large"], tmp_path / "train", of_train)])
    compare_models.write(tmp_path / "page", found, min_events=MIN_EVENTS, progress=False)
    told = (tmp_path / "page" / "report.html").read_text(), (compared / "report.html").read_text()
    assert ["not seen (" in page for page in told] == [False, True] and "subjects (train split" in told[0]


def test_where_no_best_possible_is_known_there_are_no_columns_of_it(folders, compared, tmp_path) -> None:
    def forget(results: dict) -> None:
        for task in results["tasks"].values():
            task["best"] |= {"auroc": None, "low": None, "high": None, "auroc_share": None, "reason": "of other rules"}

    found = evaluations.read([changed(folders["large"], tmp_path / "other", forget)])
    compare_models.write(tmp_path / "page", found, min_events=MIN_EVENTS, progress=False)
    text = (tmp_path / "page" / "report.html").read_text()
    assert "Best<br>possible" in (compared / "report.html").read_text() and "Best<br>possible" not in text
    assert text.count("of other rules") == 1  # once for all tasks


def test_the_page_holds_every_task_and_nothing_from_outside(compared) -> None:
    text = (compared / "report.html").read_text()
    assert "sm&lt;a&gt;ll" in text and "sm<a>ll" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text) and "http:" not in text and "https:" not in text
    for name in ASKED:
        assert f'href="#task-{name}"' in text and f'<section id="task-{name}">' in text
    assert "matches no concept" in text
    subjects = pl.read_parquet(next((compared.parent / "large" / "labels").iterdir())).get_column("subject_id")
    assert not any(f">{subject}<" in text for subject in subjects if subject > 1000)


@pytest.mark.skipif(not CHROMIUM, reason="SKIPPED FOR LACK OF A BROWSER: no chromium on the PATH")
def test_a_browser_sorts_and_filters_without_console_errors(compared, tmp_path) -> None:
    probe = """<script>
    window.addEventListener("load", function () {
      var table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells[1];
      function column() { return [...table.tBodies[0].rows].map((row) => row.cells[1].dataset.sort); }
      head.click(); var down = column().join(","); head.click(); var up = column().join(",");
      document.getElementById("enough").checked = true;
      document.getElementById("enough").dispatchEvent(new Event("input"));
      var hidden = document.querySelectorAll("tbody tr[hidden]").length;
      document.title = "down=" + down + " up=" + up + " hidden=" + hidden + " loaded=" +
        performance.getEntriesByType("resource").length;
    });
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text((compared / "report.html").read_text().replace("</body>", probe))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=180,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    said = dict(part.split("=") for part in re.search(r"<title>(.*?)</title>", done.stdout).group(1).split())
    down = [int(count) for count in said["down"].split(",")]
    assert down == sorted(down, reverse=True) and said["up"] == ",".join(map(str, sorted(down)))
    assert int(said["hidden"]) == (compared / "report.html").read_text().count('class="few"') and said["loaded"] == "0"
