"""The floor and the best AUROC are of the very targets and rows that the model is scored on, and of the world alone."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from cometjax import labels, scores, tasks, world_truth
from data_pipeline import build_config, meds
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.world import scoring
from experiments.configs import tasks_world

DEATH, READMISSION, _ = tasks.tasks_from_config(tasks_world.get_config())


@pytest.fixture(scope="module")
def corpus(world_meds, tmp_path_factory) -> Corpus:
    """With a token for every code that a training subject has: so many UNKNOWN as in others cannot be enumerated."""
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=1, min_values_per_code=20)
    return Corpus.open(build_corpus(world_meds, tmp_path_factory.mktemp("truth") / "corpus", config, workers=1).root)


def line_above_floor(corpus: Corpus, by: float) -> dict[str, float]:
    floor = scoring.split_floor(corpus)
    line = {"loss": floor.floor + by} | {f"tokens/{kind}": n for kind, n in floor.targets_by_kind.items()}
    return line | {f"loss/{kind}": value + by for kind, value in floor.floor_by_kind.items()}


def test_the_excess_is_what_the_loss_has_over_the_floor_in_total_and_by_kind(corpus) -> None:
    said = world_truth.loss_floor(corpus, line_above_floor(corpus, 0.125))
    assert said["excess"] == pytest.approx(0.125)
    assert said["excess_by_kind"] == pytest.approx(dict.fromkeys(said["floor_by_kind"], 0.125))
    assert len(said["excess_by_kind"]) > 5 and 0.2 < said["floor"] < 1.5


def test_a_loss_of_a_part_of_the_split_has_no_floor_and_says_so(corpus) -> None:
    line = line_above_floor(corpus, 0.1)
    line["tokens/SEX"] = line.get("tokens/SEX", 0) + 1
    said = world_truth.loss_floor(corpus, line)
    assert list(said) == ["floor_reason"] and "targets" in said["floor_reason"]


def test_a_floor_that_cannot_be_computed_is_a_reason_and_no_end(world_corpus) -> None:
    said = world_truth.loss_floor(Corpus.open(world_corpus), {"loss": 1.0})
    assert list(said) == ["floor_reason"] and "UNKNOWN" in said["floor_reason"]


def test_of_other_data_nothing_is_said(corpus, world_meds) -> None:
    manifest = dict(corpus.manifest) | {"source": {"name": "MIMIC-IV", "version": "3.1"}}
    assert world_truth.loss_floor(Corpus(corpus.root, manifest), {"loss": 1.0}) == {}
    dataset = dataclasses.replace(meds.open_dataset(world_meds), name="MIMIC-IV")
    assert world_truth.true_risks(dataset, corpus.vocabulary, [DEATH], {}, draws=10, seed=0) == {}


@pytest.fixture(scope="module")
def rows(world_meds, corpus) -> dict[str, pl.DataFrame]:
    dataset = meds.open_dataset(world_meds)
    held_out = dataset.splits.filter(pl.col("split") == "held_out")["subject_id"].to_list()
    events = tasks.read_events(dataset, held_out, corpus.vocabulary.code_map)
    return {task.name: labels.label(events, held_out, task).frame for task in (DEATH, READMISSION)}


def test_true_risks_belong_to_their_rows_in_any_order(world_meds, corpus, rows) -> None:
    dataset = meds.open_dataset(world_meds)
    asked = {name: frame[:12] for name, frame in rows.items()}
    found = world_truth.true_risks(dataset, corpus.vocabulary, [DEATH, READMISSION], asked, draws=20, seed=0)
    assert all(len(found[name].risk_N) == len(asked[name]) > 5 for name in asked)
    turned = {name: frame[::-1] for name, frame in asked.items()}
    again = world_truth.true_risks(dataset, corpus.vocabulary, [DEATH, READMISSION], turned, draws=20, seed=0)
    for name in asked:
        np.testing.assert_allclose(again[name].halves_2xN[:, ::-1], found[name].halves_2xN)
        assert 0 < found[name].risk_N.mean() < 1
    with pytest.raises(UserError, match="odd"):
        world_truth.true_risks(dataset, corpus.vocabulary, [DEATH], asked, draws=7, seed=0)


def test_what_the_world_cannot_tell_is_refused_with_the_reason(world_meds, corpus, rows) -> None:
    dataset = meds.open_dataset(world_meds)
    complete = dataclasses.replace(DEATH, name="complete", censoring="assume_complete")
    found = world_truth.true_risks(dataset, corpus.vocabulary, [complete], rows, draws=20, seed=0)
    assert "observed" in found["complete"]
    by_date = dataclasses.replace(DEATH, censoring="2022-12-31")
    assert not world_truth._obstacle(by_date, dataset) and not world_truth._obstacle(DEATH, dataset)
    other = dataclasses.replace(dataset, version="patients=300,seed=1,rules=000000000000")
    assert (
        "other rules" in world_truth.true_risks(other, corpus.vocabulary, [DEATH], rows, draws=20, seed=0)["death_1y"]
    )


def test_the_truth_has_all_of_its_own_share_and_a_constant_none() -> None:
    rng = np.random.default_rng(0)
    true_N = rng.beta(1, 2, 400)
    labels_N = rng.random(400) < true_N
    halves_2xN = np.clip(true_N + 0.1 * rng.normal(size=(2, 400)), 0, 1)
    truth = world_truth.TrueRisks(halves_2xN, draws=20)
    frame = pl.DataFrame({"subject_id": np.arange(400), "boolean_value": labels_N, "risk": truth.risk_N})
    said = world_truth.score_beside(truth, frame, resamples=100, seed=0)
    share = said["auroc_share"]
    assert (share["value"], share["low"], share["high"]) == (1.0, 1.0, 1.0) and said["mean_absolute_error"] == 0.0
    # Noise of halves, and with it what is missing to the true AUROC, is twice that of the whole.
    without_noise = scores.auroc_weighted(labels_N.astype(float), true_N, np.ones((1, 400)))[0]
    assert 0 < said["shortfall"] < 0.03 and abs(said["auroc"] + said["shortfall"] - without_noise) < 0.01
    constant = frame.with_columns(risk=pl.lit(0.3))
    assert world_truth.score_beside(truth, constant, resamples=100, seed=0)["auroc_share"]["value"] == 0.0
    one_class = frame.with_columns(boolean_value=pl.lit(True))
    assert world_truth.score_beside(truth, one_class, resamples=100, seed=0)["reason"] == "no negative rows"


STAY, LEFT = r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*", r"ENCOUNTER//ENCOUNTER_END//INPATIENT.*"
WINDOWS = (
    tasks.Task(name="loop", index=STAY, horizon_days=60, outcome="MEDICATION//.*", until=LEFT),
    tasks.Task(name="drugs", index=STAY, horizon_days=60, outcome="MEDICATION//.*", until=LEFT, kind="count"),
    tasks.Task(name="stay", index=STAY, horizon_days=60, outcome=LEFT, kind="duration"),
)


@pytest.fixture(scope="module")
def windows(world_meds, corpus) -> dict[str, tuple[pl.DataFrame, world_truth.TrueRisks]]:
    """By task the rows of admissions, and the world's best predictions of them."""
    dataset = meds.open_dataset(world_meds)
    subjects = dataset.splits["subject_id"].to_list()
    events = tasks.read_events(dataset, subjects, corpus.vocabulary.code_map)
    frames = {task.name: labels.draw_rows(labels.label(events, subjects, task).frame, 90, seed=0) for task in WINDOWS}
    found = world_truth.true_risks(dataset, corpus.vocabulary, WINDOWS, frames, draws=40, seed=0)
    assert not [name for name, truth in found.items() if isinstance(truth, str)]
    return {name: (frames[name], found[name]) for name in frames}


def test_windows_that_close_counts_and_durations_agree_with_what_was_recorded(windows) -> None:
    """Over 90 admissions: how often, the mean logarithm of counts, and half of the stays past their median."""
    frame, truth = windows["loop"]
    risk_N = truth.risk_N
    z = (frame["boolean_value"].sum() - risk_N.sum()) / np.sqrt((risk_N * (1 - risk_N)).sum())
    assert len(frame) == 90 and 5 < risk_N.sum() < 85 and abs(z) < 4
    frame, truth = windows["drugs"]
    missed_N = np.log1p(frame["integer_value"].to_numpy()) - np.log1p(truth.risk_N)
    assert abs(missed_N.mean()) < 4 * missed_N.std() / np.sqrt(len(missed_N)) and truth.risk_N.std() > 0.1
    frame, truth = windows["stay"]
    longer = (frame["float_value"].to_numpy() > truth.risk_N).mean()
    assert 0.3 < longer < 0.7 and truth.risk_N.std() > 0.1


def test_the_best_prediction_of_an_amount_has_all_of_its_own_share_and_a_constant_none(windows) -> None:
    for task in WINDOWS[1:]:
        frame, truth = windows[task.name]
        metric = {"count": "rmsle", "duration": "mae"}[task.kind]
        own = frame.with_columns(mean=pl.Series(truth.risk_N), median=pl.Series(truth.risk_N))
        said = world_truth.score_amounts_beside(truth, own, task, 30.0, resamples=50, seed=0)
        assert said[f"{metric}_share"]["value"] == 1.0 and said[metric] < said[f"{metric}_high"] and said["draws"] == 40
        constant = frame.with_columns(mean=pl.lit(30.0), median=pl.lit(30.0))
        said = world_truth.score_amounts_beside(truth, constant, task, 30.0, resamples=50, seed=0)
        assert said[f"{metric}_share"]["value"] == 0.0
        assert world_truth.score_amounts_beside("why", own, task, 30.0, resamples=9, seed=0)["reason"] == "why"
