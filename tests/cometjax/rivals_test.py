"""Baselines by name: predicted once and kept, told why when they can't be, and blind to what comes later."""

import dataclasses
import datetime
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest

from benchmarks import decode
from cometjax import fine_tuned, labels, prediction_cache, rivals, tasks
from cometjax.config import default_config
from cometjax.model import ModelConfig
from data_pipeline import meds
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary
from experiments.configs import tasks_world

TASK = tasks.tasks_from_config(tasks_world.get_config())[1]


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / prediction_cache.FOLDER


@pytest.fixture(scope="module")
def vocabulary(world_corpus) -> Vocabulary:
    return Vocabulary.load(world_corpus / "vocabulary.json")


@pytest.fixture(scope="module")
def events(world_meds, vocabulary) -> tasks.Events:
    dataset = meds.open_dataset(world_meds)
    return tasks.read_events(dataset, dataset.splits["subject_id"].to_list(), vocabulary.code_map)


@pytest.fixture(scope="module")
def make(world_meds, events, vocabulary) -> Callable[..., rivals.Rivals]:
    """make(names, seed=...) -> the baselines of an evaluation of a random model on the small world."""
    config = default_config()
    config.train.row_length = 64
    settings = fine_tuned.FineTuning(max_rows=150, epochs=1, batch_tokens=512)
    model = decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 32))
    backbone = fine_tuned.Backbone(model, config, settings)

    def made(names: Sequence[str] = rivals.DEFAULT, seed: int = 0) -> rivals.Rivals:
        return rivals.Rivals(names, meds.open_dataset(world_meds), events, vocabulary, seed, backbone, 64)

    return made


def rows_of(made: rivals.Rivals) -> tuple[pl.DataFrame, pl.DataFrame]:
    frame = labels.label(made.events, made.dataset.splits["subject_id"].to_list(), TASK).frame.head(400)
    is_train = pl.col("subject_id") % 2 == 0
    return frame.filter(is_train), frame.filter(~is_train).head(20)


def test_what_was_fitted_is_kept_and_read_back_the_same(make, own_cache, monkeypatch) -> None:
    made = make(("logistic_regression", "fine_tuned"))
    training, scored = rows_of(made)
    first = made.predict(training, scored)
    assert len(list(own_cache.glob("*/predictions.npy"))) == 2

    def refuse(*_, **__) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(rivals.baselines, "fit_count_model", refuse)
    monkeypatch.setattr(rivals.fine_tuned.Backbone, "fine_tune", refuse)
    again = make(("logistic_regression", "fine_tuned")).predict(training, scored)
    for name in made.names:
        np.testing.assert_array_equal(again[name].risks_N, first[name].risks_N)
        assert again[name].about == first[name].about
    assert first["logistic_regression"].about["training_rows"] == len(training)
    # Whatever it depends on makes another key.
    for other in (
        lambda: make(seed=1).predict(training, scored),
        lambda: made.predict(training.head(len(training) - 1), scored),
        lambda: made.predict(training, scored.head(5)),
    ):
        with pytest.raises(AssertionError, match="fitted again"):
            other()


def test_a_damaged_entry_is_made_again(make, own_cache) -> None:
    made = make()
    training, scored = rows_of(made)
    first = made.predict(training, scored)["logistic_regression"]
    (path,) = own_cache.glob("*/predictions.npy")
    path.write_bytes(path.read_bytes()[:-9])
    again = made.predict(training, scored)["logistic_regression"]
    np.testing.assert_array_equal(again.risks_N, first.risks_N)
    assert len(np.load(path)) == len(scored)


def test_without_xgboost_the_result_says_so(make, own_cache, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    made = make(("logistic_regression", "xgboost"))
    training, scored = rows_of(made)
    told = made.predict(training, scored)
    assert told["xgboost"] == "xgboost is not installed: pip install -e '.[baselines]'"
    # Asked for alone, there is nothing to wait for.
    with pytest.raises(UserError, match="xgboost is not installed; pip install"):
        rivals.check_names(["prevalence", "xgboost"])


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(UserError, match="unknown baseline 'oracle'"):
        rivals.check_names(["prevalence", "oracle"])


def test_nothing_after_the_prediction_time_is_seen(make, own_cache, write_meds) -> None:
    made = make(("logistic_regression", "probe", "fine_tuned"))
    training, scored = rows_of(made)
    before = made.predict(training, scored)
    # The same data set, but whatever follows a scored row's prediction time happened a day later.
    last = dict(scored.group_by("subject_id").agg(pl.col("prediction_time").max()).iter_rows())
    rows = []
    for shard in made.dataset.shards:
        for subject, time, code, value in (
            meds.read_shard(shard).select("subject_id", "time", "code", "numeric_value").iter_rows()
        ):
            later = time is not None and subject in last and time > last[subject]
            rows.append((subject, time + datetime.timedelta(days=1) if later else time, code, value))
    splits = dict(made.dataset.splits.select("subject_id", "split").iter_rows())
    root = write_meds({"all/0": rows}, splits)
    dataset = meds.open_dataset(root)
    events = tasks.read_events(dataset, list(splits), made.vocabulary.code_map)
    changed = dataclasses.replace(made, dataset=dataset, events=events, _hidden={})
    after = changed.predict(training, scored)
    for name in made.names:
        # Concepts are numbered as they are met in the files, and sums round by their order.
        np.testing.assert_allclose(before[name].risks_N, after[name].risks_N, rtol=1e-9)
