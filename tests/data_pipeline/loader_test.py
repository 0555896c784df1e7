import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import corpus, loader, packing
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH

CONFIG = loader.LoaderConfig(batch_rows=8, row_length=32, seed=5, prefetch=0)
PREFIX_CHANGES_AT = 20


class MemorySplit:
    """A split whose token i of record r is r * 1000 + i + 1, with another static prefix from token 20 on."""

    name = "train"

    def __init__(self, lengths):
        self.lengths_R = np.array(lengths, np.uint32)

    def __str__(self):
        return self.name

    def records(self, indices):
        return [self.record(index) for index in indices]

    def record(self, index):
        tokens_T = (index * 1000 + 1 + np.arange(self.lengths_R[index])).astype(np.uint16)
        prefixes = np.stack([tokens_T[:PREFIX_LENGTH], 60_000 + np.arange(PREFIX_LENGTH)]).astype(np.uint16)
        return corpus.SubjectRecord(index, tokens_T, np.array([0, PREFIX_CHANGES_AT], np.uint32), prefixes)


SPLIT = MemorySplit(np.random.default_rng(0).integers(5, 100, 50))


@pytest.fixture
def split_on_disk(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train/lengths.npy", SPLIT.lengths_R)
    np.save(tmp_path / "train/subject_ids.npy", np.arange(50))
    shards = []
    for number, records in enumerate(np.array_split(np.arange(50), 3)):
        file = f"train/{number:05d}.array_record"
        corpus.write_shard(tmp_path / file, [SPLIT.record(int(record)) for record in records])
        shards.append({"file": file, "records": len(records)})
    return corpus.SplitReader(tmp_path, "train", shards)


def take(batches, number):
    return list(itertools.islice(batches, number))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
            assert batch[name].dtype == other[name].dtype


def joined(shares):
    """Global batches of every host's iterator, host by host."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def learnt(batches):
    """All (input, target) pairs with weight 1, sorted."""
    pairs = []
    for batch in batches:
        weighted = batch["loss_weights_BxL"] == 1
        pairs += zip(batch["tokens_BxL"][weighted].tolist(), batch["targets_BxL"][weighted].tolist(), strict=True)
    return sorted(pairs)


def pairs_of(split):
    tokens = (split.record(index).tokens_T.tolist() for index in range(len(split.lengths_R)))
    return sorted(pair for record in tokens for pair in itertools.pairwise(record))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(5, 200), min_size=1, max_size=20), st.integers(5, 64), st.integers(1, 5))
def test_an_evaluation_learns_every_pair_of_neighbours_exactly_once(lengths, row_length, batch_rows):
    split = MemorySplit(lengths)
    config = loader.LoaderConfig(batch_rows, row_length, seed=0, prefetch=0)
    assert learnt(loader.evaluation_batches(split, config)) == pairs_of(split)


def test_an_epoch_of_training_learns_every_pair_of_neighbours_exactly_once():
    rows = loader.training_plan(SPLIT, CONFIG).num_rows
    config = dataclasses.replace(CONFIG, batch_rows=1)
    batches = loader.train_batches(SPLIT, config)
    assert learnt(take(batches, rows)) == pairs_of(SPLIT)
    assert learnt(take(batches, rows)) == pairs_of(SPLIT)


def test_training_tells_its_tokens_per_epoch():
    plan = loader.training_plan(SPLIT, CONFIG)
    batches = take(loader.train_batches(SPLIT, dataclasses.replace(CONFIG, batch_rows=1)), plan.num_rows)
    assert plan.tokens_per_epoch == sum(batch["loss_weights_BxL"].sum() for batch in batches) == len(pairs_of(SPLIT))


def test_a_batch_has_the_shapes_and_types_of_the_contract():
    (batch,) = take(loader.train_batches(SPLIT, CONFIG, host=1, hosts=2), 1)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "tokens_BxL": ((4, 32), np.int32),
        "targets_BxL": ((4, 32), np.int32),
        "segment_ids_BxL": ((4, 32), np.int32),
        "positions_BxL": ((4, 32), np.int32),
        "loss_weights_BxL": ((4, 32), np.float32),
    }


def test_segments_count_from_one_and_positions_from_zero_in_each():
    for batch in loader.evaluation_batches(SPLIT, CONFIG):
        for ids_L, positions_L in zip(batch["segment_ids_BxL"], batch["positions_BxL"], strict=True):
            ids_S = ids_L[ids_L > 0]
            assert set(np.diff(ids_S)) <= {0, 1}
            assert (ids_L[len(ids_S) :] == 0).all() and (positions_L[len(ids_S) :] == 0).all()
            for segment in range(1, ids_L.max() + 1):
                place = ids_L == segment
                np.testing.assert_array_equal(positions_L[place], np.arange(place.sum()))


def test_padding_is_token_zero_with_weight_zero():
    padded = 0
    for batch in loader.evaluation_batches(SPLIT, CONFIG):
        padding = batch["segment_ids_BxL"] == 0
        padded += padding.sum()
        for name in ("tokens_BxL", "targets_BxL", "positions_BxL", "loss_weights_BxL"):
            assert (batch[name][padding] == 0).all()
        assert (batch["tokens_BxL"][~padding] > 0).all()
    assert padded > 0


def test_a_window_begins_with_the_prefix_of_its_start_which_carries_no_loss():
    split = MemorySplit([40])
    config = loader.LoaderConfig(batch_rows=1, row_length=16, seed=0, prefetch=0)
    rows = {int(batch["tokens_BxL"][0, PREFIX_LENGTH]): batch for batch in loader.evaluation_batches(split, config)}
    # 39 positions: 0-15, then 16-27 behind the first prefix, then 28-38 behind the second.
    assert sorted(rows) == [5, 17, 29]
    assert rows[5]["loss_weights_BxL"].tolist() == [[1] * 16]
    second, third = rows[17], rows[29]
    assert second["tokens_BxL"].tolist() == [[1, 2, 3, 4, *range(17, 29)]]
    assert second["targets_BxL"].tolist() == [[2, 3, 4, 17, *range(18, 30)]]
    assert second["loss_weights_BxL"].tolist() == [[0] * 4 + [1] * 12]
    assert third["tokens_BxL"].tolist() == [[60_000, 60_001, 60_002, 60_003, *range(29, 40), 0]]
    assert third["targets_BxL"].tolist() == [[60_001, 60_002, 60_003, 29, *range(30, 41), 0]]
    assert third["positions_BxL"].tolist() == [[*range(15), 0]]
    assert third["segment_ids_BxL"].tolist() == [[1] * 15 + [0]]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_global_batches_are_the_same_on_any_number_of_hosts(hosts):
    alone = take(loader.train_batches(SPLIT, CONFIG), 12)
    shares = [take(loader.train_batches(SPLIT, CONFIG, host=host, hosts=hosts), 12) for host in range(hosts)]
    assert_equal(joined(shares), alone)


def test_a_host_reads_only_its_own_rows():
    class Counting(MemorySplit):
        def record(self, index):
            read.append(index)
            return super().record(index)

    read = []
    split = Counting(SPLIT.lengths_R)
    plan = loader.training_plan(split, CONFIG)
    loader.batch_at(split, plan, CONFIG, 3, host=1, hosts=4)
    rows = [packing.stream_row(plan, place) for place in (3 * 8 + 2, 3 * 8 + 3)]
    assert read == [record for row in rows for record in plan.row(row).record_S]


def test_hosts_may_become_fewer_in_mid_epoch():
    config = dataclasses.replace(CONFIG, batch_rows=24)
    alone = take(loader.train_batches(SPLIT, config), 6)
    before = [take(loader.train_batches(SPLIT, config, host=host, hosts=8), 2) for host in range(8)]
    after = [take(loader.train_batches(SPLIT, config, start_step=2, host=host, hosts=3), 4) for host in range(3)]
    assert_equal(joined(before) + joined(after), alone)


@pytest.mark.parametrize("start_step", [1, 7, 30])
def test_starting_at_a_step_continues_the_same_sequence(start_step):
    whole = take(loader.train_batches(SPLIT, CONFIG), start_step + 3)
    assert_equal(take(loader.train_batches(SPLIT, CONFIG, start_step=start_step), 3), whole[start_step:])


def test_random_access_gives_the_batches_of_the_stream():
    plan = loader.training_plan(SPLIT, CONFIG)
    batches = [loader.batch_at(SPLIT, plan, CONFIG, step) for step in range(5)]
    assert_equal(take(loader.train_batches(SPLIT, CONFIG), 5), batches)


def test_starting_at_a_far_step_is_as_quick_as_starting_at_the_first():
    begin = time.perf_counter()
    take(loader.train_batches(SPLIT, CONFIG, start_step=10**12), 1)
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_files_on_disk_give_the_batches_of_memory_at_any_prefetch(split_on_disk, prefetch):
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    assert_equal(
        take(loader.train_batches(split_on_disk, config, start_step=2), 6),
        take(loader.train_batches(SPLIT, CONFIG, start_step=2), 6),
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_worker_processes_give_the_same_batches(split_on_disk, workers):
    config = dataclasses.replace(CONFIG, workers=workers)
    batches = loader.train_batches(split_on_disk, config, start_step=3)
    assert_equal(take(batches, 7), take(loader.train_batches(SPLIT, CONFIG, start_step=3), 7))
    batches.close()
    assert_equal(list(loader.evaluation_batches(split_on_disk, config)), list(loader.evaluation_batches(SPLIT, CONFIG)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_a_users_mistake_that_names_the_file(split_on_disk, tmp_path, workers):
    path = tmp_path / "train/00001.array_record"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00001\.array_record"):
        list(loader.evaluation_batches(split_on_disk, dataclasses.replace(CONFIG, prefetch=1, workers=workers)))


_READ_UNTIL_KILLED = """
import pathlib, sys, time
from data_pipeline import corpus, loader
root = pathlib.Path(sys.argv[1])
shards = [{"file": f"train/{number:05d}.array_record", "records": int(records)}
          for number, records in enumerate(sys.argv[2].split(","))]
config = loader.LoaderConfig(batch_rows=8, row_length=32, seed=5, workers=2)
batches = loader.train_batches(corpus.SplitReader(root, "train", shards), config)
next(batches)
print("reading", flush=True)
while True:
    next(batches)
"""


def descendants(pid):
    """Processes under `pid`, by /proc."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = path.read_text().rsplit(")", 1)
            parents[int(name.split()[0])] = int(fields.split()[1])
    return [child for child, parent in parents.items() if parent == pid]


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_loader_leaves_no_worker_no_file_and_no_shared_memory(split_on_disk, tmp_path):
    places = [tmp_path / "temporary", tmp_path / "cache", pathlib.Path("/dev/shm")]
    for place in places[:2]:
        place.mkdir()
    before = {place: set(place.iterdir()) for place in places if place.exists()}
    process = subprocess.Popen(
        [sys.executable, "-c", _READ_UNTIL_KILLED, str(tmp_path), "17,17,16"],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(places[0]), "COMETJAX_CACHE": str(places[1])},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"reading\n"
    workers = descendants(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    process.stdout.close()
    after = {place: {path for path in place.iterdir() if owner(path) == os.getuid()} for place in before}
    assert all(after[place] <= before[place] for place in places[:2])
    assert not [path for path in after.get(places[2], set()) - before.get(places[2], set()) if "psm_" in path.name]


def owner(path):
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def test_a_killed_worker_is_told_in_one_line(split_on_disk):
    before = set(descendants(os.getpid()))  # a pool of another test leaves its resource tracker
    batches = loader.train_batches(split_on_disk, dataclasses.replace(CONFIG, workers=1))
    next(batches)
    (worker,) = set(descendants(os.getpid())) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match="a worker process ended with code -9") as raised:
        take(batches, 10)
    # Python 3.12.1's garbage collector crashes on the traceback of a failed send.
    assert raised.value.__context__ is None


def test_workers_go_on_when_the_job_is_told_to_end(split_on_disk):
    # Slurm and Kubernetes signal every process; the trainer still wants its step's batch before it saves.
    before = set(descendants(os.getpid()))
    batches = loader.train_batches(split_on_disk, dataclasses.replace(CONFIG, workers=1))
    first = take(batches, 1)
    (worker,) = set(descendants(os.getpid())) - before
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    assert_equal(first + take(batches, 9), take(loader.train_batches(SPLIT, CONFIG), 10))
    batches.close()


def test_a_change_of_seed_changes_training_but_not_evaluation():
    other = dataclasses.replace(CONFIG, seed=6)
    first, second = (take(loader.train_batches(SPLIT, config), 1)[0] for config in (CONFIG, other))
    assert not np.array_equal(first["tokens_BxL"], second["tokens_BxL"])
    assert_equal(list(loader.evaluation_batches(SPLIT, CONFIG)), list(loader.evaluation_batches(SPLIT, other)))


def test_the_last_evaluation_batch_is_filled_up_with_empty_rows():
    rows = loader.evaluation_plan(SPLIT, CONFIG).num_rows
    assert rows % 64, "the case to test"
    shares = [
        list(loader.evaluation_batches(SPLIT, dataclasses.replace(CONFIG, batch_rows=64), host=host, hosts=4))
        for host in range(4)
    ]
    assert [len(share) for share in shares] == [-(-rows // 64)] * 4
    used_B = np.concatenate([batch["segment_ids_BxL"].any(axis=1) for batch in joined(shares)])
    assert used_B[:rows].all() and not used_B[rows:].any()
    assert learnt(joined(shares)) == pairs_of(SPLIT)


def test_max_batches_cuts_an_evaluation_short():
    whole = list(loader.evaluation_batches(SPLIT, CONFIG))
    assert_equal(list(loader.evaluation_batches(SPLIT, CONFIG, max_batches=2)), whole[:2])
    assert_equal(list(loader.evaluation_batches(SPLIT, CONFIG, max_batches=10**6)), whole)


@pytest.mark.parametrize(
    ("split", "changes", "hosts", "message"),
    [
        (MemorySplit([]), {}, 1, "split train: has no subjects"),
        (SPLIT, {"batch_rows": 6}, 4, "batch_rows: 6 rows do not divide among 4 hosts"),
        (SPLIT, {"batch_rows": 0}, 1, "batch_rows: 0 rows"),
        (SPLIT, {"row_length": PREFIX_LENGTH}, 1, "row_length: "),
        (SPLIT, {"workers": -1}, 1, "workers: -1 is negative"),
        (SPLIT, {"prefetch": -1}, 1, "prefetch: -1 is negative"),
    ],
)
@pytest.mark.parametrize("batches", [loader.train_batches, loader.evaluation_batches])
def test_mistakes_are_refused_before_the_first_batch(batches, split, changes, hosts, message):
    with pytest.raises(UserError, match=message):
        batches(split, dataclasses.replace(CONFIG, **changes), hosts=hosts)
