"""The experiment's bookkeeping, and one run of it on a small corpus."""

import math

import numpy as np
import pytest

from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from experiments import mup_transfer

WIDTHS, RATES = (32, 64, 128), [2.0**octave for octave in range(-10, -4)]


class FakeCorpus:
    fingerprint = "f"


@pytest.fixture
def trials(monkeypatch):
    """Trials whose loss is a parabola in log rate: its minimum moves by half an octave a width, with mup not at all."""
    called = []

    def make_trial(config, corpus):
        width, moves = config.model.width, config.model.parameterization == "standard"
        best = 2 ** (-7.3 - (0.5 * WIDTHS.index(width) if moves else 0.5))

        def trial(rate):
            called.append((config.model.parameterization, width, rate))
            octaves = math.log2(rate / best)
            return float("nan") if rate == RATES[-1] else 1 + 0.1 * octaves**2

        return trial

    monkeypatch.setattr(mup_transfer, "make_trial", make_trial)
    return called


def test_the_best_rate_is_found_between_the_rates_tried_and_its_way_over_the_widths_counted(trials, tmp_path):
    done = mup_transfer.runs(FakeCorpus(), WIDTHS, RATES, 10, tmp_path / "runs.jsonl")
    found = mup_transfer.summary(done, WIDTHS)
    assert found["standard"]["moved_octaves"] == pytest.approx(-1.0)
    assert found["standard"]["cost_of_the_narrowest_widths_rate"] == pytest.approx(0.1 * (1.3**2 - 0.3**2))
    assert found["mup"]["moved_octaves"] == pytest.approx(0.0, abs=1e-9)
    assert found["mup"]["best_rate"] == {str(width): pytest.approx(2**-7.8) for width in WIDTHS}
    for name in ("figure.svg", "figure.png"):
        mup_transfer.draw(done, WIDTHS, tmp_path / name)
    assert "width 128" in (tmp_path / "figure.svg").read_text()


def test_a_stopped_experiment_repeats_nothing_and_the_base_width_is_run_once(trials, tmp_path):
    file = tmp_path / "runs.jsonl"
    mup_transfer.runs(FakeCorpus(), WIDTHS, RATES, 10, file)
    whole = list(trials)
    assert len(file.read_text().splitlines()) == len(whole) == len(set(whole))
    assert [width for _, width, _ in whole].count(32) == 2 * len(RATES)
    assert [width for _, width, _ in whole].count(64) == len(RATES)
    # Beyond the base width, as many as put the minimum between two others.
    assert [way for way, width, _ in whole if width == 128] == ["standard"] * 3 + ["mup"] * 3
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines()[:10]))
    mup_transfer.runs(FakeCorpus(), WIDTHS, RATES, 10, file)
    assert trials[len(whole) :] == whole[10:]
    with pytest.raises(UserError, match="another setting; choose another --out"):
        mup_transfer.runs(FakeCorpus(), WIDTHS, RATES, 11, file)
    with pytest.raises(UserError, match="name -10 in --octaves too"):
        mup_transfer.runs(FakeCorpus(), WIDTHS, RATES[1:], 10, file)
    before = len(trials)
    mup_transfer.runs(FakeCorpus(), WIDTHS, [RATES[0] / 2, *RATES], 10, file)
    assert {rate for _, _, rate in trials[before:]} == {RATES[0] / 2}


def test_at_an_end_of_the_range_the_best_rate_is_the_end():
    assert mup_transfer.best_rate(np.array([1.0, 2, 4]), np.array([3.0, 2, 1])) == (4.0, 1.0)


def test_a_rate_that_is_far_too_low_learns_less(world_corpus, tmp_path):
    corpus = Corpus.open(world_corpus)
    trial = mup_transfer.make_trial(mup_transfer.config_of(32, "mup", 64, steps=10), corpus)
    slow, fast = trial(1e-6), trial(3e-2)
    assert fast < slow - 0.3
    assert trial(3e-2) == fast
