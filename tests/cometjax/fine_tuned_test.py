"""A linear head on the backbone: prompts packed as if alone, a signal found, the best epoch kept."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import decode
from cometjax import fine_tuned
from cometjax.baselines import TrainingRows
from cometjax.config import default_config
from cometjax.model import ModelConfig

SIGNAL = 7
SETTINGS = fine_tuned.FineTuning(epochs=3, batch_tokens=256, learning_rate_share=1.0)


def made_config(learning_rate: float = 1e-2):
    config = default_config()
    config.train.row_length = 32
    config.optimizer.learning_rate = learning_rate
    return config


@pytest.fixture(scope="module")
def backbone() -> fine_tuned.Backbone:
    return fine_tuned.Backbone(
        decode.lively_model(ModelConfig(40, 1, 16, 2, 2, 8, 32)), made_config(), settings=SETTINGS
    )


def drawn(rows: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Prompts of random tokens, and whether the signal stands among the last five."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(8, 40, int(size)).astype(np.int32) for size in rng.integers(8, 31, rows)]
    labels_N = rng.random(rows) < 0.5
    for prompt, label in zip(prompts, labels_N, strict=True):
        if label:
            prompt[-int(rng.integers(1, 6))] = SIGNAL
    return prompts, labels_N


def training_of(labels_N: np.ndarray) -> TrainingRows:
    return TrainingRows.weighted(labels_N, np.arange(len(labels_N)) // 2)


def test_packed_prompts_are_read_as_if_each_were_alone(backbone) -> None:
    prompts, _ = drawn(40, seed=0)
    packed_NxD = backbone.hidden_states(prompts)
    alone_NxD = np.concatenate([backbone.hidden_states([prompt]) for prompt in prompts])
    np.testing.assert_allclose(packed_NxD, alone_NxD, atol=1e-5)
    seen = [index for _, row_P in fine_tuned.pack(prompts, np.arange(40), 4, 32) for index in row_P[row_P >= 0]]
    assert sorted(seen) == list(range(40))


def test_the_probe_and_fine_tuning_find_a_signal_and_fine_tuning_more_of_it(backbone) -> None:
    prompts, labels_N = drawn(400, seed=1)
    asked, truth_N = drawn(200, seed=2)
    training = training_of(labels_N)
    probe = backbone.fit_probe(backbone.hidden_states(prompts), training, seed=0)
    tuned = backbone.fine_tune(prompts, training, seed=0)
    frozen_auroc = roc_auc_score(truth_N, probe.predict(backbone.hidden_states(asked)))
    tuned_auroc = roc_auc_score(truth_N, tuned.predict(asked))
    assert frozen_auroc > 0.65
    assert tuned_auroc > max(0.9, frozen_auroc) and tuned.epoch > 0
    again = backbone.fine_tune(prompts, training, seed=0)
    np.testing.assert_array_equal(tuned.predict(asked), again.predict(asked))


def test_epochs_that_make_it_worse_are_not_kept(backbone) -> None:
    wild = fine_tuned.Backbone(
        decode.lively_model(ModelConfig(40, 1, 16, 2, 2, 8, 32)),
        made_config(learning_rate=30.0),
        dataclasses.replace(SETTINGS, epochs=1),
    )
    prompts, labels_N = drawn(120, seed=3)
    training = training_of(labels_N)
    tuned = wild.fine_tune(prompts, training, seed=0)
    assert tuned.epoch == 0
    is_apart_N = fine_tuned.held_apart(training.subjects_N, SETTINGS.validation_share, seed=0)
    learned = training.part(np.flatnonzero(~is_apart_N))
    hidden_NxD = wild.hidden_states(prompts)
    probe = wild.fit_probe(hidden_NxD[~is_apart_N], learned, seed=0)
    np.testing.assert_allclose(tuned.predict(prompts), probe.predict(hidden_NxD), atol=1e-4)


def test_subjects_held_apart_are_apart(backbone) -> None:
    subjects_N = np.repeat(np.arange(100), 3)
    is_apart_N = fine_tuned.held_apart(subjects_N, 0.2, seed=0)
    assert is_apart_N.sum() == 60
    assert not set(subjects_N[is_apart_N]) & set(subjects_N[~is_apart_N])


def test_without_a_class_among_the_subjects_held_apart_it_says_so(backbone) -> None:
    prompts, labels_N = drawn(40, seed=4)
    labels_N[:] = False
    labels_N[0] = True
    assert "held apart" in backbone.fine_tune(prompts, training_of(labels_N), seed=0)
