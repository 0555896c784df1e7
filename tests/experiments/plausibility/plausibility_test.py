"""A generator that draws from the truth passes, one that memorizes is caught, and one that is wrong is told where."""

import dataclasses
import json
import pathlib
import types

import numpy as np
import polars as pl
import pytest

from benchmarks import decode
from cometjax import checkpoints, tasks
from cometjax.futures import Future, token_seconds
from cometjax.model import ModelConfig
from data_pipeline import meds, prompts
from data_pipeline.code_maps import Concept
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary
from experiments.plausibility import comparison, privacy, profile, report, study, tables, windows
from experiments.plausibility.windows import People, Window

NOBODY = People({}, {})
TOKENS = 200


@pytest.fixture(scope="module")
def vocabulary(world_corpus) -> Vocabulary:
    return Corpus.open(world_corpus).vocabulary


@pytest.fixture(scope="module")
def timelines(world_corpus) -> list[np.ndarray]:
    """Tokens of the world's subjects, without the static prefix."""
    corpus = Corpus.open(world_corpus)
    readers = [corpus.split(name) for name in ("train", "tuning", "held_out")]
    records = [record for reader in readers for record in reader.records(range(len(reader)))]
    return [record.tokens_T[PREFIX_LENGTH:].astype(np.int32) for record in records]


@pytest.fixture(scope="module")
def shown(vocabulary) -> profile.Profile:
    size = len(vocabulary.events)
    return profile.Profile({}, np.full(size, -np.inf), np.full(size, np.inf))


@pytest.fixture
def compare(timelines, vocabulary, shown):
    """compare(generated token arrays) -> results against held-out subjects, each subject of the world in one part."""
    training = privacy.Timelines.of(timelines[::5])
    held_out = [tokens_T for index, tokens_T in enumerate(timelines) if index % 5 in (1, 2)]

    def compared(generated: list[np.ndarray]) -> dict:
        ours, theirs = ([_window(tokens_T, vocabulary) for tokens_T in which] for which in (generated, held_out))
        results, series = study.compare(ours[: len(theirs)], theirs, training, shown, vocabulary, 1, 0)
        return results | {"series": series}

    return compared


def _window(tokens_T: np.ndarray, vocabulary: Vocabulary) -> Window:
    tokens_T = tokens_T[:TOKENS]
    seconds_T = np.cumsum(token_seconds(vocabulary)[tokens_T], dtype=np.int64)
    return Window(0, "", float("nan"), tokens_T, seconds_T, is_cut=False)


@pytest.fixture
def others(timelines) -> list[np.ndarray]:
    """Real subjects that are in neither part: what a perfect generator draws."""
    return [tokens_T for index, tokens_T in enumerate(timelines) if index % 5 in (3, 4)]


def test_a_generator_that_draws_from_the_truth_passes(compare, others) -> None:
    results = compare(others)
    told = results["privacy"]
    assert told["reason"] == "" and min(told["compared"].values()) >= 100
    assert not told["closer"]["above_floor"] and not told["longer"]["above_floor"]
    # At 97.5% of the halves, one in forty of the figures would be above by chance, and they hang together.
    above = [name for name, entry in results["distances"].items() if entry["above_floor"]]
    assert len(above) <= 2, above


def test_a_generator_that_memorizes_is_caught(compare, timelines, others) -> None:
    # Every fifth future is a piece from the middle of a training subject's timeline; the rest is real.
    copied = [
        timelines[index - index % 25][40 : 40 + TOKENS] if index % 5 == 0 else tokens_T
        for index, tokens_T in enumerate(others)
    ]
    told = compare(copied)["privacy"]
    assert told["closer"]["above_floor"] and told["closer"]["half"] > 0.1
    assert told["longer"]["above_floor"] and told["longer"]["half"] > 0.1
    assert told["copy"]["generated"]["max"] == privacy.WINDOW_TOKENS


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        ("without diagnoses", ["prevalence_rmsle"]),
        ("codes of another subject", ["pairs_rmse", "pairs_decorrelation"]),
        ("everything later", ["intervals_tv", "gaps_ks", "gaps_wasserstein", "visits_wasserstein"]),
    ],
)
def test_what_is_wrong_is_told_by_its_figure(compare, others, vocabulary, spoil, names) -> None:
    kinds = np.array([token.kind for token in vocabulary.tokens])
    if spoil == "without diagnoses":
        spoilt = [tokens_T[kinds[tokens_T] != "DIAGNOSIS"] for tokens_T in others]
    elif spoil == "everything later":
        later = np.arange(len(vocabulary))
        later[list(vocabulary.interval_ids[:-1])] = vocabulary.interval_ids[1:]
        spoilt = [later[tokens_T].astype(np.int32) for tokens_T in others]
    else:
        # Pieces of many subjects: each code as common as it is, and none knows of another.
        mixed = np.random.default_rng(0).integers(0, len(others), (len(others), TOKENS // 10))
        spoilt = [np.concatenate([others[who][10 * at : 10 * at + 10] for at, who in enumerate(row)]) for row in mixed]
    distances = compare(spoilt)["distances"]
    assert all(distances[name]["above_floor"] for name in names), {name: distances[name] for name in names}


def test_the_page_needs_nothing_from_outside_itself(compare, others) -> None:
    results = compare(others)
    series = results.pop("series")
    results["run"] = {
        "workdir": "made-up",
        "step": 10,
        "created": "2026-01-02",
        "dataset": {"name": "world", "version": "1"},
        "options": dataclasses.asdict(study.Options()),
        "max_new_tokens": TOKENS,
    }
    results["invalid"] = {"without grammar": {"invalid": 3, "events": 1000, "rate": 0.003}}
    page = report.render(json.loads(json.dumps(results)), series)
    assert page.count("<svg") == 3 and "http:" not in page and "https:" not in page and "<script" not in page
    table = study.text_table(results)
    assert all(name in table for name in (*results["distances"], *results["rates"]))
    assert "Pairs of codes, ln odds ratio" in page
    # In few windows chance has no two codes together often enough.
    results["windows"]["pairs"] = 0
    for name in ("pairs_rmse", "pairs_decorrelation"):
        results["distances"][name] = dict.fromkeys(results["distances"][name])
    page = report.render(results, dataclasses.replace(series, odds=(np.zeros(0), np.zeros(0))))
    assert "pairs are not compared" in page and "Pairs of codes, ln odds ratio" not in page
    assert 'aria-label="Prevalence of codes, generated against held-out"' in page
    assert "\N{EN DASH} to \N{EN DASH}" not in page


def test_distances_and_copies_equal_a_search_by_hand() -> None:
    rng = np.random.default_rng(0)
    training = [rng.integers(0, 3, int(size)) for size in rng.integers(60, 300, 12)]
    asked = [rng.integers(0, 3, int(size)) for size in rng.integers(50, 90, 20)]
    asked[3][10:40] = training[5][20:50]
    asked[7] = np.concatenate([training[0][-20:], training[1][:50]])  # no timeline has what crosses their border
    found = privacy.Timelines.of(training)

    def runs(tokens_T: np.ndarray, length: int) -> set[tuple[int, ...]]:
        return {tuple(tokens_T[at : at + length].tolist()) for at in range(len(tokens_T) - length + 1)}

    for tokens_T, distance, copy in zip(
        asked, privacy.nearest_distances(asked, found), privacy.longest_copies(asked, found), strict=True
    ):
        if len(tokens_T) < privacy.WINDOW_TOKENS:
            assert np.isnan(distance) and np.isnan(copy)
            continue
        begin_T = tokens_T[: privacy.WINDOW_TOKENS]
        own = runs(begin_T, privacy.RUN)
        nearest = max(len(own & runs(timeline, privacy.RUN)) for timeline in training)
        assert distance == pytest.approx(1 - nearest / len(own))
        shared = [n for n in privacy.LENGTHS if any(runs(begin_T, n) & runs(timeline, n) for timeline in training)]
        assert copy == max(shared)


def test_a_model_is_not_told_to_copy_because_it_draws_longer_futures(timelines) -> None:
    training = privacy.Timelines.of(timelines[::5])
    asked = [tokens_T for tokens_T in timelines[1::5] if len(tokens_T) >= 400]
    short, long = (privacy.longest_copies([each[:size] for each in asked], training) for size in (100, 400))
    assert len(asked) > 10
    np.testing.assert_array_equal(short, long)


def test_too_few_windows_are_said_to_be_too_few() -> None:
    few = {"distance": np.ones(20), "copy": np.ones(20)}
    told = comparison.privacy(few, few, comparison.halves(20, 1, 0))
    assert "fewer than 100 windows" in told["reason"] and "closer" not in told


def test_a_perfect_generator_is_seldom_told_to_copy() -> None:
    # Lengths of copies like those of the world's windows, of one distribution: one in forty of the verdicts by chance.
    rng = np.random.default_rng(0)
    verdicts = []
    for seed in range(80):
        ours, theirs = ({"distance": rng.random(200), "copy": 10 + rng.geometric(0.5, 200)} for _ in range(2))
        told = comparison.privacy(ours, theirs, comparison.halves(200, 1, seed))
        verdicts.append([told[name]["above_floor"] for name in ("closer", "longer")])
    assert np.mean(verdicts, axis=0).max() < 0.1


def test_recorded_windows_are_what_the_data_have_after_the_prediction_time(world_meds, vocabulary) -> None:
    dataset = meds.open_dataset(world_meds)
    events = pl.concat([meds.read_shard(shard) for shard in dataset.shards]).drop_nulls("time")
    events = events.filter(pl.col("code") != "OBSERVATION_END")
    rows = (
        events.group_by("subject_id")
        .agg(prediction_time=pl.col("time").sort().get(pl.len() // 2))
        .sort("subject_id")
        .head(20)
    )
    histories = prompts.build_prompts(dataset, rows, vocabulary)
    limit = 200 * 86_400

    def recorded(seconds: float, max_tokens: int = 1 << 20) -> list[Window]:
        return windows.recorded(dataset, histories, NOBODY, vocabulary, horizon_seconds=seconds, max_tokens=max_tokens)

    found = recorded(limit)
    for (subject, time), window, whole in zip(rows.iter_rows(), found, recorded(1e9), strict=True):
        later = events.filter((pl.col("subject_id") == subject) & (pl.col("time") > time))
        assert len(whole.events(vocabulary)) == len(later) and not whole.is_cut
        size = len(window.tokens_T)
        np.testing.assert_array_equal(window.tokens_T, whole.tokens_T[:size])
        assert (window.seconds_T <= limit).all()
        beyond = whole.seconds_T[size:][~np.isin(whole.tokens_T[size:], vocabulary.interval_ids)]
        assert (beyond > limit).all()
    cut = recorded(limit, max_tokens=10)
    assert any(window.is_cut for window in cut)
    for window, whole in zip(cut, found, strict=True):
        assert len(window.tokens_T) <= 10
        np.testing.assert_array_equal(window.tokens_T, whole.tokens_T[: len(window.tokens_T)])


def test_the_silence_until_observation_ends_is_no_time_between_events(vocabulary) -> None:
    visit, year, end = (vocabulary.ids[text] for text in ("CPT//99213", "INTERVAL//6mt+", "TIMELINE_END"))
    for tail in ([], [year, end], [end], [year]):
        future = Future(1, 0, 0, np.array([visit, *tail], np.int32), "timeline_end")
        (window,) = windows.generated([future], NOBODY, vocabulary, horizon_seconds=1e9)
        assert window.tokens_T.tolist() == [visit] and len(window.seconds_T) == 1


def test_codes_of_one_sex_and_their_ages_are_told_by_training_alone(vocabulary) -> None:
    diagnoses = [index for index, event in enumerate(vocabulary.events) if event.kind == "DIAGNOSIS"][:2]
    parts = {index: parts for parts, index in vocabulary.event_of_parts.items()}
    concepts = (
        Concept("SEX//F", "DEMOGRAPHIC", "sex", ("SEX", "F"), 0),
        Concept("SEX//M", "DEMOGRAPHIC", "sex", ("SEX", "M"), 0),
        Concept("BIRTH", "DEMOGRAPHIC", "birth", ("BIRTH",), 0),
        *(Concept(vocabulary.events[index].concept, "DIAGNOSIS", "", parts[index], 0) for index in diagnoses),
    )
    day_us = 86_400_000_000
    rows = []
    for subject in range(200):
        rows += [(subject, tasks.BEFORE_ALL_TIME_US, subject % 2), (subject, 0, 2)]
        rows.append((subject, (40 + subject % 10) * 36525 * day_us // 100, 3 if subject % 2 == 0 else 4))
    schema = {"subject_id": pl.Int64, "time_us": pl.Int64, "concept": pl.UInt32}
    events = tasks.Events(pl.DataFrame(rows, schema=schema, orient="row"), concepts, 1 << 60)
    people = People.of(events)
    shown = profile.of_training(events, pl.Series(range(200)), people, vocabulary)
    assert shown.only_sex == {diagnoses[0]: "SEX//F", diagnoses[1]: "SEX//M"}
    assert shown.youngest_E[diagnoses[0]] == pytest.approx(40, abs=0.1)
    assert shown.oldest_E[diagnoses[1]] == pytest.approx(49, abs=0.1)
    few = profile.of_training(events, pl.Series(range(10)), people, vocabulary)
    assert not few.only_sex and np.isinf(few.oldest_E).all()
    tokens_T = np.array(vocabulary.events[diagnoses[0]].tokens, np.int32)
    counted = tables.tabulate(
        [
            Window(0, sex, age, tokens_T, np.zeros(len(tokens_T), np.int64), is_cut=False)
            for sex, age in (("SEX//F", 45.0), ("SEX//M", 45.0), ("SEX//F", 90.0), ("", float("nan")))
        ],
        shown,
        vocabulary,
    )
    assert counted.wrong_sex_N.tolist() == [0, 1, 0, 0] and counted.one_sex_N.tolist() == [1, 1, 1, 0]
    assert counted.wrong_age_N.tolist() == [0, 0, 1, 0] and counted.aged_N.tolist() == [1, 1, 1, 0]


@pytest.fixture
def loads(world_corpus, vocabulary, monkeypatch):
    """A workdir's model is this one, whatever the workdir."""

    def load(model: object) -> None:
        config = types.SimpleNamespace(corpus=str(world_corpus), train=types.SimpleNamespace(row_length=600))
        monkeypatch.setattr(checkpoints, "load_for_inference", lambda _, **__: (model, vocabulary, config, 7))

    return load


def test_a_model_that_foretells_the_truth_is_at_distance_zero(
    world_meds, vocabulary, loads, tmp_path, monkeypatch
) -> None:
    loads(None)
    dataset = meds.open_dataset(world_meds)

    def foretold(_, __, histories, config, **___) -> list[Future]:
        # A year more than is asked: what lies beyond the horizon must be left out.
        later = [prompt.prediction_time_us + round((config.horizon_seconds + 3e7) * 1e6) for prompt in histories]
        ids = [prompt.subject_id for prompt in histories]
        rows = pl.DataFrame({"subject_id": ids, "prediction_time": pl.Series(later).cast(pl.Datetime("us"))})
        known = [prompt.tokens(1 << 30) for prompt in histories]
        whole = [prompt.tokens(1 << 30) for prompt in prompts.build_prompts(dataset, rows, vocabulary)]
        return [
            Future(prompt.subject_id, prompt.prediction_time_us, 0, tokens_T[len(before_T) :], "horizon")
            for prompt, before_T, tokens_T in zip(histories, known, whole, strict=True)
        ]

    monkeypatch.setattr(study.engine, "simulate_futures", foretold)
    options = study.Options(samples=1, split="train", max_new_tokens=100_000, max_prompt_tokens=500)
    out = tmp_path / "out"
    results = study.run(pathlib.Path("work"), world_meds, out, options)
    assert all(entry["all"] == pytest.approx(0, abs=1e-9) for entry in results["distances"].values())
    assert all(entry["generated"] == entry["held_out"] for entry in results["rates"].values())
    assert not any(entry["above_floor"] for entry in results["distances"].values())
    assert {path.name for path in out.iterdir()} == {"plausibility.json", "plausibility.html"}
    assert json.loads((out / "plausibility.json").read_text()) == json.loads(json.dumps(results))


def test_a_window_that_ends_with_observation_has_no_other_end(world_meds, loads, tmp_path) -> None:
    loads(None)
    for censoring in ("observation_end", "2022-12-31"):
        with pytest.raises(UserError, match=rf"^--censoring={censoring}: windows end with observation"):
            study.run(pathlib.Path("work"), world_meds, tmp_path / "out", study.Options(censoring=censoring))
    with pytest.raises(UserError, match=r"^--censoring: unknown censoring 'none'; use dataset_end"):
        study.Options(censoring="none")


@pytest.mark.slow
def test_a_random_model_is_no_health_system(world_meds, vocabulary, loads, tmp_path) -> None:
    loads(decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 32)))
    options = study.Options(samples=2, max_new_tokens=32, max_prompt_tokens=64)
    results = study.run(pathlib.Path("work"), world_meds, tmp_path / "out", options)
    assert results["invalid"]["with grammar"]["rate"] == 0 < results["invalid"]["without grammar"]["rate"]
    assert results["distances"]["prevalence_rmsle"]["above_floor"]
