"""Random damage to data sets, labels and corpora ends in a clear line, a quarantine entry or a right result.

Never in a traceback, a hang, a crash, or rows that are lost and not counted. Cases run in a process of their own, with
its stderr looked at: a library that aborts or prints a panic is a failure as well. A case is its number: run it alone
with `fuzz_test.build_case(folder, number)`.
"""

import multiprocessing
import os
import pathlib
import traceback
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from data_pipeline import build_config, grammar, loader, meds, prompts, show_tables, show_timeline
from data_pipeline import corpus as corpus_module
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.verify import verify
from data_pipeline.world import write_world
from tests.data_pipeline import mutations

SECONDS_PER_CASE = 100  # on a busy machine; a case takes a fifth of a second
QUICK, MANY = range(500, 515), range(500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """folder/meds: a data set; folder/corpus: its corpus; folder/labels.parquet: labels of its subjects."""
    root = tmp_path_factory.mktemp("fuzz")
    write_world(root / "meds", patients=40, seed=3, shards=4)
    for path in root.glob("meds/data/*/*.parquet"):  # few rows: five hundred cases are five hundred builds
        events = pl.read_parquet(path)
        events.filter(pl.col("subject_id").is_in(events["subject_id"].unique().head(3).implode())).write_parquet(path)
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=2, min_values_per_code=5)
    build_corpus(root / "meds", root / "corpus", config, workers=1)
    events = pl.concat([meds.read_shard(path) for path in meds.open_dataset(root / "meds").shards])
    last = events.drop_nulls("time").group_by("subject_id", maintain_order=True).agg(pl.col("time").last())
    labels = last.rename({"time": "prediction_time"}).with_columns(
        boolean_value=pl.col("subject_id") % 2 == 0, integer_value=pl.lit(1), float_value=pl.lit(0.5)
    )
    labels.write_parquet(root / "labels.parquet")
    return root


# What a case does: damage something, use it, and raise unless all is as it should be. Returns how it ended.


def build_case(folder: pathlib.Path, number: int) -> str:
    """Damage a file of a data set and build it, leniently or not, with the vocabulary of the whole data set's corpus.

    With one vocabulary, subjects of other files must have the very tokens that they had.
    """
    random = np.random.default_rng([1, number])
    root = mutations.copy(folder / "meds", folder / "damaged")
    path = sorted(root.glob("data/*/*.parquet"))[random.integers(4)]
    if random.random() < 0.2:
        others = sorted((root / "metadata").iterdir())
        path = others[random.integers(len(others))]
    table = pl.read_parquet(path) if path.suffix == ".parquet" else None
    if table is not None and random.random() < 0.5:
        way, rows = mutations.mistake(path, random), pl.read_parquet(path).height
    else:
        if table is not None:
            mutations.rewrite(path, table, random)
        way, rows = mutations.damage(path, sorted(root.rglob("*.parquet")), random), None
        if way == "replaced by another file" and table is not None:
            rows = pl.read_parquet(path).height if path.is_file() else None
    ended = []
    for on_error in ("refuse", "quarantine"):
        out = folder / "built"
        mutations.remove(out)
        try:
            built = build_corpus(
                root, out, build_config.get_config(), workers=1, on_error=on_error, vocabulary=folder / "corpus"
            )
        except UserError as error:
            check_line(error)
            assert not out.exists()
            ended.append("refused")
            mutations.remove(out.with_name("built.partial"))
            continue
        ended.append(check_built(built, folder, path.relative_to(root).as_posix(), rows))
        assert ended[-1] != "set aside" or on_error == "quarantine"
        mutations.remove(out)
    return f"{way}: {', '.join(ended)}"


def check_built(built: Corpus, folder: pathlib.Path, damaged: str, rows: int | None) -> str:
    """Every row is accounted for, every subject of other files is as it was or set aside, every byte is right."""
    manifest, quarantine = built.manifest, built.manifest["quarantine"]
    counted = sum(sum(split["rows"].values()) for split in manifest["splits"].values())
    assert counted + quarantine["rows"] == manifest["source"]["rows"]
    whole = {path: pl.read_parquet(path).height for path in sorted((folder / "meds").glob("data/*/*.parquet"))}
    there = {path.relative_to(folder / "meds").as_posix(): height for path, height in whole.items()}
    if damaged in there and rows is not None:
        there[damaged] = rows
    # A file that is not there, or none of events: what it held cannot be known.
    missing = quarantine["files"] or not (folder / "damaged" / damaged).is_file()
    lost = sum(there.values()) - manifest["source"]["rows"]
    assert lost == 0 or (missing and damaged in there and lost <= there[damaged]), lost
    assert quarantine["files"] or manifest["source"]["subjects_without_events"] or not lost, lost
    aside = pl.read_parquet(built.root / "quarantine.parquet") if quarantine["rows"] or quarantine["files"] else None
    set_aside = set() if aside is None else set(aside["subject_id"].drop_nulls())
    before, after = records(Corpus.open(folder / "corpus")), records(built)
    if damaged.startswith("data/"):
        untouched = set().union(*(subjects(path) for path in whole if not path.as_posix().endswith(damaged)))
        for subject in untouched - set_aside:
            assert after[subject] == before[subject], "a subject of another file has changed"
    assert verify(built) == []
    for content in after.values():
        tokens = corpus_module.decode_record(content).tokens_T.tolist()
        assert grammar.is_valid(tokens, built.vocabulary)
    return "built" if aside is None else "set aside"


def label_case(folder: pathlib.Path, number: int) -> str:
    """Damage labels, read them and make prompts of them."""
    random = np.random.default_rng([2, number])
    path = folder / "damaged.parquet"
    mutations.remove(path)
    mutations.rewrite(path, pl.read_parquet(folder / "labels.parquet"), random)
    rows = None
    if random.random() < 0.6:
        way, rows = mutations.mistake(path, random), pl.read_parquet(path).height
    else:
        way = mutations.damage(path, [folder / "corpus" / "corpus.json", next(folder.glob("meds/data/*/*"))], random)
    dataset = meds.open_dataset(folder / "meds")
    try:
        labels = meds.read_labels(path, dataset.splits["subject_id"])
        assert len(labels) == (pl.read_parquet(folder / "labels.parquet").height if rows is None else rows)
        made = prompts.build_prompts(dataset, labels, Corpus.open(folder / "corpus").vocabulary)
    except UserError as error:
        check_line(error)
        return f"{way}: refused"
    assert [prompt.subject_id for prompt in made] == labels["subject_id"].to_list()
    whole = {
        subject: corpus_module.decode_record(content)
        for subject, content in records(Corpus.open(folder / "corpus")).items()
    }
    for prompt, time_us in zip(made, labels["prediction_time"].dt.epoch("us"), strict=True):
        assert prompt.prediction_time_us == time_us >= prompt.last_time_us
        tokens = prompt.record.tokens_T[4:].tolist()
        assert tokens == whole[prompt.subject_id].tokens_T[4:][: len(tokens)].tolist()
    return f"{way}: used"


def corpus_case(folder: pathlib.Path, number: int) -> str:
    """Damage a file of a corpus and use it in every way: what is read is right, or an error, and verify knows."""
    random = np.random.default_rng([3, number])
    root = mutations.copy(folder / "corpus", folder / "damaged_corpus")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[random.integers(len(files))]
    before = path.read_bytes()
    way = f"{path.suffix} {mutations.damage(path, files, random)}"
    same = path.is_file() and path.read_bytes() == before
    uses = [uses_of(folder / "corpus"), uses_of(root)]
    ended = []
    for name, right in uses[0].items():
        try:
            read = uses[1][name]()
        except UserError as error:
            check_line(error)
            assert not same
            ended.append(f"{name} refused")
            continue
        # Ids stand in the records too, and those are checked; the list of them is for verify.
        assert read == right() or path.name == "subject_ids.npy", f"{name} reads something else"
    try:
        faults = [fault.file for fault in verify(Corpus.open(root))]
        name = path.relative_to(root).as_posix()
        assert faults == ([] if same else [name]), faults
    except UserError as error:
        check_line(error)
        assert path.name == corpus_module.MANIFEST
    return f"{way}: {', '.join(ended) or 'all read right'}"


def uses_of(root: pathlib.Path) -> dict[str, Callable[[], object]]:
    """What is done with a corpus, by name."""
    config = loader.LoaderConfig(batch_rows=2, row_length=2048, seed=0, prefetch=0)

    def batches() -> list[bytes]:
        made = loader.evaluation_batches(Corpus.open(root).split("train"), config, max_batches=3)
        return [b"".join(batch[name].tobytes() for name in sorted(batch)) for batch in made]

    def timeline() -> list[str]:
        corpus = Corpus.open(root)
        return list(show_timeline.timeline(corpus.split("train").record(0), corpus.vocabulary))

    return {
        "overview": lambda: "\n".join(show_tables.overview(Corpus.open(root), ["train", "tuning", "held_out"])).replace(
            str(root), ""
        ),
        "vocabulary": lambda: Corpus.open(root).vocabulary.fingerprint,
        "records": lambda: records(Corpus.open(root)),
        "subjects": lambda: Corpus.open(root).split("train").subject_ids_R.tolist(),
        "batches": batches,
        "timeline": timeline,
    }


def records(corpus: Corpus) -> dict[int, bytes]:
    """Subject → its record's bytes."""
    found = {}
    for name in corpus.manifest["splits"]:
        split = corpus.split(name)
        for index in range(len(split)):
            record = split.record(index)
            found[record.subject_id] = corpus_module.encode_record(record)
    return found


def subjects(path: pathlib.Path) -> set[int]:
    return set(pl.read_parquet(path)["subject_id"])


def check_line(error: UserError) -> None:
    assert str(error) and "\n" not in str(error) and "Traceback" not in str(error)


# Running them


def work(connection, case: Callable[[pathlib.Path, int], str], folder: pathlib.Path, said: pathlib.Path) -> None:
    """Run the cases whose numbers come, and answer with how each ended, or with what went wrong."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    while True:
        number = connection.recv()
        if number is None:
            return
        try:
            connection.send((True, case(folder, number)))
        except BaseException:
            connection.send((False, traceback.format_exc()))


def run_cases(case: Callable[[pathlib.Path, int], str], folder: pathlib.Path, numbers: range) -> list[str]:
    """How each case ended; fails with the number of the first that did not end well."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    said = folder / "stderr"
    worker = context.Process(target=work, args=(theirs, case, folder, said), daemon=True)
    worker.start()
    theirs.close()
    ended = []
    try:
        for number in numbers:
            ours.send(number)
            assert ours.poll(SECONDS_PER_CASE), f"case {number} hangs"
            try:
                well, what = ours.recv()
            except EOFError:
                worker.join()
                pytest.fail(f"case {number} ended its process with {worker.exitcode}: {said.read_text()}")
            assert well, f"case {number}: {what}"
            ended.append(what)
        noise = [line for line in said.read_text().splitlines() if "panic" in line or "Traceback" in line]
        assert not noise, noise
    finally:
        worker.kill()
        worker.join()
    return ended


CASES = {"build": build_case, "labels": label_case, "corpus": corpus_case}


@pytest.mark.parametrize("what", CASES)
def test_a_few_mutations_end_well(folder, what) -> None:
    assert len(set(run_cases(CASES[what], folder, QUICK))) > 5


@pytest.mark.slow
@pytest.mark.parametrize("what", CASES)
def test_five_hundred_mutations_end_well(folder, what) -> None:
    ended = run_cases(CASES[what], folder, MANY)
    print("\n".join(f"{ended.count(end)} x {end}" for end in sorted(set(ended))))
    assert any("refused" in end for end in ended) and not all("refused" in end for end in ended)
