"""Export to a Hugging Face folder, and a run that begins with one: `tests/parity` compares with transformers itself."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from cometjax import checkpoints, export, initial_weights
from cometjax.model import ModelConfig
from cometjax.train import train
from data_pipeline import corpus
from data_pipeline.errors import UserError
from tests.cometjax.tiny_run import config_of, write_corpus


def config(folder, **keys):
    """Five steps, then an evaluation and a checkpoint."""
    made = config_of(folder, steps=5, eval_every=5, checkpoint_every=5)
    made.update_from_flattened_dict(keys)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a short run on it, and its export."""
    folder = tmp_path_factory.mktemp("export")
    write_corpus(folder / "corpus")
    train(config(folder), folder / "run", progress=False)
    export.export(folder / "run", folder / "hf")
    return folder


def params(workdir):
    return nnx.to_pure_dict(nnx.state(checkpoints.load_for_inference(workdir)[0], nnx.Param))


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, actual) == jax.tree.map(lambda leaf: leaf.dtype, expected)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_weights_go_out_and_come_back_bitwise(folder, tmp_path, param_dtype):
    made = config(folder, **{"model.param_dtype": param_dtype})
    train(made, tmp_path / "run", progress=False)
    done = export.export(tmp_path / "run", tmp_path / "hf", max_file_bytes=9_000)
    assert len(done["files"]) > 3 and done["step"] == 5
    model, vocabulary, *_ = checkpoints.load_for_inference(tmp_path / "run")
    loaded = initial_weights.load(tmp_path / "hf", model.config, vocabulary)
    assert_same(loaded, params(tmp_path / "run"))


def test_a_run_begins_with_the_weights_of_init_from_and_a_fresh_optimizer(folder, tmp_path, monkeypatch):
    # A learning rate of nothing: what is saved is what the run began with.
    made = config(folder, init_from=str(folder / "hf"))
    made.optimizer.update(learning_rate=1e-30, final_fraction=1.0, warmup_steps=0, weight_decay=0.0)
    result = train(made, tmp_path / "run", progress=False)
    assert_same(params(tmp_path / "run"), params(folder / "run"))
    before = json.loads((folder / "run" / "result.json").read_text())
    assert result.tuning_loss == before["tuning_loss"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == str(folder / "hf")
    assert (result.step, result.tokens) == (5, before["tokens"])


def test_once_there_is_a_checkpoint_the_folder_is_no_longer_read(folder, tmp_path):
    made = config(folder, init_from=str(tmp_path / "hf"))
    export.export(folder / "run", tmp_path / "hf")
    train(made, tmp_path / "run", progress=False)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "hf").rename(tmp_path / "elsewhere")
    assert train(made, tmp_path / "run", progress=False).step == 5


def test_another_precision_is_cast_with_a_warning(folder, caplog):
    model, vocabulary, *_ = checkpoints.load_for_inference(folder / "run")
    narrow = dataclasses.replace(model.config, param_dtype="bfloat16")
    loaded = initial_weights.load(folder / "hf", narrow, vocabulary)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}
    assert "saved in float32, loaded in bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model.width": 48}, r"hidden_size is 32, config\.model\.width 48; set config\.model to match"),
        ({"model.heads": 4, "model.head_dim": 8}, r"num_attention_heads is 2, config\.model\.heads 4; head_dim is 16"),
        ({"model.tied_embeddings": False}, r"tie_word_embeddings is True, config\.model\.tied_embeddings False"),
        ({"model.rope_theta": 500.0}, r"rope_theta is 10000\.0, config\.model\.rope_theta 500\.0"),
        ({"init_from": "nowhere"}, r"init_from, nowhere/config\.json: cannot be read; give a folder"),
    ],
)
def test_another_model_is_refused_with_both_values_before_anything_is_written(folder, tmp_path, keys, says):
    with pytest.raises(UserError, match=says) as refused:
        train(config(folder, **({"init_from": str(folder / "hf")} | keys)), tmp_path / "run", progress=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused_with_both_fingerprints(folder, tmp_path):
    write_corpus(tmp_path / "corpus", interval_seconds=61.0)
    mine, theirs = (corpus.Corpus.open(root / "corpus").vocabulary.fingerprint[:12] for root in (tmp_path, folder))
    made = config(tmp_path, init_from=str(folder / "hf"))
    with pytest.raises(UserError, match=rf"vocabulary {theirs} \(31 tokens\), and config.corpus has {mine} \(31 tok"):
        train(made, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_without_its_vocabulary_a_folder_is_refused(folder, tmp_path):
    export.export(folder / "run", tmp_path / "hf")
    (tmp_path / "hf" / "vocabulary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary\.json: is missing: nothing tells which event a token id means"):
        train(config(folder, init_from=str(tmp_path / "hf")), tmp_path / "run", progress=False)


def test_the_chosen_step_and_precision_are_exported(folder, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        export.export(folder / "run", tmp_path / "hf", step=3)
    done = export.export(folder / "run", tmp_path / "hf", step=5, dtype="bfloat16")
    model, *_ = checkpoints.load_for_inference(folder / "run")
    assert done["bytes"] == 2 * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_is_overwritten_and_nothing_half_written_stays(folder, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="taken: is not an empty folder"):
        export.export(folder / "run", tmp_path / "taken")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.safetensors_files, "write", full)
    with pytest.raises(UserError, match="hf: cannot be written \\(No space left on device\\)"):
        export.export(folder / "run", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_model_without_qkv_bias_is_not_exported(folder):
    made = ModelConfig.from_config(config(folder, **{"model.qkv_bias": False}).model, 31)
    with pytest.raises(UserError, match=r"config\.model\.qkv_bias"):
        export.to_hf_config(made, max_positions=64)
