"""What lay in a step's batch, told from a run's folder: the very pieces that the loader put there."""

import json
import pathlib

import numpy as np
import pytest

from data_pipeline import loader, show_batch
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError

CONFIG = {"seed": 3, "train": {"steps": 40, "batch_rows": 4, "row_length": 96, "group_by_length": 1}}


def made_up_run(folder: pathlib.Path, corpus: Corpus, **train: int | None) -> pathlib.Path:
    folder.mkdir()
    settings = {key: value for key, value in (CONFIG["train"] | train).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"train": settings}))
    (folder / "corpus.json").write_text(json.dumps({"fingerprint": corpus.fingerprint}))
    return folder


def cells(line: str) -> list[int]:
    return [int(cell.replace(",", "")) for cell in line.split()]


@pytest.mark.parametrize("group_by_length", [None, 0, 1, 5])
def test_the_segments_of_a_step_are_the_tokens_of_its_batch(world_corpus, tmp_path, group_by_length) -> None:
    corpus = Corpus.open(world_corpus)
    run = made_up_run(tmp_path / "run", corpus, group_by_length=group_by_length)
    split = corpus.split("train")
    config = loader.LoaderConfig(4, 96, 3, group_by_length=group_by_length or 0)
    batch = next(loader.train_batches(split, config, start_step=16))
    row, begin, windows = -1, 0, 0
    title, _, _, *lines = show_batch.table(corpus, run, 17, subject_ids=True)
    for *of_row, record, subject, start, length in map(cells, lines):
        if of_row:
            row, begin = of_row[0], 0
            assert of_row[2] == np.count_nonzero(batch["segment_ids_BxL"][row])
        whole = split.record(record)
        prefix = len(whole.prefix_at(start)) if start else 0
        shown = np.concatenate([whole.prefix_at(start)[:prefix], whole.tokens_T[start : start + length - prefix]])
        assert batch["tokens_BxL"][row, begin : begin + length].tolist() == shown.tolist()
        assert subject == whole.subject_id
        begin, windows = begin + length, windows + (start > 0)
    assert row == 3 and windows and title.startswith(f"step 17 of {run}: 4 rows of 96, {len(lines)} segments, ")


def test_subjects_are_named_only_where_that_is_asked_for(world_corpus, tmp_path) -> None:
    corpus = Corpus.open(world_corpus)
    run = made_up_run(tmp_path / "run", corpus)
    named, unnamed = (show_batch.table(corpus, run, 1, subject_ids=asked) for asked in (True, False))
    assert "subject" in named[1] and "subject" not in unnamed[1]
    assert len(named[3].split()) == len(unnamed[3].split()) + 1 == 7


def test_another_corpus_another_step_and_no_run_are_each_a_line(world_corpus, tmp_path) -> None:
    corpus = Corpus.open(world_corpus)
    run = made_up_run(tmp_path / "run", corpus)
    with pytest.raises(UserError, match="step 41 is none of the run's; give one from 1 to 40"):
        show_batch.table(corpus, run, 41, subject_ids=False)
    (run / "corpus.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=f"fingerprint 000000000000, not on {corpus.fingerprint[:12]}"):
        show_batch.table(corpus, run, 1, subject_ids=False)
    with pytest.raises(UserError, match=r"nowhere/config\.json"):
        show_batch.table(corpus, tmp_path / "nowhere", 1, subject_ids=False)
