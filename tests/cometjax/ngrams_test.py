"""The count models are proper distributions, tuned on training data alone, and as strong as they should be."""

import numpy as np
import pytest

from cometjax import ngrams

VOCAB = 12


def _batches(chain_VxV: np.ndarray, rows: int, length: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    cumulative = chain_VxV.cumsum(axis=1)
    tokens = np.zeros((rows, length + 1), np.int32)
    tokens[:, 0] = rng.integers(0, len(chain_VxV), rows)
    for step in range(length):
        tokens[:, step + 1] = (rng.random((rows, 1)) > cumulative[tokens[:, step]]).sum(axis=1)
    batch = {
        "tokens_BxL": tokens[:, :-1],
        "targets_BxL": tokens[:, 1:],
        "loss_weights_BxL": np.ones((rows, length), np.float32),
    }
    return [{key: value[start : start + 8] for key, value in batch.items()} for start in range(0, rows, 8)]


@pytest.fixture(scope="module")
def chain_VxV() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.3), VOCAB)


def _entropy(chain_VxV: np.ndarray) -> float:
    values, vectors = np.linalg.eig(chain_VxV.T)
    stationary = np.real(vectors[:, np.argmax(values.real)])
    stationary /= stationary.sum()
    return float(-(stationary[:, None] * chain_VxV * np.log(np.maximum(chain_VxV, 1e-300))).sum())


def test_bigram_reaches_the_entropy_of_a_markov_chain_and_unigram_does_not(chain_VxV: np.ndarray) -> None:
    losses = ngrams.ngram_losses(_batches(chain_VxV, 400, 100, 1), _batches(chain_VxV, 100, 100, 2), VOCAB)
    assert losses["bigram_loss"] == pytest.approx(_entropy(chain_VxV), abs=0.03)
    assert losses["bigram_loss"] < losses["unigram_loss"] - 0.3
    assert losses["targets"] == 100 * 100 and losses["training_targets"] == 400 * 100


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("discounts", [(0.9, 0.4), (0.05, 0.97)])
def test_probabilities_sum_to_one_after_any_input(continuation: bool, discounts: tuple[float, float]) -> None:
    sparse = np.random.default_rng(1).dirichlet(np.full(VOCAB, 0.05), VOCAB)
    counts = ngrams.count_pairs(_batches(sparse, 3, 9, 0), VOCAB)
    seen = len(np.unique(counts.keys // VOCAB))
    assert seen < VOCAB, "an input never seen must be among those checked"
    model = ngrams.Bigram(counts, ngrams.Smoothing(0.1, *discounts, continuation))
    for token in range(VOCAB):
        total = model.probability(np.full(VOCAB, token), np.arange(VOCAB)).sum()
        assert total == pytest.approx(1.0, abs=1e-12)
    assert ngrams.Unigram(counts.targets_V, 0.5).probabilities_V.sum() == pytest.approx(1.0)


def test_positions_without_weight_are_neither_counted_nor_scored(chain_VxV: np.ndarray) -> None:
    batch = _batches(chain_VxV, 8, 20, 3)[0]
    masked = dict(batch, loss_weights_BxL=batch["loss_weights_BxL"].copy())
    masked["loss_weights_BxL"][:, 10:] = 0
    short = {key: value[:, :10] for key, value in batch.items()}
    got, expected = ngrams.count_pairs([masked], VOCAB), ngrams.count_pairs([short], VOCAB)
    np.testing.assert_array_equal(got.targets_V, expected.targets_V)
    np.testing.assert_array_equal(got.keys, expected.keys)
    np.testing.assert_array_equal(got.pairs, expected.pairs)


def test_loss_is_the_mean_surprise_of_the_targets(chain_VxV: np.ndarray) -> None:
    training, tuning = _batches(chain_VxV, 16, 30, 4), _batches(chain_VxV, 8, 30, 5)
    model = ngrams.Bigram(ngrams.count_pairs(training, VOCAB), ngrams.Smoothing(0.1, 0.6, 0.4, True))
    inputs = np.concatenate([batch["tokens_BxL"].ravel() for batch in tuning])
    targets = np.concatenate([batch["targets_BxL"].ravel() for batch in tuning])
    expected = -np.log(model.probability(inputs, targets)).mean()
    assert ngrams.loss(model, ngrams.count_pairs(tuning, VOCAB)) == pytest.approx(expected)


def test_summing_parts_now_and_then_changes_nothing(chain_VxV: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches(chain_VxV, 80, 10, 6)
    whole = ngrams.count_pairs(batches, VOCAB)
    monkeypatch.setattr(ngrams, "_PARTS_HELD", 2)
    parts = ngrams.count_pairs(batches, VOCAB)
    np.testing.assert_array_equal(parts.keys, whole.keys)
    np.testing.assert_array_equal(parts.pairs, whole.pairs)


def test_tuned_smoothing_is_no_worse_than_any_fixed_one_on_the_slice_it_was_tuned_on(chain_VxV: np.ndarray) -> None:
    fitting = ngrams.count_pairs(_batches(chain_VxV, 8, 20, 7), VOCAB)
    choosing = ngrams.count_pairs(_batches(chain_VxV, 8, 20, 8), VOCAB)
    best = ngrams.choose_smoothing(fitting, choosing)
    tuned = ngrams.loss(ngrams.Bigram(fitting, best), choosing)
    for discount in (0.05, 0.5, 0.97):
        for continuation in (False, True):
            fixed = ngrams.Smoothing(best.pseudo_count, discount, discount, continuation)
            assert tuned <= ngrams.loss(ngrams.Bigram(fitting, fixed), choosing) + 1e-12


def test_the_tuning_split_does_not_touch_the_fit(chain_VxV: np.ndarray) -> None:
    training = _batches(chain_VxV, 40, 30, 9)
    first = ngrams.ngram_losses(training, _batches(chain_VxV, 8, 30, 10), VOCAB)
    second = ngrams.ngram_losses(training, _batches(chain_VxV[::-1], 8, 30, 11), VOCAB)
    assert first["smoothing"] == second["smoothing"]
    assert first["bigram_loss"] != second["bigram_loss"]
