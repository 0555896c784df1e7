"""The grammar token by token agrees with the grammar of whole timelines, and tells when an outcome is certain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import decode
from cometjax import engine, estimators, grammar_states, trajectories
from cometjax.model import ModelConfig
from cometjax.tasks import Task
from data_pipeline import code_maps, grammar, intervals
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_SYSTEMS, Event, Token, Vocabulary

# Most of the time is the compiler's, and no test here is of how its code rounds.
pytestmark = pytest.mark.usefixtures("hurried_compiler")

PRESET = intervals.COMET13
STATIC = [Token(f"{system}//UNKNOWN", "DEMOGRAPHIC", "static") for system in PREFIX_SYSTEMS]
CONFIG = engine.SimulationConfig(
    samples=4, horizon_seconds=2.0**29, max_new_tokens=24, batch_rows=16, chunk_steps=8, grammar=True
)


def vocabulary_of() -> Vocabulary:
    """Codes of up to three tokens, some the beginning of others, some with a value."""
    words = ["A", "B", "C", ".1", ".2", ".21", "LAB", "DEATH"]
    kinds = {".1": "part", ".2": "part", ".21": "part"}
    tokens = [Token("PAD", "SPECIAL", "pad"), *STATIC]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in PRESET.names]
    tokens += [Token(word, "DEATH" if word == "DEATH" else "DIAGNOSIS", kinds.get(word, "first")) for word in words]
    tokens += [Token(f"VALUE//{decile}", "VALUE", "value") for decile in range(1, 11)]
    tokens += [Token("TIMELINE_END", "SPECIAL", "end")]
    ids = {token.text: index for index, token in enumerate(tokens)}

    def event(concept: str, *spelt: str, value: str = "never") -> Event:
        edges, means = (tuple(range(9)), tuple(range(10))) if value != "never" else ((), ())
        kind = "DEATH" if concept == "DEATH" else "DIAGNOSIS"
        role = "death" if concept == "DEATH" else "event"
        return Event(concept, kind, role, tuple(ids[word] for word in spelt), value, edges, means)

    events = (
        event("A", "A"),
        event("A.1", "A", ".1"),
        event("A.2", "A", ".2"),
        event("A.2.21", "A", ".2", ".21"),
        event("B.1", "B", ".1"),
        event("B.2", "B", ".2", value="optional"),
        event("C", "C"),
        event("LAB", "LAB", value="always"),
        event("DEATH", "DEATH"),
    )
    seconds = tuple(float(low + 60) for low in PRESET.lower_seconds)
    return Vocabulary(tuple(tokens), events, PRESET, seconds, code_maps.named("generic"))


VOCABULARY = vocabulary_of()
STATES = grammar_states.build_states(VOCABULARY)
MODEL = decode.lively_model(ModelConfig(len(VOCABULARY), 1, 16, 2, 2, 8, 32, tied_embeddings=False))
PROMPTS = [decode.RandomPrompt(i, np.array([1, 2, 3, 4, VOCABULARY.ids["C"]], np.int32)) for i in range(40)]


def ids(*texts: str) -> list[int]:
    return [VOCABULARY.ids[text] for text in texts]


def state_after(*texts: str) -> np.ndarray:
    state = np.array([grammar_states.BETWEEN])
    for token in ids(*texts):
        assert np.asarray(STATES.possible(state))[0, token], texts
        state = np.asarray(STATES.after(state, np.array([token])))
    return state


def possible_after(*texts: str) -> set[str]:
    possible = np.asarray(STATES.possible(state_after(*texts)))[0]
    return {VOCABULARY.tokens[index].text for index in np.flatnonzero(possible)}


FIRSTS = {"A", "B", "C", "LAB", "DEATH"}
INTERVALS = {VOCABULARY.tokens[index].text for index in VOCABULARY.interval_ids}
LONGEST = VOCABULARY.tokens[VOCABULARY.interval_ids[-1]].text
VALUES = {f"VALUE//{decile}" for decile in range(1, 11)}
ANYTHING = FIRSTS | INTERVALS | {"TIMELINE_END"}


@pytest.mark.parametrize(
    "texts, possible",
    [
        ((), ANYTHING),
        (("C",), ANYTHING),
        (("A",), ANYTHING | {".1", ".2"}),
        (("A", ".2"), ANYTHING | {".21"}),
        (("B",), {".1", ".2"}),
        (("B", ".2"), ANYTHING | VALUES),
        (("B", ".2", "VALUE//3"), ANYTHING),
        (("LAB",), VALUES),
        (("C", "INTERVAL//6h-12h"), FIRSTS),
        (("C", LONGEST), FIRSTS | {LONGEST}),
        (("C", LONGEST, LONGEST), FIRSTS | {LONGEST}),
    ],
)
def test_what_may_come_next(texts, possible) -> None:
    assert possible_after(*texts) == possible


def test_every_token_of_a_real_corpus_is_possible_where_it_stands(world_corpus) -> None:
    corpus = Corpus.open(world_corpus)
    states = grammar_states.build_states(corpus.vocabulary)
    records = [corpus.split("train").record(index).tokens_T for index in range(40)]
    length = max(map(len, records))
    tokens_RxL = np.stack([np.pad(np.asarray(record, np.int32), (0, length - len(record))) for record in records])
    state_R = np.zeros(len(records), np.int32)

    @jax.jit
    def step(state_R, token_R):
        return states.possible(state_R)[jnp.arange(len(records)), token_R], states.after(state_R, token_R)

    for at in range(4, length):
        possible_R, state_R = step(state_R, tokens_RxL[:, at])
        assert np.asarray(possible_R)[tokens_RxL[:, at] != 0].all()


def test_under_the_grammar_no_event_is_invalid_and_without_it_some_are() -> None:
    for keep, stop_at_end in ((True, True), (True, False), (False, False)):
        config = dataclasses.replace(CONFIG, grammar=keep, timeline_end="stop" if stop_at_end else "never")
        futures = engine.simulate_futures(MODEL, VOCABULARY, PROMPTS, config)
        invalid = sum(trajectories.count_invalid(future, VOCABULARY)[0] for future in futures)
        assert (invalid == 0) == keep
        for future in futures if keep else ():
            tokens = [1, 2, 3, 4, *future.tokens_T.tolist()]
            while VOCABULARY.tokens[tokens[-1]].grammar == "interval":
                tokens.pop()  # a future may stop while time passes
            assert grammar.is_valid(tokens, VOCABULARY)


def test_the_grammar_with_a_cache_gives_the_tokens_of_full_recomputation() -> None:
    futures = engine.simulate_futures(MODEL, VOCABULARY, PROMPTS[:10], CONFIG)
    full_RxT = decode.recompute(MODEL, VOCABULARY, PROMPTS[:10], CONFIG, CONFIG.max_new_tokens)
    for future, full_T in zip(futures, full_RxT, strict=True):
        assert future.tokens_T.tolist() == full_T[: len(future.tokens_T)].tolist()


CONCEPTS = [
    frozenset({"A", "A.1", "A.2", "A.2.21"}),  # certain with its first token
    frozenset({"A"}),  # certain with what comes next
    frozenset({"A.2", "B.2"}),  # both: a longer code begins like the one, the other has a value perhaps
    frozenset({"A", "A.2.21", "LAB"}),
    frozenset({"DEATH"}),
    frozenset(),
]


def test_an_outcome_is_decided_exactly_where_a_whole_future_has_it() -> None:
    seen = np.zeros((len(CONCEPTS), 2), int)
    for _, futures in engine.iter_futures(MODEL, VOCABULARY, PROMPTS, CONFIG, outcomes=CONCEPTS):
        for future in futures:
            assert future.hazard_TxK.shape == future.decided_TxK.shape == (len(future.tokens_T), len(CONCEPTS))
            assert (future.hazard_TxK >= 0).all() and (future.hazard_TxK <= 1 + 1e-5).all()
            assert (future.hazard_TxK[future.decided_TxK] > 0).all()
            spelt = [concept for concept, *_ in trajectories.events_of(future, VOCABULARY)]
            # What a cut leaves open is not decided yet, though it reads as an event.
            sure = spelt[:-1] if future.stop == "length" else spelt
            for k, concepts in enumerate(CONCEPTS):
                if not concepts & set(spelt[len(sure) :]):
                    assert future.decided_TxK[:, k].any() == bool(concepts & set(sure))
                    seen[k, int(bool(concepts & set(sure)))] += 1
    assert (seen[:-1] > 5).all() and seen[-1, 1] == 0


def test_a_suppressed_outcome_never_happens_and_the_rest_keeps_its_proportions() -> None:
    for concepts in CONCEPTS[:4]:
        for _, futures in engine.iter_futures(MODEL, VOCABULARY, PROMPTS, CONFIG, outcomes=[concepts], suppress=True):
            for future in futures:
                spelt = [concept for concept, *_ in trajectories.events_of(future, VOCABULARY)]
                assert not concepts & set(spelt[:-1] if future.stop == "length" else spelt)
                assert not future.decided_TxK.any()


def test_outcomes_are_watched_under_the_grammar_only() -> None:
    loose = dataclasses.replace(CONFIG, grammar=False)
    with pytest.raises(ValueError, match="grammar"):
        list(engine.iter_futures(MODEL, VOCABULARY, PROMPTS, loose, outcomes=CONCEPTS))


def test_a_vocabulary_without_events_has_no_grammar_to_keep() -> None:
    with pytest.raises(UserError, match="no events"):
        grammar_states.build_states(decode.endless_vocabulary(40))


def test_concepts_of_a_task_are_those_of_the_vocabulary() -> None:
    task = Task(name="a", index="X", horizon_days=1, outcome=r"A\.2.*")
    assert estimators.outcome_concepts(VOCABULARY, task) == {"A.2", "A.2.21"}
