"""Simulated futures: the right tokens, the same whatever runs beside them, stopped and conditioned as documented."""

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import decode
from cometjax import batches, decoding, engine, grammar_states
from cometjax import futures as futures_module
from cometjax.futures import token_seconds
from cometjax.model import ModelConfig
from data_pipeline import code_maps, intervals
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_SYSTEMS, Token, Vocabulary
from tests.cometjax.grammar_states_test import VOCABULARY as SPELLING

# Most of the time is the compiler's.
pytestmark = pytest.mark.usefixtures("hurried_compiler")

DAY = 86_400
ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESET = intervals.COMET13


@functools.cache
def vocabulary_of(num_events: int = 60) -> Vocabulary:
    tokens = [Token("PAD", "SPECIAL", "pad")]
    tokens += [Token(f"{system}//UNKNOWN", "DEMOGRAPHIC", "static") for system in PREFIX_SYSTEMS]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in PRESET.names]
    tokens += [Token("DEATH", "DEATH", "first"), Token("TIMELINE_END", "SPECIAL", "end")]
    tokens += [Token(f"OTHER//{index}", "OTHER", "first") for index in range(num_events)]
    upper = (*PRESET.lower_seconds[1:], 4 * PRESET.lower_seconds[-1])
    means = tuple((low + high) / 2 for low, high in zip(PRESET.lower_seconds, upper, strict=True))
    return Vocabulary(tuple(tokens), (), PRESET, means, code_maps.named("generic"))


VOCABULARY = vocabulary_of()
INTERVALS = VOCABULARY.interval_ids
DEATH, END = VOCABULARY.ids["DEATH"], VOCABULARY.ids["TIMELINE_END"]
CONFIG = engine.SimulationConfig(
    samples=5, horizon_seconds=20 * 365 * DAY, max_new_tokens=24, batch_rows=8, chunk_steps=4, pool_batches=2
)


@functools.cache
def model_of():
    config = ModelConfig(
        len(VOCABULARY), layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64, tied_embeddings=False
    )
    return decode.lively_model(config)


@dataclasses.dataclass(frozen=True)
class Prompt:
    subject_id: int
    length: int
    elapsed_seconds: float = 0.0
    prediction_time_us: int = 1_500_000_000_000_000

    @property
    def last_time_us(self) -> int:
        return self.prediction_time_us - round(self.elapsed_seconds * 1e6)

    def tokens(self, max_tokens: int) -> np.ndarray:
        events = np.random.default_rng(abs(self.subject_id)).integers(END + 1, len(VOCABULARY), self.length - 4)
        all_T = np.concatenate([[1, 2, 3, 4], events]).astype(np.int32)
        return all_T if len(all_T) <= max_tokens else np.concatenate([all_T[:4], all_T[self.length - max_tokens + 4 :]])

    def prefix_before(self, tokens: int) -> np.ndarray:
        raise AssertionError("one window only")

    def prefix_after(self, seconds: int, vocabulary: Vocabulary) -> np.ndarray:
        raise AssertionError("one window only")


PROMPTS = [
    Prompt(2**40 + 1, 9),
    Prompt(7, 120),
    Prompt(-3, 129),
    Prompt(8, 5, 40 * DAY),
    Prompt(9, 140, 3.4 * 365.25 * DAY),
    Prompt(7, 120, prediction_time_us=1_400_000_000_000_000),
]
# Enough short prompts to fill the slots, so that one compilation serves most tests.
SHORT = [Prompt(subject, 12) for subject in range(20, 32)]


def simulate(prompts=PROMPTS, **changes) -> list[engine.Future]:
    return engine.simulate_futures(model_of(), VOCABULARY, prompts, dataclasses.replace(CONFIG, **changes))


@functools.cache
def futures_of_all() -> list[engine.Future]:
    return simulate()


def by_key(futures):
    return {
        (future.subject_id, future.prediction_time_us, future.sample): (
            tuple(future.tokens_T),
            future.stop,
            future.start_seconds,
        )
        for future in futures
    }


def test_cached_decoding_gives_the_tokens_of_full_recomputation() -> None:
    full_RxT = decode.recompute(model_of(), VOCABULARY, PROMPTS, CONFIG, CONFIG.max_new_tokens)
    futures = futures_of_all()
    assert len(futures) == len(PROMPTS) * CONFIG.samples
    for future, full_T in zip(futures, full_RxT, strict=True):
        np.testing.assert_array_equal(future.tokens_T, full_T[: len(future.tokens_T)])
    # Chunks, and a bound on earlier chunks below all of them, were passed by many.
    assert sum(len(future.tokens_T) > 3 * CONFIG.chunk_steps for future in futures) > 5


def test_futures_come_in_the_order_of_prompts_and_samples() -> None:
    keys = [(future.subject_id, future.prediction_time_us, future.sample) for future in futures_of_all()]
    assert keys == [(p.subject_id, p.prediction_time_us, s) for p in PROMPTS for s in range(CONFIG.samples)]


def test_the_same_seed_gives_the_same_futures_and_another_seed_others() -> None:
    assert by_key(simulate()) == by_key(futures_of_all())
    assert by_key(simulate(seed=1)) != by_key(futures_of_all())


@pytest.mark.parametrize(
    "prompts, changes",
    [
        (PROMPTS[::-1], {}),
        (PROMPTS[2:3], {}),
        (PROMPTS[:4] + PROMPTS[5:], {"batch_rows": 16}),
        (PROMPTS[:4] + PROMPTS[5:], {"chunk_steps": 8}),
    ],
    ids=["other order", "alone", "other batch size", "other chunks"],
)
def test_a_prompts_futures_depend_on_nothing_beside_it(prompts, changes) -> None:
    everything = by_key(futures_of_all())
    for key, future in by_key(simulate(prompts, **changes)).items():
        assert future == everything[key]


def test_probabilities_are_the_same_to_the_bit_whatever_is_drawn_beside_them() -> None:
    """Tokens seldom show a difference in rounding, hazards do; products of many rows have it in so wide a model."""
    jax.config.update("jax_disable_most_optimizations", False)  # the rounding of what users run
    model = decode.lively_model(ModelConfig(len(SPELLING), 1, 128, 2, 1, 64, 256, tied_embeddings=False))
    prompts = [
        decode.RandomPrompt(subject, np.array([1, 2, 3, 4, *[SPELLING.ids["C"]] * (1 + subject)], np.int32))
        for subject in range(16)
    ]

    def hazards(prompts, batch_rows):
        settings = dataclasses.replace(CONFIG, samples=8, grammar=True, batch_rows=batch_rows, max_new_tokens=12)
        watched = engine.iter_futures(model, SPELLING, prompts, settings, outcomes=[frozenset({"LAB"})])
        return {(f.subject_id, f.sample): f.hazard_TxK.tobytes() for _, futures in watched for f in futures}

    few = hazards(prompts, 8)
    assert len(few) == 16 * 8 and len(set(few.values())) > 100
    assert hazards(prompts[::-1], 128) == few
    assert hazards(prompts[3:6], 100).items() <= few.items()


def test_more_samples_leave_the_first_ones_as_they_were() -> None:
    more = by_key(simulate(PROMPTS[:2], samples=9))
    fewer = {key: value for key, value in by_key(futures_of_all()).items() if key[:2] in {k[:2] for k in more}}
    assert len(fewer) == 10 and fewer.items() <= more.items()


def test_samples_of_a_prompt_and_prompts_of_a_subject_differ() -> None:
    tokens = [key[0] for key in by_key(futures_of_all()).values()]
    assert len(set(tokens)) == len(tokens)


def test_a_prompts_own_horizon_only_ends_its_futures_sooner() -> None:
    short = 60 * DAY
    horizons = [short if index % 2 else CONFIG.horizon_seconds for index in range(len(PROMPTS))]
    mixed = engine.simulate_futures(model_of(), VOCABULARY, PROMPTS, CONFIG, horizons=horizons)
    stopped_by_it = 0
    for index, (future, whole) in enumerate(zip(mixed, futures_of_all(), strict=True)):
        assert future.tokens_T.tolist() == whole.tokens_T[: len(future.tokens_T)].tolist()
        if horizons[index // CONFIG.samples] == CONFIG.horizon_seconds:
            assert len(future.tokens_T) == len(whole.tokens_T) and future.stop == whole.stop
        stopped_by_it += future.stop == "horizon" and whole.stop != "horizon"
    assert stopped_by_it > 0


def test_every_stop_is_what_it_says() -> None:
    # A short horizon stops many, a long one leaves death and length.
    seen = set()
    for horizon in (60 * DAY, CONFIG.horizon_seconds):
        for future in simulate(PROMPTS + SHORT, horizon_seconds=horizon):
            seconds_T = future.start_seconds + np.cumsum(token_seconds(VOCABULARY)[future.tokens_T])
            seen.add(future.stop)
            assert (seconds_T[:-1] <= horizon).all() and DEATH not in future.tokens_T[:-1]
            assert (seconds_T[-1] > horizon) == (future.stop == "horizon")
            assert (future.tokens_T[-1] == DEATH) == (future.stop == "death")
            assert (future.stop != "length") or len(future.tokens_T) == CONFIG.max_new_tokens
            assert len(future.tokens_T) <= CONFIG.max_new_tokens
    assert seen == {"death", "horizon", "length"}


def test_timeline_end_padding_and_prefix_tokens_are_never_drawn() -> None:
    drawn = np.concatenate([future.tokens_T for future in futures_of_all()])
    grammar = {VOCABULARY.tokens[token].grammar for token in drawn}
    assert grammar == {"interval", "first"}


def test_timeline_end_stops_a_future_where_it_may() -> None:
    futures = simulate(PROMPTS + SHORT, timeline_end="stop")
    assert {future.stop for future in futures} >= {"timeline_end"}
    for future in futures:
        assert (future.tokens_T[-1] == END) == (future.stop == "timeline_end")


def test_futures_whose_observation_ends_say_so() -> None:
    knowing = dataclasses.replace(VOCABULARY, knows_follow_up=True)
    drawn = engine.simulate_futures(model_of(), knowing, SHORT, CONFIG)
    ended = [future for future in drawn if future.tokens_T[-1] == END]
    assert ended and {future.stop for future in ended} == {"unobserved"}
    assert all(future.is_censored == (future.stop in ("unobserved", "length")) for future in drawn)


def test_a_gap_below_the_shortest_interval_asks_nothing() -> None:
    start = engine.start_of(Prompt(1, 20, 59.0), VOCABULARY, 512)
    assert (start.clock, start.first_interval, len(start.tokens_T)) == (0, -1, 20)


@pytest.mark.parametrize("days, name", [(0.25, "6h-12h"), (40, "30d-6mt"), (182, "30d-6mt")])
def test_a_gap_before_the_prediction_time_must_end_after_it(days, name) -> None:
    least = PRESET.names.index(name)
    horizon = 5 * DAY
    futures = simulate([Prompt(subject, 12, days * DAY) for subject in range(12)], horizon_seconds=horizon)
    firsts = np.array([INTERVALS.index(future.tokens_T[0]) for future in futures])
    assert (firsts >= least).all() and (firsts == least).any()
    seconds_V = token_seconds(VOCABULARY)
    for future in futures:
        assert future.drawn_clock_T[0] == max(0, seconds_V[future.tokens_T[0]] - days * DAY)
        assert (np.diff(future.drawn_clock_T) == seconds_V[future.tokens_T[1:]]).all()
        assert (future.drawn_clock_T[-1] > horizon) == (future.stop == "horizon")
    # Among the intervals that are left, the model's own proportions hold: the others were cut, not moved.
    if least < len(INTERVALS) - 2:
        assert len(set(firsts)) > 1


def test_a_gap_of_several_of_the_longest_interval_is_appended_to_the_prompt_but_for_the_last() -> None:
    half_year, mean, last = PRESET.repeat_seconds, VOCABULARY.interval_seconds[-1], len(INTERVALS) - 1
    for gap, repeats in ((half_year, 1), (2.4 * half_year, 2), (2.5 * half_year, 3), (100 * half_year, 40)):
        start = engine.start_of(Prompt(1, 20, gap), VOCABULARY, 512)
        assert start.tokens_T[20:].tolist() == [INTERVALS[-1]] * (repeats - 1) and start.gap == repeats - 1
        assert (start.clock, start.first_interval) == (-max(0, round(gap - (repeats - 1) * mean)), last)
        assert start.state == (grammar_states.AFTER_LONGEST if repeats > 1 else grammar_states.BETWEEN)
        # Where durations are drawn, repeats count as half-years, and what the whole gap has beyond them is drawn.
        drawn = engine.start_of(Prompt(1, 20, gap), with_quantiles(), 512)
        assert (drawn.clock, drawn.gap) == (-round(gap - (repeats - 1) * half_year), repeats - 1)
    for most, repeats in ((64, 39), (24, 20)):  # beside the prefix there is room for so many
        start = engine.start_of(Prompt(1, 100, 100 * half_year), VOCABULARY, most)
        assert (len(start.tokens_T), start.gap) == (most, repeats)


def with_quantiles() -> Vocabulary:
    """Ten durations an interval, evenly within its range."""
    shares = (np.arange(10) + 0.5) / 10
    ranges = zip(*PRESET.duration_ranges(), strict=True)
    quantiles = tuple(tuple(int(low + share * (high - low)) for share in shares) for low, high in ranges)
    seconds = tuple(float(np.mean(own)) for own in quantiles[:-1])
    return dataclasses.replace(VOCABULARY, interval_seconds=seconds, interval_quantiles=quantiles)


def test_an_interval_lasts_as_long_as_some_did_in_training_each_as_often() -> None:
    vocabulary = with_quantiles()
    config = dataclasses.replace(CONFIG, samples=120)
    futures = engine.simulate_futures(model_of(), vocabulary, PROMPTS[:2], config)
    places, repeats = [], 0
    for future in futures:
        clock_T = futures_module.clock(future, vocabulary).tolist()
        before, run = future.start_seconds, 0
        for at, (token, after) in enumerate(zip(future.tokens_T.tolist(), clock_T, strict=True)):
            run = run + 1 if token == INTERVALS[-1] else 0
            if run > 1:  # so many times half a year, and what such gaps have more or less
                begin = clock_T[at - run] if at >= run else future.start_seconds
                rest = after - begin - run * round(PRESET.repeat_seconds)
                places.append(vocabulary.interval_quantiles[-1].index(rest))
                repeats += 1
            elif token in INTERVALS:
                places.append(vocabulary.interval_quantiles[INTERVALS.index(token)].index(after - before))
            else:
                assert after == before
            before = after
    assert repeats > 10
    counts = np.bincount(places, minlength=10)
    assert counts.sum() > 300 and abs(counts / counts.sum() - 0.1).max() < 4 * np.sqrt(0.09 / counts.sum())
    # The tokens do not depend on it, but for the horizon.
    by_mean = engine.simulate_futures(
        model_of(), vocabulary, PROMPTS[:2], dataclasses.replace(config, mean_durations=True)
    )
    for future, other in zip(futures, by_mean, strict=True):
        shorter = min(len(future.tokens_T), len(other.tokens_T))
        assert future.tokens_T[:shorter].tolist() == other.tokens_T[:shorter].tolist()
        before_T = np.concatenate([[other.start_seconds], other.drawn_clock_T[:-1]])
        assert (other.drawn_clock_T - before_T == token_seconds(vocabulary)[other.tokens_T]).all()


@pytest.mark.parametrize("days, longer", [(40.0, 0.9), (98.68125, 0.5), (170.0, 0.1), (182.0, 0.0)])
def test_of_the_interval_that_holds_a_gap_the_durations_beyond_it_are_left(days, longer) -> None:
    """With as much weight as they have among all, and each as often."""
    vocabulary, samples, holding = with_quantiles(), 400, PRESET.names.index("30d-6mt")
    config = dataclasses.replace(CONFIG, samples=samples, max_new_tokens=1, batch_rows=512)
    quantiles = np.array(vocabulary.interval_quantiles[holding])
    beyond = quantiles[quantiles > days * DAY] - days * DAY
    assert len(beyond) / 10 == pytest.approx(longer, abs=0.06)
    # After this prompt the model draws about half of the first intervals from either of the last two.
    futures = engine.simulate_futures(model_of(), vocabulary, [Prompt(8, 12, days * DAY)], config)
    free = engine.simulate_futures(model_of(), vocabulary, [Prompt(8, 12, 30.0 * DAY)], config)
    odds = []
    for drawn in (futures, free):
        firsts = np.array([INTERVALS.index(future.tokens_T[0]) for future in drawn])
        assert set(firsts) <= {holding, holding + 1}
        odds.append((firsts == holding).sum() / max(1, (firsts > holding).sum()))
    clocks = {int(future.drawn_clock_T[0]) for future in futures if future.tokens_T[0] == INTERVALS[holding]}
    assert 0.5 < odds[1] < 2 and clocks == set(beyond.astype(int))
    assert odds[0] == pytest.approx(odds[1] * len(beyond) / 10, rel=0.35, abs=0.02)


def test_between_two_of_the_longest_interval_the_rest_of_the_gap_is_waited_for() -> None:
    vocabulary = with_quantiles()
    prompt = Prompt(3, 12, 2.2 * PRESET.repeat_seconds)
    config = dataclasses.replace(CONFIG, samples=50, max_new_tokens=1)
    for future in engine.simulate_futures(model_of(), vocabulary, [prompt], config):
        assert future.tokens_T[0] == INTERVALS[-1] and 0 < future.drawn_clock_T[0] < PRESET.repeat_seconds


def test_after_a_silence_that_few_gaps_of_one_interval_outlast_more_go_on_with_a_repeat() -> None:
    """By Bayes' rule; the context is the same, so that the model's own odds are."""
    vocabulary, half_year = with_quantiles(), PRESET.repeat_seconds
    config = dataclasses.replace(CONFIG, samples=400, max_new_tokens=2, batch_rows=512)
    odds = []
    durations = np.array(vocabulary.interval_quantiles[len(INTERVALS) - 1])
    silences = (half_year, 1.35 * half_year)
    longer = [(durations > silence).mean() for silence in silences]
    for silence in silences:
        drawn = engine.simulate_futures(model_of(), vocabulary, [Prompt(8, 12, silence)], config)
        seconds = [future.tokens_T[1] for future in drawn if future.tokens_T[0] == INTERVALS[-1]]
        repeats = seconds.count(INTERVALS[-1])
        odds.append(repeats / (len(seconds) - repeats))
    assert longer[1] < 0.5 < longer[0] and odds[1] / odds[0] == pytest.approx(longer[0] / longer[1], rel=0.4)


def test_draw_follows_the_distribution_and_never_takes_what_is_impossible() -> None:
    random = np.random.default_rng(0)
    probability_V = random.random(100) * (random.random(100) < 0.3)
    probability_V[:5] = probability_V[95:] = 0
    uniform_R = np.append((np.arange(20_000) + 0.5) / 20_000, [0.0, np.nextafter(np.float32(1), np.float32(0))])
    rows = jnp.broadcast_to(jnp.asarray(probability_V, jnp.float32), (len(uniform_R), 100))
    drawn_R = np.asarray(jax.jit(decoding.draw)(rows, jnp.asarray(uniform_R, jnp.float32)))
    share_V = np.bincount(drawn_R, minlength=100) / len(drawn_R)
    np.testing.assert_allclose(share_V, probability_V / probability_V.sum(), atol=2e-4)
    assert (np.diff(drawn_R[:-2]) >= 0).all() and (probability_V[drawn_R] > 0).all()


def test_temperature_sharpens_and_flattens() -> None:
    def concentration(temperature: float) -> float:
        counts_V = np.bincount(np.concatenate([future.tokens_T for future in simulate(SHORT, temperature=temperature)]))
        return float(((counts_V / counts_V.sum()) ** 2).sum())

    assert concentration(0.1) > 1.5 * concentration(1.0) > 1.5 * 1.2 * concentration(5.0)


def test_no_prompts_no_futures() -> None:
    assert simulate([]) == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("samples", 0),
        ("temperature", 0.0),
        ("horizon_seconds", -1.0),
        ("horizon_seconds", 1e12),
        ("max_prompt_tokens", 4),
        ("max_new_tokens", 0),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name, value) -> None:
    with pytest.raises(UserError, match=name):
        dataclasses.replace(CONFIG, **{name: value})


def test_nothing_is_compiled_after_warm_up() -> None:
    compiled = []
    listen = lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None  # noqa: E731
    longer = [Prompt(subject, 200) for subject in range(40, 44)]
    simulate(SHORT + longer)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # Others of all lengths, in other numbers, in another order; several waves of them.
        others = [Prompt(subject, 130 + subject) for subject in range(50, 59)]
        simulate([*others, *PROMPTS[:4], *SHORT], seed=3)
        assert compiled == []
        jax.jit(lambda x: x * 17)(np.zeros(23))
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_device_holds_the_weights_once() -> None:
    graph, weights = nnx.split(model_of())
    once, held = (
        sum(array.nbytes for array in jax.tree.leaves(tree)) for tree in (weights, decoding.laid_out(graph, weights))
    )
    assert held == once > 0


def test_samples_share_their_prompts_keys_and_values(monkeypatch) -> None:
    """64 samples of one prompt of 4,096 tokens: an eighth of 64 separate caches is enough."""
    held = []
    decode_chunk = decoding.decode_chunk

    def watched(graph, weights, rules, limits, prefixes, suffixes, rows, **bounds):
        held.append(sum(array.nbytes for array in jax.tree.leaves((prefixes, suffixes))))
        return decode_chunk(graph, weights, rules, limits, prefixes, suffixes, rows, **bounds)

    monkeypatch.setattr(decoding, "decode_chunk", watched)
    config = dataclasses.replace(
        CONFIG, samples=64, max_new_tokens=256, chunk_steps=32, max_prompt_tokens=4096, batch_rows=64,
        horizon_seconds=DAY / 24,
    )  # fmt: skip
    futures = engine.simulate_futures(model_of(), VOCABULARY, [Prompt(5, 4096)], config)
    shape = model_of().config
    separate = 64 * (4096 + 256) * shape.layers * 2 * shape.kv_heads * shape.head_dim * 4
    assert len(futures) == 64 and max(held) <= separate / 8
    assert max(held) >= separate / 64


def test_the_slots_of_samples_that_ended_are_taken_while_others_of_their_prompt_run(monkeypatch) -> None:
    at_once, rows = [], batches._rows

    def watched(slots, group, caches):
        running_W = (slots.prompt_W >= 0).sum()
        at_once.append((running_W * CONFIG.samples, (slots.stop_WxS == 0).sum(), caches))
        return rows(slots, group, caches)

    monkeypatch.setattr(batches, "_rows", watched)
    prompts = [Prompt(subject, 12) for subject in range(60, 90)]
    long = {"max_new_tokens": 128, "chunk_steps": 32}  # room for prompts: they take no more memory than futures
    futures = simulate(prompts, **long)
    assert any(samples > caches for samples, _, caches in at_once)
    assert all(running <= caches for _, running, caches in at_once)
    assert by_key(futures) == by_key(simulate(prompts, **long, pool_batches=9))


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 3, 6, 8, 12, 17, 32, 64, 256])
def test_a_row_attends_to_at_most_four_times_what_it_has_and_to_twice_where_that_is_much_or_all_is_little(
    chunks, close
) -> None:
    bounds = batches._bounds(chunks, 32, close=close)
    assert bounds[-1] == chunks and bounds == sorted(set(bounds))
    for below, bound in itertools.pairwise(bounds):
        assert bound <= (2 if close or bound * 32 > 256 or chunks * 32 <= 256 else 4) * below


def test_fewer_samples_share_a_block_where_few_are_of_like_length() -> None:
    config = dataclasses.replace(CONFIG, samples=16, batch_rows=128, chunk_steps=32)
    assert [batches.block_rows(512, bound, config) for bound in (2, 8, 16, 32)] == [8, 4, 2, 2]
    assert [batches.block_rows(2048, bound, config) for bound in (2, 8, 16, 32)] == [16, 16, 8, 4]
    assert batches.block_rows(512, 2, dataclasses.replace(config, samples=5)) == 4


def test_pools_in_bfloat16_are_written_in_place(monkeypatch) -> None:
    """XLA's CPU backend writes into a bfloat16 array by converting all of it to float32 and back."""
    written = []

    def watch(name: str, place: int) -> None:
        whole = getattr(decoding, name)

        def watched(*args, **bounds):
            pool = args[place][0][0]
            written.append((pool.dtype, str(list(pool.shape)).replace(" ", ""), whole.lower(*args, **bounds)))
            return whole(*args, **bounds)

        monkeypatch.setattr(decoding, name, watched)

    watch("prefill", 2)
    watch("decode_chunk", 5)
    simulate(PROMPTS[:3], cache_dtype="bfloat16", horizon_seconds=DAY, pool_batches=3)
    assert len(written) >= 2
    for dtype, shape, lowered in (written[0], written[-1]):
        text = lowered.compile().as_text()
        assert dtype == "uint16" and f"u16{shape}" in text and f"f32{shape}" not in text


@pytest.mark.slow
def test_a_cache_in_bfloat16_takes_half_and_draws_much_the_same(monkeypatch) -> None:
    dtypes = set()
    prefill = decoding.prefill

    def watched(graph, weights, pool, *rest):
        dtypes.update(str(array.dtype) for array in jax.tree.leaves(pool))
        return prefill(graph, weights, pool, *rest)

    monkeypatch.setattr(decoding, "prefill", watched)
    halved = simulate(cache_dtype="bfloat16")
    assert dtypes == {"uint16"}  # its bits
    firsts = [future.tokens_T[0] == other.tokens_T[0] for future, other in zip(halved, futures_of_all(), strict=True)]
    assert np.mean(firsts) > 0.8


def test_batches_side_by_side_leave_each_other_prompts(monkeypatch) -> None:
    """On CPU a device is named once a core: the first batch must not swallow a short queue."""
    admitted, prefill = [], batches.Batches._prefill

    def counted(self, pool, starts, shape):
        admitted.append(len(starts))
        return prefill(self, pool, starts, shape)

    monkeypatch.setattr(batches.Batches, "_prefill", counted)
    device = jax.local_devices()[0]
    config = dataclasses.replace(CONFIG, samples=8, batch_rows=16)
    prompts = [Prompt(subject, 20) for subject in range(4)]
    together = engine.simulate_futures(model_of(), VOCABULARY, prompts, config, devices=[device] * 2)
    assert max(admitted) == 2 and sum(admitted) == 4
    alone = engine.simulate_futures(model_of(), VOCABULARY, prompts, config, devices=[device])
    assert all(np.array_equal(a.tokens_T, b.tokens_T) for a, b in zip(together, alone, strict=True))


def test_a_cpu_device_is_named_once_for_each_core_up_to_eight(monkeypatch) -> None:
    for cores, times in ((1, 1), (2, 2), (64, 8)):
        monkeypatch.setattr(engine.engines, "cores", lambda cores=cores: cores)
        assert engine.default_devices() == jax.local_devices() * times


def test_several_devices_draw_what_one_draws() -> None:
    """In a process of its own: the number of CPU devices is fixed at start."""
    program = """
import dataclasses, hashlib, jax, numpy as np
from benchmarks import decode
from cometjax import engine
from cometjax.model import ModelConfig
vocabulary = decode.endless_vocabulary(64)
model = decode.lively_model(ModelConfig(64, 2, 32, 4, 2, 8, 64, tied_embeddings=False))
prompts = [decode.RandomPrompt(i, np.random.default_rng(i).integers(14, 64, 20 + i).astype(np.int32)) for i in range(9)]
config = engine.SimulationConfig(samples=3, horizon_seconds=1000.0, max_new_tokens=24, batch_rows=8, chunk_steps=8)
def digest(devices):
    futures = engine.simulate_futures(model, vocabulary, prompts, config, devices=devices)
    assert [(f.subject_id, f.sample) for f in futures] == [(i, s) for i in range(9) for s in range(3)]
    return hashlib.sha256(b"".join(f.tokens_T.tobytes() + f.stop.encode() for f in futures)).hexdigest()
assert len(jax.devices()) == 3
assert digest(jax.devices()[:1]) == digest(None) == digest(jax.devices()[1:])
print("same")
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]
