"""How long a drawn interval lasts, after a silence of so many seconds: one step on a table made by hand, no model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cometjax import decoding

EVENT, SHORT, LONGEST = range(3)
HALF_YEAR = 1000
TABLE = decoding.TokenTable(
    allowed_V=jnp.ones(3, bool),
    interval_V=jnp.array([-1, 0, 1]),
    stop_V=jnp.zeros(3, jnp.int32),
    token_I=jnp.array([SHORT, LONGEST]),
    seconds_IxE=jnp.array([[10, 20, 20, 30], [1000, 1080, 1200, 1400]]),
    repeats_E=jnp.array([-400, -100, 100, 400]),
    repeat_seconds=jnp.int32(HALF_YEAR),
)
ROWS = 12  # whose random numbers are even: of 2, 3 or 4 durations each comes equally often


def first_step(
    token: int, silence: int, *, repeats: bool = False, table: decoding.TokenTable = TABLE
) -> dict[str, np.ndarray]:
    """What is left of each row, all of which draw `token`, after `silence` seconds without events since the last event,
    or since the last whole half-year of them (`repeats`)."""
    last = LONGEST if repeats else EVENT
    state = {"token_R": last, "clock_R": -silence, "stop_R": 0, "state_R": 0, "excess_R": 0, "longer_R": 1.0}
    return next_step(token, {name: jnp.full(ROWS, value) for name, value in state.items()}, token - 1, table)


def next_step(
    token: int | None, state: dict[str, np.ndarray], least_interval: int = -1, table: decoding.TokenTable = TABLE
) -> dict[str, np.ndarray]:
    """All rows draw `token`; None: an event or the longest interval, which the model holds for equally likely."""
    fields = dict.fromkeys(field.name for field in dataclasses.fields(decoding.Rows))
    fields |= {"length_R": jnp.full(ROWS, int(least_interval < 0)), "first_interval_R": jnp.full(ROWS, least_interval)}
    rows = decoding.Rows(**fields | {"horizon_R": jnp.full(ROWS, 10**6)})
    limits = {"temperature": jnp.float32(1), "max_new_tokens": jnp.int32(9)}
    evenly_R = (jnp.arange(ROWS) + 0.5) / ROWS
    logits_RxV = jnp.zeros((ROWS, 3)).at[:, [EVENT, LONGEST] if token is None else token].set(60.0)
    after, _ = decoding._draw_next(
        logits_RxV, state, decoding.Rules(table), limits, rows, jnp.int32(0), jnp.stack([evenly_R, evenly_R])
    )
    assert token is None or (after["token_R"] == token).all()
    return {name: np.asarray(values) for name, values in after.items()}


def times(clock_R: np.ndarray) -> list[int]:
    """Equally likely times until the next event, each once."""
    values, counts = np.unique(clock_R, return_counts=True)
    return np.repeat(values, counts // np.gcd.reduce(counts)).tolist()


@pytest.mark.parametrize(("silence", "longer"), [(9, 4), (10, 3), (19, 3), (20, 1), (29, 1), (30, 0)])
def test_an_interval_weighs_as_much_as_its_durations_that_end_after_the_prediction_time(silence, longer) -> None:
    """Strictly: what happened at that very time the model has seen."""
    # One row stands in a silence, the other does not.
    least, elapsed = jnp.array([0, -1]), jnp.array([silence, -1])
    probability_2xV = decoding.token_probabilities(jnp.zeros((2, 3)), TABLE, jnp.float32(1), least, elapsed)
    assert np.asarray(probability_2xV) == pytest.approx(np.array([[0, max(longer / 4, 1e-6), 1], [1, 1, 1]]))


@pytest.mark.parametrize(
    ("silence", "left"), [(9, [1, 11, 11, 21]), (10, [10, 10, 20]), (19, [1, 1, 11]), (20, [10]), (35, [0])]
)
def test_of_the_durations_those_that_end_after_the_prediction_time_are_equally_likely(silence, left) -> None:
    assert times(first_step(SHORT, silence)["clock_R"]) == left


def test_the_longest_interval_that_comes_once_lasts_as_single_ones_do() -> None:
    assert times(first_step(LONGEST, 1080)["clock_R"]) == [120, 320]


@pytest.mark.parametrize(
    ("silence", "left"), [(599, [1, 301, 501, 801]), (900, [200, 500]), (1100, [300]), (1450, [0])]
)
def test_a_silence_of_several_half_years_lasts_as_repeats_do(silence, left) -> None:
    """Its half-years but for the last are in the prompt; what follows is a half-year and the rest of such a gap."""
    assert times(first_step(LONGEST, silence, repeats=True)["clock_R"]) == left


def test_each_further_repeat_draws_the_whole_gap_anew() -> None:
    before = first_step(LONGEST, 900, repeats=True)
    assert set(before["excess_R"]) == {100, 400}
    after = next_step(LONGEST, before)
    assert (after["clock_R"] - 2 * HALF_YEAR + 900).tolist() == after["excess_R"].tolist()
    assert set(after["excess_R"]) == set(np.asarray(TABLE.repeats_E))
    # Any other token between, and it is a gap of its own.
    event = next_step(EVENT, before)
    assert (event["clock_R"] == before["clock_R"]).all() and not event["excess_R"].any()
    assert set(next_step(LONGEST, event)["clock_R"] - event["clock_R"]) == {1000, 1080, 1200, 1400}


@pytest.mark.parametrize(
    ("token", "silence", "repeats", "longer"),
    [
        (LONGEST, 999, False, 1),
        (LONGEST, 1080, False, 0.5),
        (LONGEST, 1400, False, 1e-6),
        (LONGEST, 900, True, 0.5),
        (LONGEST, 1399, True, 0.25),
        (SHORT, 20, False, 1),
    ],
)
def test_a_gap_that_goes_on_with_a_repeat_is_likelier_the_fewer_durations_outlast_the_silence(
    token, silence, repeats, longer
) -> None:
    """Bayes' rule: a gap that ends here has outlasted the silence with this share, one with a repeat for sure."""
    before = first_step(token, silence, repeats=repeats)
    assert before["longer_R"] == pytest.approx(longer)
    probability_RxV = np.asarray(decoding.ended(jnp.ones((ROWS, 3)), TABLE, jnp.asarray(before["longer_R"])))
    assert probability_RxV == pytest.approx(np.tile([longer, longer, 1], (ROWS, 1)))
    after = next_step(None, before)
    assert (after["token_R"] == EVENT).sum() == round(ROWS * longer / (longer + 1))
    assert (after["longer_R"] == 1).all()


def test_of_a_mean_duration_alone_nothing_is_told_of_repeats() -> None:
    by_mean = dataclasses.replace(TABLE, seconds_IxE=jnp.array([[20], [1170]]), repeats_E=jnp.array([0]))
    assert (first_step(LONGEST, 1300, table=by_mean)["longer_R"] == 1).all()
