"""From a workdir and MEDS data to results.json, predictions and a report; nothing half written."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import types

import ml_collections
import numpy as np
import polars as pl
import pytest

from cometjax import (
    engine,
    evaluate,
    evaluation_futures,
    finished_prompts,
    labels,
    report,
    risks,
    run_description,
    shrinkage,
    tasks,
)
from cometjax.config import default_config
from cometjax.evaluate import Options
from cometjax.job_folder import Part
from cometjax.train import train
from data_pipeline import code_maps, meds, prompts
from data_pipeline.errors import UserError
from experiments.configs import tasks_world

OPTIONS = Options(
    samples=3,
    max_rows_per_task=8,
    max_new_tokens=24,
    max_windows=1,
    max_prompt_tokens=64,
    resamples=50,
    true_risk_draws=10,
)
TASKS = tasks.tasks_from_config(tasks_world.get_config())
STARTS, ENDS = r"ENCOUNTER//ENCOUNTER_START//.*", r"ENCOUNTER//ENCOUNTER_END//INPATIENT.*"
AMOUNTS = (
    tasks.Task(name="visits", index=ENDS, horizon_days=180, outcome=STARTS, kind="count", index_choice="one"),
    tasks.Task(name="stay", index=STARTS[:-2] + "INPATIENT.*", horizon_days=60, outcome=ENDS, kind="duration"),
)
# As of the configuration of a run.
RUN = types.SimpleNamespace(train=types.SimpleNamespace(row_length=128))
NOWHERE = tasks.Task(name="nowhere", index=ENDS, horizon_days=9, outcome="DIAGNOSIS//ICD9CM//250.*")


@pytest.fixture(scope="module")
def run(world_meds, world_corpus, tmp_path_factory) -> pathlib.Path:
    """The workdir of a model that has seen next to nothing."""
    config = default_config()
    config.corpus = str(world_corpus)
    config.model.update(layers=1, width=32, heads=1, kv_heads=1, head_dim=32, mlp_width=32, scan_layers=False)
    config.train.update(
        steps=2, batch_rows=4, row_length=128, log_every=1, eval_every=2, eval_batches=2, checkpoint_every=2
    )
    config.optimizer.update(warmup_steps=1)
    workdir = tmp_path_factory.mktemp("run") / "work"
    train(config, workdir, progress=False)
    return workdir


@pytest.fixture(scope="module")
def evaluated(run, world_meds) -> tuple[pathlib.Path, dict]:
    out = run.parent / "evaluation"
    results = evaluate.evaluate(
        work=run, meds_root=world_meds, tasks=(*TASKS, *AMOUNTS, NOWHERE), out=out, options=OPTIONS, progress=False
    )
    return out, results


def test_everything_is_written_and_nothing_else(evaluated) -> None:
    out, results = evaluated
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    tables = {f"{folder}/{task.name}.parquet" for task in (*TASKS, *AMOUNTS) for folder in ("labels", "predictions")}
    risks_of = {f"risks/{task.name}.parquet" for task in TASKS}
    assert names == {"results.json", "report.html", *tables, *risks_of}
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert not list(out.parent.glob(".*partial"))


def test_predictions_are_in_meds_evaluations_schema_and_equal_the_scored_rows(evaluated) -> None:
    out, results = evaluated
    for task in TASKS:
        predictions = pl.read_parquet(out / "predictions" / f"{task.name}.parquet")
        assert predictions.schema == {
            "subject_id": pl.Int64,
            "prediction_time": pl.Datetime("us"),
            "boolean_value": pl.Boolean,
            "predicted_boolean_value": pl.Boolean,
            "predicted_boolean_probability": pl.Float64,
        }
        result = results["tasks"][task.name]
        assert len(predictions) == result["n"] <= OPTIONS.max_rows_per_task
        assert predictions["boolean_value"].sum() == result["positives"]
        assert predictions["predicted_boolean_probability"].is_between(0.0, 1.0).all()
        assert predictions["predicted_boolean_probability"].mean() == pytest.approx(result["mean_risk"])
        labels = pl.read_parquet(out / "labels" / f"{task.name}.parquet")
        assert labels.equals(predictions.select(labels.columns))


def test_each_rows_risk_has_its_standard_error_and_predictions_follow_from_them(evaluated) -> None:
    out, results = evaluated
    for task in TASKS:
        own, predicted = (pl.read_parquet(out / folder / f"{task.name}.parquet") for folder in ("risks", "predictions"))
        assert own.select("subject_id", "prediction_time").equals(predicted.select("subject_id", "prediction_time"))
        assert own["samples"].to_list() == [OPTIONS.samples] * len(predicted)
        assert own["standard_error"].mean() == results["tasks"][task.name]["mean_standard_error"]
        whole = own.filter(pl.col("truncated") == 0)
        share, error = whole["risk"], (whole["risk"] * (1 - whole["risk"]) / OPTIONS.samples).sqrt()
        assert (share * OPTIONS.samples).round(9).is_in([0.0, 1.0, 2.0, 3.0]).all()
        np.testing.assert_allclose(whole["standard_error"], error, atol=1e-12)
        again = shrinkage.predictions(own, counted=True)
        assert again["risk"].equals(predicted["predicted_boolean_probability"].alias("risk"))


def test_meds_evaluation_takes_the_predictions(evaluated) -> None:
    schema = pytest.importorskip(
        "meds_evaluation.schema", reason="SKIPPED FOR LACK OF A PACKAGE: pip install 'cometjax[evaluation]'"
    )
    for task in TASKS:
        table = pl.read_parquet(evaluated[0] / "predictions" / f"{task.name}.parquet")
        schema.PredictionSchema.align(table.to_arrow())  # raises where a column is wrong, or one too many


def test_amounts_are_estimated_for_their_rows_and_what_cannot_run_is_told(evaluated) -> None:
    out, results = evaluated
    assert set(results["amounts"]) == {"visits", "stay"}
    for name, column in (("visits", "integer_value"), ("stay", "float_value")):
        result, table = results["amounts"][name], pl.read_parquet(out / "predictions" / f"{name}.parquet")
        assert 0 < len(table) == result["n"] <= OPTIONS.max_rows_per_task
        assert table[column].mean() == pytest.approx(result["mean_recorded"])
        assert table["mean"].mean() == pytest.approx(result["mean_predicted"])
        assert (table["median"] - table[column]).abs().mean() == pytest.approx(result["mae"])
        assert result["mae_low"] <= result["mae"] <= result["mae_high"] and result["constant"]["mae"] > 0
        assert (table["low"] <= table["median"]).all() and (table["median"] <= table["high"]).all()
    assert pl.read_parquet(out / "predictions" / "stay.parquet")["mean"].is_between(0, 60).all()
    assert list(results["cannot_run"]) == ["nowhere"] and "matches no concept" in results["cannot_run"]["nowhere"]


def test_constants_are_of_rows_such_as_the_scored_ones(evaluated, world_meds) -> None:
    """Where one row of each subject is scored, each training subject counts once, whatever its number of rows."""
    dataset, predicted = meds.open_dataset(world_meds), {}
    subjects = dataset.splits.filter(split="train")["subject_id"].to_list()
    events = tasks.read_events(dataset, subjects, code_maps.named("world"))
    for task in (*TASKS, *AMOUNTS[:1]):
        frame = labels.label(events, subjects, dataclasses.replace(task, index_choice="all")).frame
        value = pl.col(labels.VALUE_COLUMN[task.kind]).cast(pl.Float64)
        frame = frame.select("subject_id", value=value if task.kind == "binary" else value.log1p())
        by_subject = frame.group_by("subject_id").mean()["value"].mean()
        assert by_subject != pytest.approx(frame["value"].mean(), rel=0.01)
        predicted[task.name] = by_subject if task.index_choice == "one" else frame["value"].mean()
    results = evaluated[1]
    for task in TASKS:
        assert results["tasks"][task.name]["baselines"]["prevalence"]["predicted"] == pytest.approx(
            predicted[task.name]
        )
    assert np.log1p(results["amounts"]["visits"]["constant"]["value"]) == pytest.approx(predicted["visits"])


def test_labels_of_a_folder_give_the_rows_of_their_own_making(evaluated, run, world_meds, tmp_path) -> None:
    out, results = evaluated
    again = evaluate.evaluate(
        work=run,
        meds_root=world_meds,
        tasks=TASKS[:1],
        out=tmp_path / "out",
        options=dataclasses.replace(OPTIONS, labels=str(out / "labels"), max_rows_per_task=5),
        progress=False,
    )
    name = TASKS[0].name
    mine, theirs = (pl.read_parquet(folder / "predictions" / f"{name}.parquet") for folder in (out, tmp_path / "out"))
    # Of the same rows; predictions are drawn to the mean of those that are scored.
    rows = theirs.drop("predicted_boolean_probability")
    assert len(rows) == min(5, len(mine)) and len(rows.join(mine, on=rows.columns, nulls_equal=True)) == len(rows)
    assert again["tasks"][name]["candidates"] == results["tasks"][name]["n"]


def test_only_held_out_subjects_are_scored(evaluated, world_meds) -> None:
    splits = dict(pl.read_parquet(world_meds / "metadata" / "subject_splits.parquet").iter_rows())
    for path in (evaluated[0] / "labels").iterdir():
        assert {splits[subject] for subject in pl.read_parquet(path)["subject_id"]} == {"held_out"}


def test_losses_are_of_the_model_and_of_count_models_on_as_many_targets(evaluated, run) -> None:
    losses = evaluated[1]["losses"]
    tuning = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in tuning if line["split"] == "tuning"][-1]
    assert losses["tuning_loss"] == last["loss"]
    assert losses["targets"] == sum(value for key, value in last.items() if key.startswith("tokens/"))
    assert losses["bigram_loss"] < losses["unigram_loss"]


def test_count_models_see_as_much_of_the_split_as_the_last_evaluation_did(run, world_corpus) -> None:
    config = ml_collections.ConfigDict(json.loads((run / "config.json").read_text()))
    records = [{"split": "tuning", "step": 2, "loss": 3.0}]

    def targets(**batches: int) -> int:
        config.train.update(batches)
        return int(run_description.losses(run, config, records, 2, str(world_corpus), progress=False)["targets"])

    whole = targets(eval_batches=1, last_eval_batches=0)
    assert 0 < targets(eval_batches=0, last_eval_batches=1) < whole == targets(eval_batches=2, last_eval_batches=0)
    del config.train.last_eval_batches  # as in a run of an older version
    assert targets(eval_batches=1) == whole


def test_a_corpus_that_cannot_be_found_is_told_of_and_can_be_named(run, world_corpus, monkeypatch, tmp_path) -> None:
    config = ml_collections.ConfigDict(json.loads((run / "config.json").read_text()))
    records = [{"split": "tuning", "step": 2, "loss": 3.0}]
    config.corpus = "runs/corpus"  # relative: as if training had been started elsewhere
    monkeypatch.chdir(tmp_path)
    lost = run_description.losses(run, config, records, 2, "", progress=False)
    assert lost["tuning_loss"] == 3.0 and "bigram_loss" not in lost
    assert lost["corpus_reason"].startswith("no corpus is at runs/corpus") and "--corpus" in lost["corpus_reason"]
    found = run_description.losses(run, config, records, 2, str(world_corpus), progress=False)
    assert found["bigram_loss"] > 0 and "corpus_reason" not in found


def test_another_corpus_is_refused(run, world_meds, tmp_path) -> None:
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(UserError, match="corpus"):
        evaluate.evaluate(
            work=run,
            meds_root=world_meds,
            tasks=TASKS,
            out=tmp_path / "out",
            options=dataclasses.replace(OPTIONS, corpus=str(tmp_path)),
        )


def test_a_world_whose_truth_cannot_be_computed_says_why(evaluated) -> None:
    out, results = evaluated
    reason = "too many of the codes are UNKNOWN"  # of a few hundred subjects, all codes that fewer than three have
    assert reason in results["losses"]["floor_reason"] and "floor" not in results["losses"]
    for task in results["tasks"].values():  # of few rows a class may be missing, or all histories can be read
        assert ("shortfall" in task["best"]) == (task["best"]["auroc"] is not None)
        assert task["best"]["auroc"] is not None or task["best"]["reason"]
    assert reason in (out / "report.html").read_text() and reason in report.text_table(results)


def test_the_report_tells_the_risk_that_is_scored_of_its_subject(evaluated) -> None:
    out, _ = evaluated
    told = re.findall(r"(\w+): \S+ ± \S+; scored ([\d.]+)<", (out / "report.html").read_text())
    assert told
    for name, risk in told:
        predictions = pl.read_parquet(out / "predictions" / f"{name}.parquet")["predicted_boolean_probability"]
        assert risk in {f"{prediction:.3f}" for prediction in predictions}


def test_the_report_shows_no_subject_id(evaluated) -> None:
    out, _ = evaluated
    page = (out / "report.html").read_text()
    assert "One subject" in page and "http:" not in page and "https:" not in page
    text = page.replace("<svg", "\n<svg")
    ids = pl.read_parquet(out / "labels" / "death_1y.parquet")["subject_id"]
    assert not any(f"subject {subject}" in text or f">{subject}<" in text for subject in ids if subject > 1000)


def test_a_folder_in_use_is_refused_and_left_alone(evaluated, run, world_meds) -> None:
    out, _ = evaluated
    before = (out / "results.json").read_bytes()
    with pytest.raises(UserError, match="not an empty folder"):
        evaluate.evaluate(work=run, meds_root=world_meds, tasks=TASKS, out=out, options=OPTIONS, progress=False)
    assert (out / "results.json").read_bytes() == before


def test_an_odd_number_of_true_risks_draws_is_refused_before_anything_is_simulated() -> None:
    with pytest.raises(UserError, match="true_risk_draws: 3 is odd"):
        Options(true_risk_draws=3)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_a_baseline_cannot_have_is_refused_before_anything_is_drawn(seed) -> None:
    with pytest.raises(UserError, match="seed"):
        Options(seed=seed)


@pytest.mark.parametrize(
    ("options", "chosen", "says"),
    [
        ({"split": "nowhere"}, TASKS, "no subject in split nowhere"),
        ({}, [tasks.Task(name="none", index="NO_SUCH_CONCEPT", horizon_days=1, outcome="DEATH")], "no task has a row"),
    ],
)
def test_nothing_to_score_is_one_clear_error_and_nothing_written(run, world_meds, options, chosen, says) -> None:
    out = run.parent / "never"
    with pytest.raises(UserError, match=says):
        evaluate.evaluate(
            work=run, meds_root=world_meds, tasks=chosen, out=out, options=dataclasses.replace(OPTIONS, **options)
        )
    assert not out.exists() and not list(run.parent.glob(".*partial"))


def test_what_was_drawn_before_a_kill_is_not_drawn_again(evaluated, run, world_meds, tmp_path, monkeypatch) -> None:
    """Cut off in the baselines, after the simulation, and in the midst of it."""
    out, results = tmp_path / "evaluation", evaluated[1]
    again = functools.partial(
        evaluate.evaluate, work=run, meds_root=world_meds, tasks=(*TASKS, *AMOUNTS, NOWHERE), out=out, progress=False
    )
    drawn, rows_at_a_time, real, limit = [], [], engine.iter_futures, [4]

    def watched(*arguments, **settings):
        rows_at_a_time.append(arguments[3].batch_rows)
        for index, futures in real(*arguments, **settings):
            if len(drawn) == limit[0]:
                raise KeyboardInterrupt
            drawn.append(index)
            yield index, futures

    monkeypatch.setattr(engine, "iter_futures", watched)
    monkeypatch.setattr(finished_prompts, "PART_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        again(options=OPTIONS)
    limit[0] = 10_000
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(evaluate, "score_task", lambda *_, **__: 1 / 0)
        again(options=OPTIONS)
    assert len(drawn) == results["simulation"]["prompts"] and not out.exists()
    found = again(options=OPTIONS)
    assert len(drawn) == results["simulation"]["prompts"]
    assert found["simulation"]["tokens_per_second"] is None
    assert "Simulation speed" not in (out / "report.html").read_text()
    for name in ("tasks", "amounts", "comparisons"):
        assert json.dumps(found[name]) == json.dumps(results[name])
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]
    again(options=dataclasses.replace(OPTIONS, seed=1, batch_rows=16), out=tmp_path / "other")
    assert len(drawn) > results["simulation"]["prompts"]
    assert rows_at_a_time[0] == 128 and rows_at_a_time[-1] == 16


def test_parts_evaluate_together_as_one_process_does(evaluated, run, world_meds, tmp_path, monkeypatch, capsys) -> None:
    out, results = tmp_path / "evaluation", evaluated[1]
    drawn, iter_futures = [], engine.iter_futures

    def watched(*arguments, **settings):
        for item in iter_futures(*arguments, **settings):
            drawn.append(item)
            yield item

    monkeypatch.setattr(engine, "iter_futures", watched)
    part = functools.partial(
        evaluate.evaluate, work=run, meds_root=world_meds, tasks=(*TASKS, *AMOUNTS, NOWHERE), out=out, progress=False
    )
    assert part(options=OPTIONS, part=Part(1, 2)) == {} and "part 0 (from 0) not yet" in capsys.readouterr().out
    with pytest.raises(UserError, match="of other settings"):
        part(options=dataclasses.replace(OPTIONS, resamples=49), part=Part(0, 2))
    with pytest.raises(UserError, match="of other tasks, prompts"):
        evaluate.evaluate(work=run, meds_root=world_meds, tasks=TASKS[:1], out=out, options=OPTIONS, progress=False)
    of_one = len(drawn)
    found = part(options=OPTIONS, part=Part(0, 2))
    assert 0 < of_one < len(drawn) == results["simulation"]["prompts"]
    for name in ("tasks", "amounts", "comparisons", "cannot_run"):
        assert json.dumps(found[name]) == json.dumps(results[name])
    for path in (out / "predictions").iterdir():
        assert path.read_bytes() == (evaluated[0] / "predictions" / path.name).read_bytes()
    capsys.readouterr()
    assert part(options=OPTIONS, part=Part(1, 2)) == {}
    assert "already written by this job; nothing is left for part 1 of 2" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not an empty folder"):
        part(options=dataclasses.replace(OPTIONS, resamples=49), part=Part(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_each_prompt_lives_to_its_longest_horizon_and_records_end_only_where_that_is_an_answer(monkeypatch) -> None:
    calls = {}

    def record(self, asked, days, chosen, *_, **__) -> str:
        calls[self.config.timeline_end == "stop"] = self.config, dict(zip(asked, days, strict=True)), chosen
        return f"of {len(chosen)}"

    monkeypatch.setattr(risks.Sampler, "simulate", record)
    monkeypatch.setattr(prompts, "build_prompts", lambda _, wanted, __: wanted.get_column("subject_id").to_list())
    rows = {}

    def task(name: str, days: float, censoring: str, subjects: list[int]) -> tasks.Task:
        frame = pl.DataFrame({"subject_id": subjects}).with_columns(prediction_time=pl.datetime(2020, 1, 1))
        rows[name] = types.SimpleNamespace(scored=frame)
        return tasks.Task(name=name, index="X", outcome="Y", horizon_days=days, censoring=censoring)

    soon, late = task("soon", 30, "dataset_end", [1, 2]), task("late", 365, "2020-12-31", [2, 3])
    whole = task("whole", 90, "assume_complete", [1])
    sampler = risks.Sampler(None, None, evaluate._drawing(RUN, Options(samples=3, max_windows=5)))
    groups = evaluation_futures.groups(sampler, None, [soon, whole, late], rows)
    found = {timeline_end: group.simulate(progress=False) for timeline_end, group in groups.items()}
    assert found == {soon.timeline_end: "of 2", whole.timeline_end: "of 1"}  # prompts that are alike are drawn once
    config, days, chosen = calls[False]
    assert days == {1: 30, 2: 365, 3: 365} and chosen == [soon, late] and config.horizon_seconds == 365 * 86_400
    config, days, chosen = calls[True]
    assert days == {1: 90} and chosen == [whole] and config.horizon_seconds == 90 * 86_400
    assert (config.samples, config.max_prompt_tokens, config.max_new_tokens, config.max_windows) == (3, 64, 64, 5)


def test_the_constant_of_a_duration_is_the_training_rows_median(evaluated, world_meds) -> None:
    dataset, stay = meds.open_dataset(world_meds), AMOUNTS[1]
    subjects = dataset.splits.filter(split="train")["subject_id"].to_list()
    events = tasks.read_events(dataset, subjects, code_maps.named("world"))
    days = labels.label(events, subjects, stay).frame["float_value"]
    constant = evaluated[1]["amounts"]["stay"]["constant"]["value"]
    assert (days < constant).mean() <= 0.5 and (days > constant).mean() <= 0.5


def test_scores_by_samples_are_told_of_every_task(evaluated) -> None:
    _, results = evaluated
    for task in results["tasks"].values():
        table = task["by_samples"]
        assert [row["samples"] for row in table] == ([1, 2, 3] if task["n"] else [])
        assert not table or (table[-1]["auroc"], table[-1]["brier"]) == (task["auroc"], task["brier"])


@pytest.mark.slow
def test_scope_predicts_the_same_rows_finer_than_by_counting(run, world_meds, evaluated, tmp_path) -> None:
    options = dataclasses.replace(OPTIONS, estimator="scope", target_se=0.2)
    results = evaluate.evaluate(
        work=run, meds_root=world_meds, tasks=TASKS, out=tmp_path / "out", options=options, progress=False
    )
    assert results["run"]["options"]["estimator"] == "scope"
    for task in TASKS:
        counted, summed = (
            pl.read_parquet(out / "predictions" / f"{task.name}.parquet") for out in (evaluated[0], tmp_path / "out")
        )
        assert counted.drop("predicted_boolean_probability").equals(summed.drop("predicted_boolean_probability"))
        risk = summed["predicted_boolean_probability"]
        assert risk.is_between(0, 1).all()
        assert (risk * 6 % 1 > 1e-3).any()  # of 3 samples, Monte-Carlo has thirds
        own = pl.read_parquet(tmp_path / "out" / "risks" / f"{task.name}.parquet")
        assert len(own) == len(summed) and (own["standard_error"] >= 0).all() and own["samples"].is_between(1, 3).all()


ACES_READMISSION = """
predicates:
  discharge: {code: {regex: "ENCOUNTER_END//INPATIENT//(HOME|HOME_CARE|HOSPICE|NURSING_FACILITY)"}}
  admission: {code: {regex: "ENCOUNTER_START//INPATIENT.*"}}
trigger: discharge
windows:
  input: {start: null, end: trigger, start_inclusive: true, end_inclusive: true, index_timestamp: end}
  target: {start: input.end, end: start + 30d, start_inclusive: false, end_inclusive: true, label: admission}
"""


@pytest.fixture(scope="module")
def aces_labels(world_meds, tmp_path_factory) -> pathlib.Path:
    """A folder of label files that ACES has made of the world; its package wants an older polars than ours."""
    python = os.environ.get("COMETJAX_ACES_PYTHON")
    if not python:
        pytest.skip("SKIPPED FOR LACK OF ACES: set COMETJAX_ACES_PYTHON to a Python with es-aces 0.7 (docs/tasks.md)")
    folder = tmp_path_factory.mktemp("aces")
    (folder / "readmission.yaml").write_text(ACES_READMISSION)
    data = world_meds / "data"
    shards = ",".join(sorted(str(path.relative_to(data).with_suffix("")) for path in data.rglob("*.parquet")))
    command = [str(pathlib.Path(python).parent / "aces-cli"), "-m", "data=sharded", "data.standard=meds"]
    command += [f"data.root={data}", f"data.shard={shards}", f"cohort_dir={folder}", "cohort_name=readmission"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=200)
    return folder


def test_acess_labels_are_the_same_as_ours_and_are_scored(aces_labels, run, world_meds, tmp_path) -> None:
    task = tasks.Task(
        name="readmission",
        index=r"ENCOUNTER//ENCOUNTER_END//INPATIENT(?!DIED).*",
        horizon_days=30,
        outcome=r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*",
        censoring="assume_complete",
    )
    dataset = meds.open_dataset(world_meds)
    subjects = dataset.splits["subject_id"]
    ours = labels.labels(dataset, subjects.to_list(), task, code_maps.named("world")).frame
    events = tasks.read_events(dataset, subjects.to_list(), code_maps.named("world"))
    theirs = labels.complete(labels.label_files(aces_labels, [task], dataset)["readmission"], events, task)
    assert len(theirs) > 100 and theirs.equals(ours)
    options = dataclasses.replace(OPTIONS, labels=str(aces_labels))
    results = evaluate.evaluate(
        work=run, meds_root=world_meds, tasks=[task], out=tmp_path / "out", options=options, progress=False
    )
    assert 0 < results["tasks"]["readmission"]["n"] <= OPTIONS.max_rows_per_task
