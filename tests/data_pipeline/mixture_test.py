"""Mixtures: proportions as exact as whole rows allow, batches a function of (seed, step, weights) alone."""

import dataclasses
import fractions
import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import corpus, loader, mixture
from data_pipeline.errors import UserError
from data_pipeline.mixture import Schedule, open_corpus

CONFIG = loader.LoaderConfig(batch_rows=24, row_length=32, seed=5, prefetch=0)


def write_part(root, *, subjects, first_token, vocabulary_from):
    """A corpus whose tokens tell it from others: each at or above `first_token`."""
    random = np.random.default_rng(first_token)
    splits = {}
    for split, number in {"train": subjects, "tuning": subjects // 5}.items():
        (root / split).mkdir(parents=True)
        tokens = [first_token + random.integers(0, 900, random.integers(6, 60)) for _ in range(number)]
        records = [
            corpus.SubjectRecord(subject, np.array(tokens_T, np.uint16), np.zeros(1, np.uint32), tokens_T[None, :4])
            for subject, tokens_T in enumerate(tokens)
        ]
        path = root / split / "00000.array_record"
        corpus.write_shard(path, records)
        np.save(root / split / "lengths.npy", np.array([len(record.tokens_T) for record in records], np.uint32))
        np.save(root / split / "subject_ids.npy", np.arange(number, dtype=np.int64))
        shard = {"file": f"{split}/00000.array_record", "records": number, "sha256": corpus.file_sha256(path)}
        splits[split] = {"tokens": sum(len(record.tokens_T) for record in records), "shards": [shard]}
    shutil.copy(vocabulary_from / corpus.VOCABULARY, root / corpus.VOCABULARY)
    manifest = json.loads((vocabulary_from / corpus.MANIFEST).read_text()) | {
        "fingerprint": corpus.fingerprint(str(first_token), splits),
        "source": root.name,
        "splits": splits,
    }
    write_manifest(root, manifest)
    return root


def write_manifest(root, manifest):
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    (root / corpus.MANIFEST).write_bytes(corpus.encode_manifest(rest))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, world_corpus):
    root = tmp_path_factory.mktemp("mixture")
    for name, subjects, first_token in (("a", 60, 1000), ("b", 25, 2000), ("c", 10, 3000)):
        write_part(root / name, subjects=subjects, first_token=first_token, vocabulary_from=world_corpus)
    return root


@pytest.fixture(scope="module")
def mixed(folders):
    return open_corpus(f"{folders}/a=0.6,{folders}/b=0.3,{folders}/c=0.1")


def take(batches, number):
    return list(itertools.islice(batches, number))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def joined(shares):
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def parts_of(batch):
    """The thousands of each row's tokens, which tell its corpus; a row has tokens of one only."""
    thousands = [set((tokens_L[tokens_L > 0] // 1000).tolist()) for tokens_L in batch["tokens_BxL"]]
    assert all(len(found) == 1 for found in thousands)
    return [found.pop() for found in thousands]


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_after_any_number_of_rows_each_part_is_within_a_row_of_its_share(weights):
    schedule = Schedule.of([fractions.Fraction(weight) for weight in weights])
    total, counts = sum(weights), np.zeros(len(weights), int)
    bound = 1 - fractions.Fraction(1, max(2 * len(weights) - 2, 1)) if len(weights) > 1 else 0
    for place in range(2 * total + 3):
        part, before = schedule.at(place)
        assert before == counts[part]
        counts[part] += 1
        for weight, count in zip(weights, counts.tolist(), strict=True):
            assert abs(count - fractions.Fraction(weight * (place + 1), total)) <= bound


def test_weights_are_proportions():
    assert Schedule.of([fractions.Fraction(text) for text in ("0.7", "0.3")]).weights == (7, 3)
    assert Schedule.of([fractions.Fraction(text) for text in ("118", "45.5")]).weights == (236, 91)
    assert Schedule.of([fractions.Fraction(text) for text in ("1/3", "2/3")]).weights == (1, 2)


def test_a_place_far_down_the_stream_is_found_at_once():
    schedule = Schedule((70_000, 29_999))
    part, before = schedule.at(10**15)
    assert abs(before - 10**15 * schedule.weights[part] / 99_999) < 2


def test_every_batch_holds_the_corpora_in_proportion(mixed):
    for batch in take(loader.train_batches(mixed.split("train"), CONFIG), 10):
        parts = parts_of(batch)
        for part, share in ((1, 0.6), (2, 0.3), (3, 0.1)):
            assert abs(parts.count(part) - share * 24) < 2


def test_each_corpus_has_epochs_of_its_own(mixed, folders):
    split = mixed.split("train")
    seen = {1: [], 2: [], 3: []}
    for batch in take(loader.train_batches(split, CONFIG), 40):
        for part, tokens_L in zip(parts_of(batch), batch["tokens_BxL"], strict=True):
            seen[part].append(tokens_L.tobytes())
    for name, part in (("a", 1), ("b", 2), ("c", 3)):
        alone = corpus.Corpus.open(folders / name).split("train")
        assert len(seen[part]) > 2 * loader.training_plan(alone, CONFIG).num_rows
        # The rows of the mixture are, in their order, those of training on the corpus alone.
        config = dataclasses.replace(CONFIG, batch_rows=1)
        by_itself = [batch["tokens_BxL"][0] for batch in take(loader.train_batches(alone, config), len(seen[part]))]
        assert seen[part] == [tokens_L.tobytes() for tokens_L in by_itself]


@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_global_batches_are_the_same_on_any_number_of_hosts(mixed, hosts):
    split = mixed.split("train")
    alone = take(loader.train_batches(split, CONFIG), 5)
    shares = [take(loader.train_batches(split, CONFIG, host=host, hosts=hosts), 5) for host in range(hosts)]
    assert_equal(joined(shares), alone)


def test_starting_at_a_step_and_worker_processes_continue_the_same_sequence(mixed):
    split = mixed.split("train")
    whole = take(loader.train_batches(split, CONFIG), 12)
    assert_equal(take(loader.train_batches(split, CONFIG, start_step=7), 5), whole[7:])
    batches = loader.train_batches(split, dataclasses.replace(CONFIG, workers=2), start_step=7)
    assert_equal(take(batches, 5), whole[7:])
    batches.close()


def test_a_tuning_split_pools_all_subjects_whatever_the_weights(folders):
    def learnt(names):
        batches = loader.evaluation_batches(open_corpus(names).split("tuning"), CONFIG)
        return [batch["tokens_BxL"].tobytes() for batch in batches], sum(b["loss_weights_BxL"].sum() for b in batches)

    def tokens(name):
        return (corpus.Corpus.open(folders / name).split("tuning").lengths_R.astype(int) - 1).sum()

    batches = list(loader.evaluation_batches(open_corpus(f"{folders}/a=3,{folders}/b=1").split("tuning"), CONFIG))
    assert sum(batch["loss_weights_BxL"].sum() for batch in batches) == tokens("a") + tokens("b")
    others = list(loader.evaluation_batches(open_corpus(f"{folders}/b=7,{folders}/a=1").split("tuning"), CONFIG))
    assert_equal(batches, others)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_an_evaluation_says_which_corpus_each_token_is_of(mixed, workers):
    config = dataclasses.replace(CONFIG, workers=workers, prefetch=1)
    thousands = [int(part.record(0).tokens_T[0]) // 1000 for part in mixed.split("tuning").parts]
    told = set()
    for batch in loader.evaluation_batches(mixed.split("tuning"), config):
        is_token = batch["tokens_BxL"] > 0
        parts, sources = batch["tokens_BxL"][is_token] // 1000, batch["sources_BxL"][is_token]
        told |= set(zip(parts.tolist(), sources.tolist(), strict=True))
    assert told == {(thousand, source) for source, thousand in enumerate(thousands)} and len(told) == 3
    assert sorted(mixed.names) == ["a", "b", "c"]


def test_corpora_are_named_by_as_much_of_their_paths_as_makes_them_differ():
    assert mixture._ends(["runs/a/corpus", "runs/b/corpus"]) == ["a/corpus", "b/corpus"]
    assert mixture._ends(["gs://x/a", "b/"]) == ["a", "b"] and mixture._ends(["a", "b/a"]) == ["a", "b/a"]


def test_the_fingerprint_tells_corpora_and_weights_but_not_their_order(folders):
    a, b, c = (f"{folders}/{name}" for name in "abc")
    one = open_corpus(f"{a}=0.7,{b}=0.3")
    same = open_corpus(f"{b}=3, {a}=7")
    assert one.fingerprint == same.fingerprint
    assert_equal(*(take(loader.train_batches(corpora.split("train"), CONFIG), 3) for corpora in (one, same)))
    others = [open_corpus(names).fingerprint for names in (f"{a}=0.6,{b}=0.4", f"{a}=0.7,{c}=0.3")]
    assert len({one.fingerprint, *others}) == 3
    assert {part["source"]: part["weight"] for part in one.manifest["source"]} == {"a": 7, "b": 3}


def test_one_folder_is_one_corpus_also_with_a_comma_in_its_name(folders):
    assert isinstance(open_corpus(f"{folders}/a"), corpus.Corpus)
    shutil.copytree(folders / "a", folders / "x=1,y=2")
    assert isinstance(open_corpus(f"{folders}/x=1,y=2"), corpus.Corpus)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{0}/a,{0}/b", "is no FOLDER=WEIGHT; write a mixture as"),
        ("{0}/a=0.5,{0}/b=x", "is no FOLDER=WEIGHT"),
        ("{0}/a=0.5,{0}/b=1/0", "is no FOLDER=WEIGHT"),
        ("{0}/a=0.5,", "'' is no FOLDER=WEIGHT"),
        ("{0}/a=1,{0}/b=0", "a weight is not positive"),
        ("{0}/a=1,{0}/b=-1", "a weight is not positive"),
        ("{0}/a=1,{0}/b=0.1234567", "repeat only after 11234567 rows, the most is 100000; round them"),
        ("{0}/a=1,{0}/a=2", "the same corpus twice; add up the weights"),
        ("{0}/a=1,{0}/none=2", "none: no corpus.json"),
    ],
)
def test_mistakes_are_refused_in_one_line(folders, names, message):
    with pytest.raises(UserError, match=message):
        open_corpus(names.format(folders))


def test_another_vocabulary_is_refused_with_both(folders, world_corpus, tmp_path):
    other = write_part(tmp_path / "other", subjects=10, first_token=4000, vocabulary_from=world_corpus)
    content = json.loads((other / corpus.VOCABULARY).read_text())
    content["tokens"][-1]["text"] = "another"
    # As save writes it: a vocabulary's fingerprint is its file's.
    mixture.Vocabulary.from_json(json.dumps(content)).save(other / corpus.VOCABULARY)
    manifest = json.loads((other / corpus.MANIFEST).read_text())
    manifest["vocabulary_fingerprint"] = mixture.Vocabulary.load(other / corpus.VOCABULARY).fingerprint
    write_manifest(other, manifest)
    with pytest.raises(UserError, match=r"vocabularies \w{12} and \w{12} differ; build one with the other's"):
        open_corpus(f"{folders}/a=1,{other}=1")


def test_a_split_without_subjects_is_refused(folders, world_corpus, tmp_path):
    empty = write_part(tmp_path / "empty", subjects=0, first_token=5000, vocabulary_from=world_corpus)
    with pytest.raises(UserError, match=r"split train of .*empty: has no subjects"):
        loader.train_batches(open_corpus(f"{folders}/a=1,{empty}=1").split("train"), CONFIG)
