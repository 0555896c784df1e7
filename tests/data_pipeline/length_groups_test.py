"""Steps whose rows cost attention alike: the same rows as without, and devices that need not wait."""

import dataclasses
import itertools

import numpy as np
import pytest

from data_pipeline import loader, packing
from data_pipeline.errors import UserError
from data_pipeline.length_groups import attention_cost, places_of_steps
from tests.data_pipeline.loader_test import CONFIG, SPLIT, assert_equal, joined, take

ROWS = 12
# Mostly short, some as long as a row or longer: packing can't even those out.
LENGTHS = np.clip(np.random.default_rng(0).lognormal(3.5, 1.2, 4_000), 8, 600).astype(np.int64)
PLAN = packing.plan(LENGTHS, row_length=256, prefix_length=4, seed=3)


def waiting(group_by_length, devices, steps=48):
    """Attention's cost on a step's dearest device, over what it is on average."""
    places_of = places_of_steps(PLAN, ROWS, group_by_length, seed=0)
    shares = np.array(
        [
            np.array([attention_cost(PLAN.stream(place)) for place in places_of(step)]).reshape(devices, -1).sum(axis=1)
            for step in range(steps)
        ]
    )
    return shares.max(axis=1).sum() / shares.mean(axis=1).sum()


@pytest.mark.parametrize("group_by_length", [0, 1, 4])
def test_a_group_of_steps_takes_the_rows_that_its_steps_would_have_taken(group_by_length):
    places_of = places_of_steps(PLAN, ROWS, group_by_length, seed=0)
    group = max(group_by_length, 1)
    for first in (0, 3 * group):
        places = list(itertools.chain(*(places_of(step) for step in range(first, first + group))))
        assert sorted(places) == list(range(first * ROWS, (first + group) * ROWS))


def test_rows_of_a_step_cost_alike_and_the_steps_of_a_group_come_in_random_order():
    places_of = places_of_steps(PLAN, ROWS, 8, seed=0)
    dearest = []
    for group in range(4):
        costs = [
            [attention_cost(PLAN.stream(place)) for place in places_of(step)]
            for step in range(group * 8, group * 8 + 8)
        ]
        ranges = sorted((min(step), max(step)) for step in costs)
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges))
        dearest.append(int(np.argmax([max(step) for step in costs])))
    assert len(set(dearest)) > 1


def test_the_larger_the_group_the_less_is_waited_for():
    alone = [waiting(group, devices=ROWS) for group in (0, 4, 16)]
    assert alone[0] > 1.5 > alone[1] > alone[2]
    assert alone[2] < 1.15
    assert waiting(1, devices=ROWS) == pytest.approx(alone[0])


@pytest.mark.parametrize("devices", [3, 6])
def test_in_one_step_devices_with_several_rows_are_evened_out(devices):
    as_they_come, ordered = waiting(0, devices), waiting(1, devices)
    assert ordered - 1 < 0.75 * (as_they_come - 1)


@pytest.mark.parametrize("hosts", [1, 4])
def test_batches_are_those_of_one_host_from_any_step_at_any_number_of_workers(hosts):
    config = dataclasses.replace(CONFIG, group_by_length=3)
    whole = take(loader.train_batches(SPLIT, config), 8)
    shares = [
        take(loader.train_batches(SPLIT, config, start_step=4, host=host, hosts=hosts), 4) for host in range(hosts)
    ]
    assert_equal(joined(shares), whole[4:])
    plan = loader.training_plan(SPLIT, config)
    assert_equal([loader.batch_at(SPLIT, plan, config, step) for step in range(8)], whole)


def test_another_seed_is_another_order_of_steps():
    first, second = (places_of_steps(PLAN, ROWS, 8, seed) for seed in (0, 1))
    assert [first(step) for step in range(8)] != [second(step) for step in range(8)]
    assert sorted(first(step) for step in range(8)) == sorted(second(step) for step in range(8))


def test_a_negative_group_is_refused():
    with pytest.raises(UserError, match="group_by_length: -1 is negative"):
        next(loader.train_batches(SPLIT, dataclasses.replace(CONFIG, group_by_length=-1)))
