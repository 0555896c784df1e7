import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from cometjax import sharding
from cometjax.config import default_config
from cometjax.model import Decoder, ModelConfig
from data_pipeline.errors import UserError

# Run in a process of its own: the number of virtual devices is fixed when jax starts. Losses of a few steps for every
# mesh, and for one device alone.
EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from cometjax import sharding
from cometjax.compiled_step import make_compiled_steps
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.train_step import TokenTables

V, B, L = 24, 8, 16
config = default_config()
config.train.steps = 100
config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
# 3 key/value heads do not divide by 2: that dimension stays whole.
model = ModelConfig(vocab_size=V, layers=1, width=16, heads=6, kv_heads=3, head_dim=4, mlp_width=32)
tables = TokenTables(np.arange(V, dtype=np.int32) % 13, np.ones(V, bool))

def batch(step):
    tokens = np.random.default_rng(step).integers(1, V, (B, L + 1)).astype(np.int32)
    ones = np.ones((B, L), np.int32)
    return {"tokens_BxL": tokens[:, :-1], "targets_BxL": tokens[:, 1:], "segment_ids_BxL": ones,
            "positions_BxL": ones * np.arange(L, dtype=np.int32), "loss_weights_BxL": ones.astype(np.float32)}

def losses(mesh):
    with jax.set_mesh(mesh):
        steps = make_compiled_steps(config, model, tables, mesh)
        state = steps.init()
        found = []
        for number in range(4):
            state, metrics = steps.train(state, sharding.put_batch(mesh, batch(number)))
            found.append(float(metrics.loss))
        query = state.params["layers"]["query"]
        return {"losses": found, "query_shard": query.addressable_shards[0].data.shape, "query": query.shape,
                "kv_shard": state.optimizer[1].mu["layers"]["key"].addressable_shards[0].data.shape}

results = {}
for shape in ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 8, 1)):
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    results["x".join(map(str, shape))] = losses(mesh)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["2x2x2", "8x1x1", "1x8x1"])
def test_every_mesh_gives_the_losses_of_one_device(results, mesh):
    np.testing.assert_allclose(results[mesh]["losses"], results["1x1x1"]["losses"], rtol=0, atol=1e-5)
    assert len(set(results["1x1x1"]["losses"])) == 4


def test_parameters_and_moments_lie_as_the_rules_say(results):
    assert results["1x1x1"]["query"] == [1, 16, 6, 4]
    assert results["2x2x2"]["query_shard"] == [1, 8, 3, 4]
    assert results["1x8x1"]["query_shard"] == [1, 2, 6, 4]
    assert results["8x1x1"]["query_shard"] == [1, 16, 6, 4]
    assert results["2x2x2"]["kv_shard"] == [1, 8, 3, 4]


def test_every_parameter_of_the_model_has_a_rule():
    model = ModelConfig(
        vocab_size=8, layers=1, width=8, heads=2, kv_heads=2, head_dim=4, mlp_width=8, tied_embeddings=False
    )
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param))
    mesh = sharding.make_mesh(default_config().mesh)
    assert jax.tree.structure(sharding.state_sharding(mesh, params)) == jax.tree.structure(params)
    with pytest.raises(ValueError, match=r"no rule.*stranger"):
        sharding.state_sharding(mesh, {"stranger": jax.ShapeDtypeStruct((2,), np.float32)})


def test_a_mesh_of_another_size_than_the_devices_is_refused():
    config = default_config()
    config.mesh.update(data=3, fsdp=2, tensor=1)
    with pytest.raises(UserError, match=r"config\.mesh.*data 3 x fsdp 2 x tensor 1 is 6 devices, and there"):
        sharding.make_mesh(config.mesh)


def test_rows_that_do_not_split_are_refused():
    mesh = jax.sharding.AbstractMesh((2, 3, 1), sharding.AXES)
    with pytest.raises(UserError, match=r"batch_rows: 8 rows cannot be split over 6 devices"):
        sharding.check_batch_rows(mesh, 8)
    sharding.check_batch_rows(mesh, 12)
