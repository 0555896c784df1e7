"""The world reads its own tokens: their probabilities are exact."""

import pathlib

import numpy as np
import pytest

from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.code_maps import ROLES_WITHOUT_EVENT
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import find_event
from data_pipeline.vocabulary import PREFIX_LENGTH
from data_pipeline.world import catalogue, rules, simulation
from data_pipeline.world.reading import Reader


class Recording(simulation.Timelines):
    """Draws as ever, and keeps what it drew in the order in which it did."""

    def __init__(self, subject_ids_P: np.ndarray, seed: int) -> None:
        self.drawn: list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]] = []
        super().__init__(subject_ids_P, seed)

    def time(self, s, rows_n, weights_nxG):
        rows_n, gap_n = super().time(s, rows_n, weights_nxG)
        self.drawn.append(("gap", rows_n, gap_n, None))
        return rows_n, gap_n

    def _end_observation(self, s, rows):
        silent = simulation.END - self.start_P[rows] - s.clock_P[rows]
        self.drawn.append(("gap", rows, np.searchsorted(rules.HIGH_MINUTES, silent, side="right"), None))
        super()._end_observation(s, rows)

    def _emit(self, rows, codes, values=None):
        super()._emit(rows, codes, values)
        self.drawn.append(("code", rows, np.broadcast_to(codes, rows.shape), values))


@pytest.fixture(scope="module")
def corpus(world_corpus: pathlib.Path) -> Corpus:
    """Codes of fewer than three subjects are UNKNOWN or shortened in it."""
    return Corpus.open(world_corpus)


@pytest.fixture(scope="module")
def reader(corpus: Corpus) -> Reader:
    return Reader(corpus.vocabulary)


def spell_drawn(recording: Recording, size: int, vocabulary) -> list[list[int]]:
    """The tokens of each row's drawn outcomes, prefix and end left out."""
    texts = [code.code for code in catalogue.CODES]
    concepts = vocabulary.code_map.map_codes(texts)
    events = [find_event(concept, vocabulary) for concept in concepts]
    tokens: list[list[int]] = [[] for _ in range(size)]
    for what, rows, values, numbers in recording.drawn:
        for i, (row, value) in enumerate(zip(rows.tolist(), values.tolist(), strict=True)):
            if what == "gap":
                bin_ = min(value, rules.FIRST_REPEAT)
                tokens[row] += [vocabulary.interval_ids[bin_]] * (value - bin_ + 1)
            elif concepts[value].role not in ROLES_WITHOUT_EVENT:
                event = vocabulary.events[events[value]]
                tokens[row] += event.tokens
                if event.edges:
                    decile = 1 + sum(edge < numbers[i] for edge in event.edges)
                    tokens[row].append(vocabulary.ids[f"VALUE//{decile}"])
    return tokens


def test_the_corpus_holds_exactly_the_tokens_that_were_drawn(corpus, world_meds):
    recording = Recording(np.arange(1, 301), 1)
    recording.run()
    drawn = spell_drawn(recording, 300, corpus.vocabulary)
    for split in ("train", "tuning", "held_out"):
        reader = corpus.split(split)
        for index in range(len(reader)):
            record = reader.record(index)
            assert record.tokens_T[PREFIX_LENGTH:-1].tolist() == drawn[record.subject_id - 1]


def test_probabilities_sum_to_one_at_every_kind_of_position(corpus, reader):
    """Every token of the vocabulary is tried at each position, also where codes before it are UNKNOWN or shortened."""
    split, vocabulary = corpus.split("train"), corpus.vocabulary
    rng = np.random.default_rng(4)
    unknown = [i for i, token in enumerate(vocabulary.tokens) if token.text.startswith("UNKNOWN//")]
    positions: list[tuple[np.ndarray, int]] = []
    for index in rng.choice(len(split), 40, replace=False).tolist():
        tokens = split.record(index).tokens_T[:120]
        after_unknown = np.flatnonzero(np.isin(tokens[:-1], unknown)) + 1
        wanted = after_unknown[:1] if len(after_unknown) else rng.integers(1, len(tokens), 1)
        positions += [(tokens, int(position)) for position in wanted]
    kinds = set()
    for tokens, position in positions[:6]:
        tried = [np.append(tokens[:position], token) for token in range(len(vocabulary))]
        reading = reader.read(tried)
        p = np.exp(np.nan_to_num(reading.log_T[reading.offsets_S1[1:] - 1], nan=-np.inf))
        assert abs(p.sum() - 1) < 1e-9
        whole = reader.read([tokens]).log_T[position]
        np.testing.assert_allclose(np.log(p[tokens[position]]), whole, atol=1e-9)
        kinds.add(vocabulary.tokens[tokens[position]].kind)
    assert len(kinds) >= 3


def test_each_token_of_a_split_is_possible_and_reading_them_together_changes_nothing(corpus, reader):
    """Of tuning subjects with few codes that are UNKNOWN: where there are many, enumerating them is refused."""
    split = corpus.split("tuning")
    unknown = [i for i, token in enumerate(corpus.vocabulary.tokens) if token.text.startswith("UNKNOWN//")]
    records = [split.record(index).tokens_T for index in range(len(split))]
    counts = [int(np.isin(tokens, unknown).sum()) for tokens in records]
    sequences = [records[index] for index in np.argsort(counts)[::-1].tolist() if counts[index] <= 3][:8]
    assert any(np.isin(tokens, unknown).any() for tokens in sequences)
    together = reader.read(sequences)
    assert np.isfinite(together.log_T).all() and together.log_T.max() < 1e-9
    for index in (0, len(sequences) // 2):
        np.testing.assert_allclose(reader.read([sequences[index]]).log_T, together.log_probabilities(index), atol=1e-9)


def test_what_the_world_cannot_write_has_probability_zero_from_there_on(corpus, reader):
    tokens = corpus.split("tuning").record(0).tokens_T.copy()
    place = int(np.flatnonzero(tokens == corpus.vocabulary.ids["DEPARTMENT//PRIMARY_CARE"])[0])
    tokens[place] = corpus.vocabulary.ids["DEATH"]
    log = reader.read([tokens]).log_T
    assert np.isfinite(log[:place]).all() and log[place] == -np.inf and np.isnan(log[place + 1 :]).all()


def test_summing_over_the_codes_behind_unknown_is_right(world_meds, tmp_path):
    """P(tokens with UNKNOWN) is the sum of P over every code that may stand there, in a vocabulary that names them."""
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=1, min_values_per_code=20)
    whole = Corpus.open(build_corpus(world_meds, tmp_path / "whole", config, workers=1).root)
    config.min_subjects_per_code = 12
    rare = Corpus.open(build_corpus(world_meds, tmp_path / "rare", config, workers=1).root)
    readers = Reader(whole.vocabulary), Reader(rare.vocabulary)
    unknown = rare.vocabulary.ids["UNKNOWN//DIAGNOSIS"]
    checked = 0
    for index in range(len(rare.split("train"))):
        tokens = rare.split("train").record(index).tokens_T
        places = np.flatnonzero(tokens == unknown)
        if not len(places) or not PREFIX_LENGTH < places[0] < 60:
            continue
        place = int(places[0])
        prefix = [rare.vocabulary.tokens[token].text for token in tokens[:place]]
        if any(text not in whole.vocabulary.ids for text in prefix):
            continue
        before = [whole.vocabulary.ids[text] for text in prefix]
        candidates = []
        for code in catalogue.ELEMENT_CODES[3]:
            concept = whole.vocabulary.code_map.map(code)
            told = rare.vocabulary.events[find_event(concept, rare.vocabulary)].concept
            event = whole.vocabulary.event_of_concept.get(concept.name)
            if told == "UNKNOWN//DIAGNOSIS" and event is not None:
                candidates.append(np.array([*before, *whole.vocabulary.events[event].tokens], np.uint16))
        reading = readers[0].read(candidates)
        totals = [reading.log_probabilities(i)[place:].sum() for i in range(len(candidates))]
        named = np.logaddexp.reduce([total if np.isfinite(total) else -np.inf for total in totals])
        # Codes that nobody in training has are UNKNOWN in both.
        spare = readers[0].read([np.array([*before, whole.vocabulary.ids["UNKNOWN//DIAGNOSIS"]], np.uint16)])
        expected = np.logaddexp(named, np.nan_to_num(spare.log_T[-1], nan=-np.inf))
        np.testing.assert_allclose(readers[1].read([tokens[: place + 1]]).log_T[place], expected, atol=1e-9)
        checked += 1
        if checked == 3:
            break
    assert checked


def test_a_vocabulary_that_is_not_the_worlds_is_refused(world_meds, tmp_path):
    config = build_config.get_config()
    config.update(code_map="world", value_encoding="fused")
    corpus = build_corpus(world_meds, tmp_path / "fused", config, workers=1)
    with pytest.raises(UserError, match="fused"):
        Reader(corpus.vocabulary)
