"""A study from plan to report, on results from a known surface: what it finds, refuses, keeps and hands over."""

import dataclasses
import json
import math
import pathlib

import pytest

from cometjax.model import ModelConfig, num_parameters
from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.world import scoring
from experiments.launch import jobset, slurm
from experiments.scaling import cluster, family, report_figures, study, study_config, trials
from experiments.scaling.plan import Plan
from experiments.scaling.recipe import Shape
from tests.experiments.scaling import made_up_study
from tests.experiments.scaling.made_up_study import TRUE

# A grid around the known surface's optimum; nothing of it is trained.
GRID = {
    "recipe__width_multiple": 4,
    "grid__budgets": (1e11, 2e11, 4e11),
    "grid__sizes": 5,
    "grid__spread": 3.0,
    "pilot__tokens_per_parameter": 350.0,
}
# What says how long trials take.
PILOT = {"pilot__budgets": (2e10,), "pilot__widths": (12, 20, 32), "pilot__learning_rates": (2e-2,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Holds the corpus of all studies here."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """The page without its figures, which take most of its time and are tested in report_test.py."""
    monkeypatch.setattr(report_figures, "to_svg", lambda *_: "<svg></svg>")


@pytest.fixture
def pretended(monkeypatch):
    """Local trials are not trained: their results are drawn from the known surface. Their names come back."""
    names = []

    def run_all(_plan, _path, chosen, workdir, **_) -> None:
        names.extend(trial.name for trial in chosen if not trials.is_finished(workdir, trial))
        made_up_study.pretend(workdir, chosen)

    monkeypatch.setattr(study.local, "run_all", run_all)
    return names


def run(folder, workdir, launch=None, *, said=None, changes=None, **options):
    config = made_up_study.config(folder, **(GRID | (changes or {})))
    say = (lambda _: None) if said is None else said.append
    options.setdefault("yes", True)  # without a pilot nothing says what a plan costs
    return study.run(config, workdir, launch or study.Launch(), say=say, **options)


def test_a_study_ends_with_fits_a_family_a_check_and_a_report(folder, tmp_path, pretended) -> None:
    said = []
    changes = {
        "pilot__budgets": (2e10, 5e10), "pilot__widths": (12, 20, 32), "pilot__learning_rates": (8e-3, 2e-2, 5e-2),
        "seeds__repeats": 2, "data__repeated_unique_tokens": (2500.0,), "repeats__widths": (16, 32),
        "repeats__epochs": (4.0, 16.0), "fit__bootstrap": 60,
    }  # fmt: skip
    found = run(folder, tmp_path / "run", said=said, changes=changes)
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    assert fit["refused"] == []
    assert fit["approach3"]["huber"]["n_exponent"] == pytest.approx(TRUE.n_exponent, abs=0.02)
    assert set(fit) >= {"approach1", "approach2", "approach3", "holdout", "gates", "noise_floor", "repeated", "check"}
    assert len(fit["noise_floor"]["losses"]) == 3 and fit["noise_floor"]["standard_deviation"] < 0.02
    assert fit["check"]["within_interval"] and abs(fit["check"]["relative_error"]) < 0.01
    first, second = fit["check"]["by_kind"]
    assert (first["kind"], first["share"], second["kind"]) == ("DIAGNOSIS", 0.25, "LAB")
    assert first["measured"] / first["foretold"] == pytest.approx(0.8, rel=0.01)
    assert first["contribution"] == pytest.approx(0.25 * (first["foretold"] - first["measured"]))
    # An interval grows with the drift, beyond the grid and only there.
    assert found is not None
    for factor, wider in ((1.0, False), (16.0, True)):
        n, d = (float(value) for value in found.fitted.optimum(factor * found.points.c_P.max()))
        found.result["extrapolation"]["drift"] = 0.0
        without = found.predict(n, d)
        found.result["extrapolation"]["drift"] = 0.05
        assert (found.predict(n, d).high > without.high * 1.02) == wider
    plan = Plan.load(tmp_path / "run" / "plan.json")
    # The pilot's best rate, and a calibration that knows how the results' seconds were made.
    for trial in plan.of("grid"):
        assert trial.overrides["optimizer.learning_rate"] == pytest.approx(made_up_study.BEST_RATE, rel=0.15)
        assert trial.seconds == pytest.approx(5.0 + trial.flops / 3e9, rel=0.01)
    family = json.loads((tmp_path / "run" / "family.json").read_text())
    assert [one["times_largest"] for one in family["members"]] == [1.0, 4.0, 16.0]
    assert family["members"][1]["n"] == fit["check"]["n"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "REFUSED" not in page and "More patients or more passes" in page and "check-1p6e12" in page
    assert "Where the difference lies" in page
    assert any("foretold" in text and "inside the interval" in text for text in said)


def test_the_check_and_the_family_count_what_the_trained_model_has(folder, tmp_path, pretended) -> None:
    # Untied, and far beyond the trials' own ladder.
    changes = {"base__model__tied_embeddings": False, "recipe__max_width": 72, "check__factor": 64.0}
    run(folder, tmp_path / "run", changes={"fit__bootstrap": 0, "family__factors": (1.0, 64.0)} | changes)
    made = family.load(str(tmp_path / "run" / "family.json"))
    one = made["members"][1]
    config = family.config_of(made, one)
    assert one["n"] == num_parameters(ModelConfig.from_config(config.model, made["vocab_size"]))
    (checked,) = Plan.load(tmp_path / "run" / "check.json").trials
    assert (checked.n, checked.shape, checked.steps) == (one["n"], Shape(**one["shape"]), one["steps"])
    assert 6 * one["n"] * one["steps"] * one["batch_rows"] * made["targets_per_row"] == pytest.approx(
        64 * 4e11, rel=1e-3
    )


def test_without_a_bootstrap_there_is_no_interval_to_be_outside_of(folder, tmp_path, pretended) -> None:
    said = []
    run(folder, tmp_path / "run", said=said, changes={"fit__bootstrap": 0})
    assert any("foretold" in text and "no interval to judge it by" in text for text in said)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no interval" in page and "<td>NO</td>" not in page
    for name in ("check.json", "fit.json", "family.json"):
        assert "NaN" not in (tmp_path / "run" / name).read_text()
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["check"]["within_interval"] is None


def test_a_plan_costs_every_trial_and_a_dry_run_stops_there(folder, tmp_path, pretended) -> None:
    said = []
    assert run(folder, tmp_path / "run", said=said, dry_run=True) is None
    assert pretended == [] and not (tmp_path / "run" / "fit.json").exists()
    content = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert content["totals"]["trials"] == 15 and content["totals"]["seconds"] is None
    for trial in content["trials"]:
        assert trial["flops_6nd"] == pytest.approx(6 * trial["n"] * trial["tokens"])
        assert trial["flops_6nd"] == pytest.approx(trial["budget"], rel=0.01)
        assert trial["epochs"] == pytest.approx(trial["tokens"] / trial["unique_tokens"])
        assert trial["n"] > trial["n_without_embeddings"] and trial["flops"] > trial["flops_6nd"]
    by_budget = {b: [t["n"] for t in content["trials"] if t["budget"] == b] for b in GRID["grid__budgets"]}
    for sizes in by_budget.values():
        assert len(set(sizes)) == 5
    middle = [math.sqrt(sizes[0] * sizes[-1]) for sizes in by_budget.values()]
    # The grid's centre grows as the square root of the budget.
    assert middle[2] / middle[0] == pytest.approx(2.0, rel=0.15)
    assert "nothing was measured" in said[-2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_or_endless_is_refused_by_the_whole_name_of_its_field(value) -> None:
    config = study_config.default_config()
    defaults = {
        name: default for name, default in study._flat(config.to_dict()).items() if isinstance(default, float | tuple)
    }
    assert {"run.limit_device_hours", "base.optimizer.b1", "recipe.learning_rate.coefficient"} < defaults.keys()
    for name, default in defaults.items():
        config.update_from_flattened_dict({name: (1.0, value) if isinstance(default, tuple) else value})
        with pytest.raises(UserError, match=rf"^config\.{name}: .*{value}.* cannot be used; use a finite value$"):
            study_config.validate(config)
        config.update_from_flattened_dict({name: default})


def test_budgets_that_would_share_trials_are_refused(folder, tmp_path, pretended) -> None:
    with pytest.raises(UserError, match=r"config.grid: two trials would be named grid-1e11-w\d+; .*three digits"):
        run(folder, tmp_path / "run", changes={"grid__budgets": (1e11, 1.001e11, 2e11, 4e11)})
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"grid__budgets": (1e11, 2e11)}, "2 budgets, 3 are needed"),
     ({"grid__sizes": 4}, "4 sizes of each budget, 5 are needed"),
     ({"grid__budgets": (1e11,), "grid__sizes": 2}, "1 budgets, 3 are needed; 2 sizes of each budget, 5 are needed")],
)  # fmt: skip
def test_a_grid_that_a_gate_would_refuse_is_refused_before_anything_is_trained(
    folder, tmp_path, pretended, changes, says
) -> None:
    with pytest.raises(UserError, match=rf"config.grid: {says}: every trial .*config.grid.rehearsal=True"):
        run(folder, tmp_path / "run", changes=changes)
    assert not (tmp_path / "run").exists() and pretended == []
    said = []
    run(folder, tmp_path / "run", changes=changes | {"grid__rehearsal": True}, dry_run=True, said=said)
    assert any(text.startswith(f"WARNING: a rehearsal ({says})") for text in said)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"grid__sizes": 4, "grid__rehearsal": True}, "0 budgets have 5 sizes"),
     ({"grid__budgets": (1e11, 2e11), "grid__rehearsal": True}, "3 are needed"),
     ({"grid__shift": 4.0}, "minimum lies beyond the sizes tried"),
     ({"fit__max_holdout_error": 1e-7}, "mean error of")],
)  # fmt: skip
def test_a_closed_gate_refuses_the_family_and_the_page_says_why(folder, tmp_path, pretended, changes, says) -> None:
    found = run(folder, tmp_path / "run", changes={"fit__bootstrap": 0} | changes)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "REFUSED" in page and says in page and any(says in reason for reason in found.refused)
    assert not (tmp_path / "run" / "family.json").exists() and not (tmp_path / "run" / "check.json").exists()
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["refused"]


def test_a_loss_without_a_minimum_refuses_the_family(folder, tmp_path, monkeypatch) -> None:
    def bent(trial) -> float:
        return 3.0 - 0.05 * math.log(trial.n / 7000.0) ** 2 - 0.1 * math.log(trial.budget / 1e11)

    monkeypatch.setattr(
        study.local, "run_all",
        lambda _plan, _path, chosen, workdir, **_: made_up_study.pretend(workdir, chosen, loss_of=bent),
    )  # fmt: skip
    found = run(folder, tmp_path / "run", changes={"fit__bootstrap": 0})
    assert any("opens downwards" in reason for reason in found.refused)
    assert "opens downwards" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "family.json").exists()


def test_a_finished_trial_is_never_run_again_and_the_plan_stays(folder, tmp_path, pretended) -> None:
    run(folder, tmp_path / "run", changes={"fit__bootstrap": 0})
    first, plan = list(pretended), (tmp_path / "run" / "plan.json").read_bytes()
    (trials.folder(tmp_path / "run", first[3]) / "result.json").unlink()
    (trials.folder(tmp_path / "run", first[3]) / "metrics.jsonl").unlink()
    trials.folder(tmp_path / "run", first[3]).rmdir()
    pretended.clear()
    run(folder, tmp_path / "run", changes={"fit__bootstrap": 0})
    assert pretended == [first[3]]
    assert (tmp_path / "run" / "plan.json").read_bytes() == plan


def test_another_configuration_is_refused_with_both_values(folder, tmp_path, pretended) -> None:
    run(folder, tmp_path / "run", dry_run=True)
    with pytest.raises(UserError, match=r"grid.sizes is 6 but was 5"):
        run(folder, tmp_path / "run", changes={"grid__sizes": 6})
    run(folder, tmp_path / "run", changes={"fit__bootstrap": 3, "run__workers": 1}, dry_run=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="no study"):
        run(folder, tmp_path / "other")


def test_a_cost_that_was_not_agreed_to_is_not_spent(folder, tmp_path, pretended) -> None:
    changes = PILOT | {"run__limit_device_hours": 0.0, "fit__bootstrap": 0}
    with pytest.raises(UserError, match=r"15 trials would take .*--yes"):
        run(folder, tmp_path / "run", changes=changes, yes=False)
    assert not any(name.startswith("grid") for name in pretended)
    run(folder, tmp_path / "run", changes=changes, yes=True)
    assert any(name.startswith("grid") for name in pretended)


def test_only_the_trials_left_are_asked_about_and_the_check_by_itself(folder, tmp_path, pretended) -> None:
    changes = PILOT | {"fit__bootstrap": 0, "check__factor": 40.0}
    run(folder, tmp_path / "run", changes=changes, dry_run=True)
    plan = Plan.load(tmp_path / "run" / "plan.json")
    made_up_study.pretend(tmp_path / "run", plan.trials[:-1])
    limit = {"run__limit_device_hours": 1.01 * plan.trials[-1].device_hours}
    with pytest.raises(UserError, match=r"check-1p6e13-w\d+ would take .*--yes"):
        run(folder, tmp_path / "run", changes=changes | limit, yes=False)
    assert pretended[-1] == plan.trials[-1].name and (tmp_path / "run" / "report.html").exists()
    # Until a check is agreed to, it may be another one.
    run(folder, tmp_path / "run", changes=changes | {"check__factor": 4.0}, yes=False)
    assert pretended[-1].startswith("check-1p6e12")
    with pytest.raises(UserError, match=r"check.factor is 40.0 but was 4.0"):
        run(folder, tmp_path / "run", changes=changes)


def test_data_that_would_be_repeated_is_refused(folder, tmp_path, pretended) -> None:
    with pytest.raises(UserError, match=r"grid-.* unique tokens .* times"):
        run(folder, tmp_path / "run", changes={"data__max_epochs": 1.0})
    changes = {"fit__bootstrap": 0, "check__factor": 40.0}
    run(folder, tmp_path / "run", changes=changes, dry_run=True)
    most = max(trial.epochs for trial in Plan.load(tmp_path / "run" / "plan.json").trials)
    with pytest.raises(UserError, match=r"check-.* unique tokens .* times"):
        run(folder, tmp_path / "run", changes=changes | {"data__max_epochs": most})
    run(folder, tmp_path / "run", changes=changes)
    assert pretended[-1].startswith("check-1p6e13")


def test_a_slurm_study_writes_an_array_and_takes_up_what_came_of_it(folder, tmp_path, monkeypatch) -> None:
    launch = study.Launch("slurm", slurm.default_config())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(study.Waiting):
        run(folder, pathlib.Path("elsewhere"), launch)
    # A job starts in a folder of its own.
    script = (tmp_path / "elsewhere" / "launch" / "grid" / "train.sbatch").read_text()
    assert f"--config.corpus={tmp_path / 'elsewhere' / 'corpus'}" in script
    with pytest.raises(study.Waiting, match=r"0 of 15 .*\n.*sbatch"):
        run(folder, tmp_path / "run", launch)
    script = (tmp_path / "run" / "launch" / "grid" / "train.sbatch").read_text()
    assert "#SBATCH --array=0-14" in script and "from_json.py:" in script
    planned = Plan.load(tmp_path / "run" / "plan.json").trials
    # While trials come in, the report can be written again and again; it refuses until all are there.
    made_up_study.pretend(tmp_path / "run", planned[:12])
    said = []
    with pytest.raises(study.Waiting, match=r"12 of 15"):
        run(folder, tmp_path / "run", launch, said=said, changes={"fit__bootstrap": 0})
    assert "#SBATCH --array=0-2" in (tmp_path / "run" / "launch" / "grid" / "train.sbatch").read_text()
    assert any("12 of 15 trials of the grid are finished" in text for text in said)
    assert "12 of 15" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "family.json").exists()
    made_up_study.pretend(tmp_path / "run", planned)
    run(folder, tmp_path / "run", launch, report_only=True, changes={"fit__bootstrap": 0})
    assert (tmp_path / "run" / "family.json").exists()
    with pytest.raises(study.Waiting, match="check: 0 of 1"):
        run(folder, tmp_path / "run", launch, changes={"fit__bootstrap": 0})


def test_a_jobset_study_writes_a_manifest_for_each_trial(folder, tmp_path) -> None:
    gke = jobset.default_config()
    gke.image, gke.claim, gke.mount_path, gke.topology = "image", "claim", str(tmp_path), "v5e:2x2"
    with pytest.raises(study.Waiting, match="kubectl apply"):
        run(folder, tmp_path / "run", study.Launch("jobset", gke))
    manifests = sorted((tmp_path / "run" / "launch" / "grid").glob("*.yaml"))
    assert len(manifests) == 15 and "--config.train.steps=" in manifests[0].read_text()
    # The folder is applied as a whole: it holds no trial that is finished.
    planned = Plan.load(tmp_path / "run" / "plan.json").trials
    made_up_study.pretend(tmp_path / "run", planned[:12])
    with pytest.raises(study.Waiting, match="12 of 15"):
        run(folder, tmp_path / "run", study.Launch("jobset", gke), changes={"fit__bootstrap": 0})
    left = {path.stem for path in (tmp_path / "run" / "launch" / "grid").iterdir()}
    assert left == {trial.name for trial in planned[12:]}


def test_a_corpus_that_is_a_url_stays_one_on_a_cluster(folder, tmp_path) -> None:
    launch = study.Launch("slurm", slurm.default_config())
    with pytest.raises(study.Waiting):
        run(folder, tmp_path / "run", launch)
    (one, *_) = Plan.load(tmp_path / "run" / "plan.json").trials
    distant = dataclasses.replace(one, overrides={**one.overrides, "corpus": "gs://bucket/corpus"})
    cluster.write([distant], "grid", tmp_path / "run", launcher="slurm", cluster=launch.cluster, name="tiny")
    assert "--config.corpus=gs://bucket/corpus\n" in (tmp_path / "run/launch/grid/train.sbatch").read_text()


def test_a_cluster_that_cannot_train_the_planned_trials_is_refused(folder, tmp_path) -> None:
    nodes = slurm.default_config()
    nodes.gpus_per_node = 16
    with pytest.raises(UserError, match="8 rows cannot be split over 16 devices"):
        run(folder, tmp_path / "run", study.Launch("slurm", nodes))
    assert not (tmp_path / "run" / "launch").exists()


def test_an_entropy_floor_stands_beside_e(folder, tmp_path, pretended) -> None:
    changes = {"fit__bootstrap": 0}
    page = tmp_path / "run" / "report.html"
    run(folder, tmp_path / "run", changes=changes)
    assert "true entropy not known" in page.read_text()
    (tmp_path / "floor.json").write_text('{"split": "tuning", "floor": 1.1234}')
    elsewhere = changes | {"data__entropy_floor": str(tmp_path / "floor.json")}
    run(folder, tmp_path / "run", changes=elsewhere, report_only=True)
    assert "true entropy 1.1234" in page.read_text()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other.json: has no entropy floor"):
        run(folder, tmp_path / "run", changes=changes | {"data__entropy_floor": str(tmp_path / "other.json")})


def test_the_worlds_own_entropy_stands_beside_e(folder, tmp_path, pretended, world_meds, world_corpus) -> None:
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=1, min_values_per_code=20)
    build_corpus(world_meds, tmp_path / "scorable", config, workers=1)
    run(folder, tmp_path / "run", changes={"fit__bootstrap": 0, "data__corpus": str(tmp_path / "scorable")})
    floor = scoring.split_floor(Corpus.open(tmp_path / "run" / "corpus")).floor
    assert 0.3 < floor < 2 and f"true entropy {floor:.4f}" in (tmp_path / "run" / "report.html").read_text()

    said = []
    run(folder, tmp_path / "rare", said=said, changes={"fit__bootstrap": 0, "data__corpus": str(world_corpus)})
    assert "true entropy not known" in (tmp_path / "rare" / "report.html").read_text()
    assert any(line.startswith("true entropy: ") and "UNKNOWN" in line for line in said)
