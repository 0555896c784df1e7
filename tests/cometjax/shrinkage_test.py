"""Predictions drawn towards the mean by their noise: calibrated, in the same order, blind to labels."""

import numpy as np
import polars as pl
import pytest

from cometjax import recalibration, scores, shrinkage


def counted(risk_N: np.ndarray, samples: int, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """(estimates by so many futures of each row, whether it happens)."""
    random = np.random.default_rng(seed)
    share_N = random.binomial(samples, risk_N) / samples
    frame = pl.DataFrame({"risk": share_N, "standard_error": np.sqrt(share_N * (1 - share_N) / samples)})
    return frame.with_columns(samples=pl.lit(samples)), (random.random(len(risk_N)) < risk_N).astype(float)


def test_few_futures_of_a_true_model_are_calibrated_and_keep_their_order() -> None:
    random = np.random.default_rng(1)
    for samples in (4, 8, 16):
        raw, labels_N = counted(random.beta(2, 6, size=20_000), samples)
        shrunk = shrinkage.predictions(raw, counted=True)
        before_N, after_N = raw["risk"].to_numpy(), shrunk["risk"].to_numpy()
        ones_1xN = np.ones((1, len(labels_N)))
        slope = {name: recalibration.slope_weighted(labels_N, p, ones_1xN)[0] for name, p in
                 {"before": before_N, "after": after_N}.items()}  # fmt: skip
        assert slope["before"] < 0.8 and 0.85 < slope["after"] < 1.15, (samples, slope)
        # Beta-binomial: the posterior mean's weight of the share.
        assert shrunk["reliability"][0] == pytest.approx(samples / (samples + 2 + 6), abs=0.02)
        assert np.mean((after_N - labels_N) ** 2) < np.mean((before_N - labels_N) ** 2)
        auroc = [float(scores.auroc_weighted(labels_N, p, ones_1xN)[0]) for p in (before_N, after_N)]
        assert auroc[0] == pytest.approx(auroc[1], abs=1e-12)
        assert after_N.mean() == pytest.approx(before_N.mean(), abs=1e-3)
        assert shrunk["unshrunk"].equals(raw["risk"].alias("unshrunk"))


def test_many_futures_are_left_where_they_are() -> None:
    raw, _ = counted(np.random.default_rng(2).beta(1, 1, size=2_000), 4_096)
    shrunk = shrinkage.predictions(raw, counted=True)
    assert shrunk["reliability"][0] > 0.995
    np.testing.assert_allclose(shrunk["risk"], raw["risk"], atol=0.003)


def test_rows_of_more_futures_are_drawn_less() -> None:
    raw, _ = counted(np.random.default_rng(3).beta(1, 3, size=500), 8)
    more = raw.with_columns(samples=pl.when(pl.int_range(pl.len()) < 250).then(8).otherwise(64))
    reliability = shrinkage.predictions(more, counted=True)["reliability"]
    assert reliability[:250].n_unique() == reliability[250:].n_unique() == 1 and reliability[0] < reliability[499]


def test_noise_alone_keeps_the_order_of_rows_and_what_is_above_one_is_cut_last() -> None:
    noise, _ = counted(np.full(2_000, 0.5), 8)
    shrunk = shrinkage.predictions(noise, counted=True)["risk"]
    assert (shrunk.rank() == noise["risk"].rank()).all() and shrunk.std() < 0.2 * noise["risk"].std()
    sums = pl.DataFrame({"risk": [0.1, 0.4, 1.2, 1.4], "standard_error": [0.5] * 4, "samples": [8] * 4})
    shrunk = shrinkage.predictions(sums, counted=False)
    assert shrunk["unshrunk"].to_list() == [0.1, 0.4, 1.0, 1.0]
    assert shrunk["estimate"].to_list() == [0.1, 0.4, 1.2, 1.4]
    assert shrunk["risk"].is_between(0, 1).all() and shrunk["risk"].n_unique() == 4


def test_risks_that_are_more_alike_than_their_noise_keep_their_order() -> None:
    alike = pl.DataFrame({"risk": [0.4, 0.5, 0.6], "standard_error": [0.2] * 3, "samples": [6] * 3})
    shrunk = shrinkage.predictions(alike, counted=True)
    assert 0 < shrunk["reliability"][0] < 0.1 and shrunk["risk"].is_sorted() and shrunk["risk"].n_unique() == 3


@pytest.mark.parametrize("risks", [[0.3], [0.3, 0.3], []])
def test_where_nothing_is_known_of_the_spread_nothing_is_drawn(risks) -> None:
    frame = pl.DataFrame(
        {"risk": risks, "standard_error": [0.1] * len(risks), "samples": [4] * len(risks)},
        schema={"risk": pl.Float64, "standard_error": pl.Float64, "samples": pl.Int64},
    )
    shrunk = shrinkage.predictions(frame, counted=True)
    assert shrunk["risk"].to_list() == risks and shrunk["reliability"].null_count() == len(risks)


def test_one_future_a_row_has_no_known_noise() -> None:
    raw, _ = counted(np.random.default_rng(4).beta(1, 3, size=100), 1)
    for frame in (raw, raw.with_columns(standard_error=pl.lit(None, pl.Float64))):
        assert shrinkage.predictions(frame, counted=True)["risk"].equals(raw["risk"])
