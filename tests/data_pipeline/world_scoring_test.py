"""The entropy floor of a corpus built from the world, and the true risks of its histories."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import threadpoolctl
from scipy import sparse, stats

from data_pipeline import build_config, loader, meds, prompts
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import DECILES
from data_pipeline.world import catalogue, instants, reading, risks, rules, scoring, write_world
from data_pipeline.world.reading import Reader

MONTH = pl.duration(days=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("world") / "meds"
    write_world(root, 600, 11, workers=1)
    return root


@pytest.fixture(scope="module")
def corpus(world: pathlib.Path) -> Corpus:
    """Codes that no training subject has are UNKNOWN in it."""
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=1, min_values_per_code=20)
    return Corpus.open(build_corpus(world, world.parent / "corpus", config, workers=1).root)


@pytest.fixture(scope="module")
def scored(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    return scoring.score_tokens(corpus, "tuning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path / "cache"))


def test_the_floor_counts_exactly_the_targets_of_the_tuning_loss(corpus, scored):
    floor = scoring.floor_of(corpus, "tuning", *scored)
    kind_V, counts = corpus.vocabulary.kind_V, np.zeros(20, np.int64)
    for batch in loader.evaluation_batches(corpus.split("tuning"), loader.LoaderConfig(4, 256, 0)):
        counts += np.bincount(kind_V[batch["targets_BxL"][batch["loss_weights_BxL"] > 0]], minlength=20)
    assert sorted(floor.targets_by_kind.values()) == sorted(counts[counts > 0].tolist())
    assert floor.targets == counts.sum()
    weighted = sum(floor.floor_by_kind[kind] * number for kind, number in floor.targets_by_kind.items())
    assert floor.floor == pytest.approx(weighted / floor.targets)
    assert 0.4 < floor.floor < 0.9 and 0 < floor.standard_error < 0.05


def test_processes_give_the_log_probabilities_of_one(corpus, scored):
    again, _ = scoring.score_tokens(corpus, "tuning", workers=2)
    np.testing.assert_array_equal(again, scored[0])


def test_the_floor_is_kept_in_the_cache(corpus, monkeypatch):
    floor = scoring.split_floor(corpus)
    monkeypatch.setattr(scoring, "score_tokens", lambda *_, **__: pytest.fail("scored again"))
    assert scoring.split_floor(corpus) == floor


def test_no_count_model_beats_the_floor(corpus, scored):
    from cometjax import ngrams

    settings = loader.LoaderConfig(8, 512, 0)
    losses = ngrams.ngram_losses(
        loader.evaluation_batches(corpus.split("train"), settings),
        loader.evaluation_batches(corpus.split("tuning"), settings),
        len(corpus.vocabulary),
    )
    floor = scoring.floor_of(corpus, "tuning", *scored)
    assert losses["targets"] == floor.targets
    assert min(losses["bigram_loss"], losses["unigram_loss"]) > floor.floor + 5 * floor.standard_error


class Observing(reading._Block):
    """Reads as ever, and compares what happens with what was likely, from one choice to the next."""

    def __init__(self, *args) -> None:
        size = lambda: [np.zeros(len(codes)) for codes in catalogue.ELEMENT_CODES]  # noqa: E731
        self.tallies = [size() for _ in range(3)]
        for tally in self.tallies:
            tally.append(np.zeros(2 * rules.GAPS))
            tally.append(np.zeros(len(catalogue.LABS) * DECILES))
        super().__init__(*args)

    def shares(self, rows_n):
        """[S, n]: each row's share of its subject's weight."""
        subject_n, log_n = self._subject_P[rows_n], self._log_weight_P[rows_n]
        most_S = np.full(len(self._end_S), -np.inf)
        np.maximum.at(most_S, subject_n, log_n)
        weight_n = np.exp(log_n - most_S[subject_n])
        share_n = weight_n / np.bincount(subject_n, weight_n)[subject_n]
        return sparse.csr_array((share_n, (subject_n, np.arange(len(rows_n)))), (len(self._end_S), len(rows_n)))

    def expect(self, place, rows_n, p_nxW):
        p_SxW = self.shares(rows_n) @ p_nxW
        self.tallies[0][place] += p_SxW.sum(axis=0)
        self.tallies[1][place] += (p_SxW * (1 - p_SxW)).sum(axis=0)

    def _read_gap(self, rows_n, pos_n, event_nxG, silence_nxG):
        place = len(catalogue.ELEMENT_CODES)
        self.expect(place, rows_n, np.column_stack((event_nxG, silence_nxG)))
        gap_n, log_n, is_silent_n = super()._read_gap(rows_n, pos_n, event_nxG, silence_nxG)
        read = np.flatnonzero(log_n > -np.inf)
        _, first = np.unique(self._subject_P[rows_n[read]], return_index=True)
        np.add.at(self.tallies[2][place], (gap_n + rules.GAPS * is_silent_n)[read[first]], 1)
        return gap_n, log_n, is_silent_n

    def one(self, s, element, rows_n, weights_nxW):
        if element != instants.DEATH:
            self.expect(element, rows_n, weights_nxW / weights_nxW.sum(axis=1, keepdims=True))
        rows_n, code_n = super().one(s, element, rows_n, weights_nxW)
        if element != instants.DEATH:
            np.add.at(self.tallies[2][element], code_n, self.shares(rows_n).sum(axis=0))
        return rows_n, code_n

    def _read_set(self, s, element, rows_n, p_nxW, means_nxW):
        self.expect(element, rows_n, p_nxW)
        rows_n, happens_nxW = super()._read_set(s, element, rows_n, p_nxW, means_nxW)
        self.tallies[2][element] += (self.shares(rows_n) @ happens_nxW).sum(axis=0)
        return rows_n, happens_nxW

    def _read_values(self, rows_k, event_k, code_k, mean_k):
        has = np.flatnonzero(self._decile_n[event_k] > 0)
        if len(has):
            place = len(catalogue.ELEMENT_CODES) + 1
            deciles = np.arange(1, DECILES + 1)
            p = self._reader.thresholds.probability(code_k[has][:, None], deciles, mean_k[has][:, None])
            shares = self.shares(rows_k[has])
            p_SxD = shares @ p
            _, first = np.unique(self._subject_P[rows_k[has]], return_index=True)
            subjects, labs = self._subject_P[rows_k[has]][first], code_k[has][first]
            cells = labs[:, None] * DECILES + deciles - 1
            np.add.at(self.tallies[0][place], cells, p_SxD[subjects])
            np.add.at(self.tallies[1][place], cells, p_SxD[subjects] * (1 - p_SxD[subjects]))
            np.add.at(self.tallies[2][place], labs * DECILES + self._decile_n[event_k][has][first] - 1, 1)
        super()._read_values(rows_k, event_k, code_k, mean_k)


def deviations(corpus: Corpus, split: str) -> np.ndarray:
    """(times seen - times expected) / its standard deviation, of each code, gap and test's decile that may often be.

    Each choice's probability is given all that came before it, so the differences are uncorrelated.
    """
    reader, records = Reader(corpus.vocabulary), corpus.split(split)
    tallies = None
    blocks = np.split(np.argsort(records.lengths_R, kind="stable"), range(128, len(records), 128))
    with threadpoolctl.threadpool_limits(1), np.errstate(divide="ignore"):
        for block in blocks:
            observing = Observing(reader, [record.tokens_T for record in records.records(block.tolist())])
            observing.read()
            flat = np.stack([np.concatenate(tally) for tally in observing.tallies])
            tallies = flat if tallies is None else tallies + flat
    expected, variance, seen = tallies
    often = variance > 10
    return (seen - expected)[often] / np.sqrt(variance[often])


def check_chi_square(z: np.ndarray) -> None:
    assert np.abs(z).max() < 5
    assert 1e-4 < stats.chi2.sf((z**2).sum(), len(z)) < 1 - 1e-4


def test_what_happens_is_as_frequent_as_its_probability_says(corpus):
    z = deviations(corpus, "tuning")
    assert len(z) > 60
    check_chi_square(z)


@pytest.mark.slow
def test_frequencies_agree_over_ten_million_tokens(tmp_path):
    """Chi-square over every code, gap and decile. 21,000 subjects; about ten minutes on two cores."""
    root = tmp_path / "meds"
    write_world(root, 21_000, 5)
    config = build_config.get_config()
    config.code_map = "world"
    corpus = Corpus.open(build_corpus(root, tmp_path / "corpus", config).root)
    assert sum(split["tokens"] for split in corpus.manifest["splits"].values()) > 10_000_000
    z = np.concatenate([deviations(corpus, split) for split in ("train", "tuning", "held_out")])
    assert len(z) > 1_000
    check_chi_square(z)


def test_histories_that_know_more_have_other_risks_and_risks_agree_with_what_happened(corpus, world):
    """Readmission within 30 days of discharges: observed against true risks, in sum and where they are high."""
    dataset = meds.open_dataset(world)
    held = dataset.splits.filter(pl.col("split") == "held_out")["subject_id"]
    events = meds.read_subjects(dataset, held)
    code = pl.col("code")
    left = code.str.starts_with("ENCOUNTER_END//INPATIENT") & ~code.str.ends_with("DIED")
    labels = (
        events.filter(left)
        .select("subject_id", prediction_time="time")
        .filter(pl.col("prediction_time") + MONTH < pl.datetime(2025, 1, 1))
    )
    starts = events.filter(code.str.starts_with("ENCOUNTER_START//INPATIENT")).select("subject_id", "time")
    joined = labels.with_row_index().join(starts, on="subject_id")
    hits = joined.filter(
        (pl.col("time") > pl.col("prediction_time")) & (pl.col("time") <= pl.col("prediction_time") + MONTH)
    )
    happened = np.isin(np.arange(len(labels)), hits["index"].unique().to_numpy())
    histories = prompts.build_prompts(dataset, labels, corpus.vocabulary)
    question = risks.Question(r"ENCOUNTER//ENCOUNTER_START//INPATIENT.*", 30.0)
    risk = risks.true_risks(histories, corpus.vocabulary, [question], draws=60)[:, 0]
    assert np.isfinite(risk).all() and len(risk) > 20
    z = (happened.sum() - risk.sum()) / np.sqrt((risk * (1 - risk)).sum())
    assert abs(z) < 4
    assert risk[happened].mean() > risk[~happened].mean()
    again = risks.true_risks(histories, corpus.vocabulary, [question], draws=60)[:, 0]
    np.testing.assert_array_equal(again, risk)


def test_risks_do_not_depend_on_the_prompts_beside(corpus, world):
    dataset = meds.open_dataset(world)
    subjects = dataset.splits.filter(pl.col("split") == "tuning")["subject_id"][:20]
    events = meds.read_subjects(dataset, subjects).filter(pl.col("code").str.starts_with("ENCOUNTER_END"))
    labels = events.group_by("subject_id", maintain_order=True).agg(prediction_time=pl.col("time").first())
    histories = prompts.build_prompts(dataset, labels, corpus.vocabulary)
    questions = [risks.Question("DEATH", 365.0), risks.Question("ENCOUNTER//ENCOUNTER_START//EMERGENCY", 365.0)]
    reader = Reader(corpus.vocabulary)
    together = risks._block_risks(reader, histories[:8], questions, (50, 2, 0))
    alone = risks._block_risks(reader, histories[3:4], questions, (50, 2, 0))
    np.testing.assert_allclose(alone, together[:, 3:4], atol=1e-12)
    shared = risks.true_risks_by_part(histories[:8], corpus.vocabulary, questions, parts=2, draws=50, workers=2)
    np.testing.assert_allclose(shared, together, atol=1e-12)


def test_time_without_events_is_a_condition(corpus, world):
    """P(an event by day 30 | none by day 20) asked on day 20 is what the questions of day 0 say of it."""
    dataset = meds.open_dataset(world)
    discharged = pl.col("code").str.starts_with("ENCOUNTER_END//INPATIENT//HOME")
    events = meds.read_subjects(dataset, dataset.splits["subject_id"]).filter(discharged)
    labels = events.group_by("subject_id", maintain_order=True).agg(prediction_time=pl.col("time").last())[:20]
    now = prompts.build_prompts(dataset, labels, corpus.vocabulary)
    later = [dataclasses.replace(p, prediction_time_us=p.last_time_us + 20 * 86_400_000_000) for p in now]
    anything = "ENCOUNTER//ENCOUNTER_START//.*|DEATH"
    asked = [risks.Question(anything, 20.0), risks.Question(anything, 30.0)]
    by_20, by_30 = risks.true_risks(now, corpus.vocabulary, asked, draws=150).T
    after_wait = risks.true_risks(later, corpus.vocabulary, [risks.Question(anything, 10.0)], draws=150)[:, 0]
    waiting = 1 - by_20
    assert abs((by_30 - by_20).sum() - (after_wait * waiting).sum()) < 4 * np.sqrt(0.5 * len(now) / 150)


def test_a_corpus_that_is_not_from_this_world_is_refused(corpus, tmp_path):
    manifest = json.loads(json.dumps(dict(corpus.manifest)))
    assert scoring.refusal(manifest) == ""
    manifest["source"]["version"] = "patients=1,seed=1,rules=000000000000"
    assert "other rules" in scoring.refusal(manifest)
    manifest["source"]["name"] = "MIMIC"
    assert "not built from" in scoring.refusal(manifest)
    other = Corpus(corpus.root, manifest)
    with pytest.raises(UserError, match="true probabilities are not known"):
        scoring.score_tokens(other, "tuning")
    manifest = json.loads(json.dumps(dict(corpus.manifest)))
    manifest["config"]["cohort"]["min_encounters"] = 2
    assert "cohort" in scoring.refusal(manifest)
    manifest = json.loads(json.dumps(dict(corpus.manifest)))
    manifest["config"]["observed_until"] = "2024-12-31"
    assert "end at a date" in scoring.refusal(manifest)


def test_too_many_unknown_codes_are_refused_in_one_line(world, tmp_path, monkeypatch):
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=25)
    rare = build_corpus(world, tmp_path / "rare", config, workers=1)
    monkeypatch.setattr(reading, "MOST_ROWS_PER_SUBJECT", 200)
    with pytest.raises(UserError, match="UNKNOWN"):
        scoring.score_tokens(rare, "tuning", workers=1)


def test_the_commands_write_what_they_print(corpus, tmp_path):
    out, tokens = tmp_path / "floor.json", tmp_path / "tokens.npy"
    command = ["--score", f"--corpus={corpus.root}", f"--out={out}", f"--tokens={tokens}"]
    ended = subprocess.run(
        [sys.executable, "-m", "data_pipeline.world", *command], capture_output=True, text=True, check=True
    )
    printed = json.loads(ended.stdout.splitlines()[-1])
    assert printed == json.loads(out.read_text())
    assert len(np.load(tokens)) == corpus.manifest["splits"]["tuning"]["tokens"]
    refused = subprocess.run(
        [sys.executable, "-m", "data_pipeline.world", "--score"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "--corpus" in refused.stderr


def test_the_command_for_risks_writes_each_row_and_refuses_what_it_cannot_answer(corpus, world, tmp_path):
    dataset = meds.open_dataset(world)
    events = meds.read_subjects(dataset, dataset.splits["subject_id"][:30])
    ends = events.filter(pl.col("code").str.starts_with("ENCOUNTER_END"))
    labels = ends.group_by("subject_id", maintain_order=True).agg(prediction_time=pl.col("time").first())
    labels.write_parquet(tmp_path / "labels.parquet")
    command = [sys.executable, "-m", "data_pipeline.world", "--risks", f"--corpus={corpus.root}", f"--meds={world}"]
    command += [f"--labels={tmp_path / 'labels.parquet'}", f"--out={tmp_path / 'risks.parquet'}", "--draws=20"]
    ended = subprocess.run([*command, "--outcome=ENCOUNTER//.*"], capture_output=True, text=True, check=True)
    written = pl.read_parquet(tmp_path / "risks.parquet")
    assert written.drop("risk").equals(labels) and written["risk"].is_between(0, 1).all()
    assert f"{len(labels)} rows, mean risk {written['risk'].mean():.4f}" in ended.stdout
    refused = subprocess.run([*command, "--outcome=NOTHING"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "matches nothing that the world writes" in refused.stderr
    with pytest.raises(UserError, match="not a regular expression"):
        risks.Question("(", 1.0)
