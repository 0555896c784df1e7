import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER, KeepPolicy
from cometjax.checkpoints import Checkpoints, load_for_inference
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.step_guard import init_guard
from cometjax.train_step import TrainState, init_state
from data_pipeline import code_maps, intervals
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Token, Vocabulary

VOCABULARY = Vocabulary(
    tokens=(
        Token("PAD", "SPECIAL", "pad"),
        *(Token(f"LAB//{i}", "LAB", "first") for i in range(7)),
        *(Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in intervals.COMET13.names),
    ),
    events=(),
    interval_preset=intervals.COMET13,
    interval_seconds=(60.0,) * 13,
    code_map=code_maps.named("generic"),
)


def tiny_config():
    config = default_config()
    with config.unlocked():
        config.model.update(layers=1, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8)
    return config


def state_of(seed):
    config = ModelConfig.from_config(tiny_config().model, len(VOCABULARY))
    return init_state(config, optax.scale_by_adam(), seed)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(workdir, steps, keep=2):
    checkpoints = Checkpoints(workdir, KeepPolicy(keep))
    for step in steps:
        metadata = {"config": tiny_config().to_dict(), "vocabulary_fingerprint": VOCABULARY.fingerprint, "at": step}
        checkpoints.save(step, state_of(step), metadata)
    checkpoints.close()


def test_state_and_metadata_come_back_bitwise_and_the_latest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3], keep=2)
    checkpoints = Checkpoints(tmp_path, KeepPolicy(2))
    assert checkpoints.newest() == 3
    state, metadata = checkpoints.restore(3, abstract(state_of(0))), checkpoints.metadata(3)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
    assert metadata["at"] == 3
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir() if path.is_dir()) == ["2", "3"]


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path, caplog):
    save(tmp_path, [1])
    partial = tmp_path / FOLDER / "2.partial.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "params").mkdir()
    load_target = Checkpoints(tmp_path, KeepPolicy(2))
    assert load_target.newest() == 1
    load_target.close()
    assert not partial.exists()
    assert "half written" in caplog.text


def test_a_model_loads_for_inference_with_its_own_parameters(tmp_path):
    save(tmp_path, [4])
    VOCABULARY.save(tmp_path / workdirs.VOCABULARY)
    model, vocabulary, config, step = load_for_inference(tmp_path)
    assert (vocabulary, config.to_dict(), step) == (VOCABULARY, tiny_config().to_dict(), 4)
    np.testing.assert_array_equal(model.embedding[...], state_of(4).params["embedding"])
    ones = jnp.ones((1, 3), jnp.int32)
    assert model(ones, ones, jnp.arange(3)[None]).shape == (1, 3, len(VOCABULARY))


def test_inference_without_a_checkpoint_or_with_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint.*train first"):
        load_for_inference(tmp_path)
    assert not list(tmp_path.iterdir())
    save(tmp_path, [1])
    other = Vocabulary(VOCABULARY.tokens, (), VOCABULARY.interval_preset, (61.0,) * 13, VOCABULARY.code_map)
    other.save(tmp_path / workdirs.VOCABULARY)
    with pytest.raises(UserError, match=f"{other.fingerprint[:12]}.*{VOCABULARY.fingerprint[:12]}"):
        load_for_inference(tmp_path)


def test_a_save_is_not_disturbed_by_the_steps_that_follow_at_once(tmp_path):
    # Training donates its state: its memory is overwritten while the save still writes in the background.
    counters = {"step": jnp.zeros((), jnp.int32), "guard": init_guard()}
    big = TrainState({"w": jnp.ones((1 << 22,))}, {"count": jnp.zeros(())}, **counters)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, KeepPolicy(1))
    checkpoints.save(1, big, {})
    for _ in range(20):
        big = step(big)
    jax.block_until_ready(big)
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract(big))
    assert float(big.params["w"][0]) == 21.0
    np.testing.assert_array_equal(restored.params["w"], np.ones(1 << 22, np.float32))
    checkpoints.close()
