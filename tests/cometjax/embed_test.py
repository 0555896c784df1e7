"""Embeddings: each label row's last hidden state, whatever else is asked beside it, and no later event in it."""

import pathlib
import types

import jax.numpy as jnp
import numpy as np
import polars as pl
import pyarrow.parquet
import pytest

from benchmarks import decode
from cometjax import checkpoints, config, embed
from cometjax.model import ModelConfig
from data_pipeline import meds, prompts
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError

WIDTH = 16


@pytest.fixture(scope="module")
def vocabulary(world_corpus):
    return Corpus.open(world_corpus).vocabulary


@pytest.fixture(scope="module")
def model(vocabulary):
    return decode.lively_model(ModelConfig(len(vocabulary), 1, WIDTH, 2, 2, 8, 32, tied_embeddings=False))


@pytest.fixture
def workdir(vocabulary, model, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    run = config.default_config()
    run.train.row_length = 128
    monkeypatch.setattr(checkpoints, "load_for_inference", lambda _, **__: (model, vocabulary, run, 7))
    return pathlib.Path("runs/mine")


@pytest.fixture
def labels(world_meds: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    events = pl.read_parquet(world_meds / "data" / "**" / "*.parquet").drop_nulls("time")
    rows = events.group_by("subject_id").agg(prediction_time=pl.col("time").sort().get(pl.len() // 2))
    pl.concat([rows.sort("subject_id").head(9)] * 2).write_parquet(tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


def test_each_row_is_the_hidden_state_of_its_own_history(
    workdir, labels, world_meds, vocabulary, model, tmp_path
) -> None:
    assert embed.embed(workdir, world_meds, labels, tmp_path / "e.parquet", step=7) == (9, WIDTH)
    frame = pl.read_parquet(tmp_path / "e.parquet")
    asked = pl.read_parquet(labels).unique(maintain_order=True)
    assert frame.select("subject_id", "prediction_time").equals(asked)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, WIDTH)
    built = prompts.build_prompts(meds.open_dataset(world_meds), asked, vocabulary)
    for prompt, told in zip(built, frame["embedding"], strict=True):
        tokens_1xT = jnp.asarray(prompt.tokens(64))[None]
        ones = jnp.ones_like(tokens_1xT)
        alone = model.hidden_of_rows(tokens_1xT, ones, jnp.arange(tokens_1xT.shape[1])[None])[0, -1]
        np.testing.assert_allclose(told.to_numpy(), alone, atol=1e-4)
    metadata = pyarrow.parquet.read_schema(tmp_path / "e.parquet").metadata
    assert metadata[b"cometjax.step"] == b"7" and metadata[b"cometjax.vocabulary"].decode() == vocabulary.fingerprint


def test_what_is_there_is_kept_and_what_cannot_be_written_leaves_nothing(
    workdir, labels, world_meds, tmp_path, monkeypatch
) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        embed.embed(workdir, world_meds, labels, tmp_path / "there.parquet")
    assert (tmp_path / "there.parquet").read_text() == "mine"
    for bound in (4, 129):
        with pytest.raises(UserError, match=f"max_prompt_tokens: {bound} is not more"):
            embed.embed(workdir, world_meds, labels, tmp_path / "e.parquet", max_prompt_tokens=bound)
    full = types.SimpleNamespace(write_table=_fill)
    monkeypatch.setattr(pyarrow, "parquet", full)
    with pytest.raises(UserError, match="cannot be written"):
        embed.embed(workdir, world_meds, labels, tmp_path / "e.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.parquet", "there.parquet"]


def _fill(_, path: pathlib.Path) -> None:
    path.write_text("half")
    raise OSError(28, "No space left on device")
