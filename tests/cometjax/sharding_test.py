import dataclasses
import json
import os
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
from tests.cometjax.tiny_run import HURRIED

# Run in a process of its own: the number of virtual devices is fixed when jax starts. Losses of twenty steps for every
# mesh of eight devices, with and without microbatches, and for one device alone.
EIGHT_DEVICES = """
import itertools, json, re
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from cometjax import sharding
from cometjax.compiled_step import make_compiled_steps
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.optimizer import make_optimizer
from cometjax.train_step import TokenTables

V, B, L = 24, 16, 16
config = default_config()
config.train.update(steps=100, batch_rows=B, row_length=L)
config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
# 2 key/value heads do not divide by 4 or 8: that dimension stays whole.
model = ModelConfig(vocab_size=V, layers=1, width=16, heads=8, kv_heads=2, head_dim=4, mlp_width=32)
tables = TokenTables(np.arange(V, dtype=np.int32) % 13, np.ones(V, bool))

def batch(step):
    random = np.random.default_rng(step)
    tokens = random.integers(1, V, (B, L + 1)).astype(np.int32)
    ones = np.ones((B, L), np.int32)
    # Rows and microbatches have unequal weights.
    weights = (random.random((B, L)) < np.linspace(0, 1, B)[:, None]).astype(np.float32)
    return {"tokens_BxL": tokens[:, :-1], "targets_BxL": tokens[:, 1:], "segment_ids_BxL": ones,
            "positions_BxL": ones * np.arange(L, dtype=np.int32), "loss_weights_BxL": weights}

def losses(shape, microbatches, start):
    sizes = dict(zip(sharding.AXES, shape), slices=1)
    config.mesh.update(sizes)
    config.train.microbatches = microbatches
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        steps = make_compiled_steps(config, model, tables, mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_state)
        state = steps.init() if start is None else jax.device_put(start, places)
        start = jax.device_get(state)
        found = []
        for number in range(20):
            state, metrics = steps.train(state, sharding.put_batch(mesh, batch(number)))
            found.append(float(metrics.loss))
        query, key = state.params["layers"]["query"], state.optimizer[1].mu["layers"]["key"]
        tokens = sharding.put_batch(mesh, batch(0))["tokens_BxL"]
        norms = {**metrics.gradient_norms, "update": metrics.update_norms["layer"]}
        norms = {name: float(np.squeeze(norm)) for name, norm in norms.items()}
        return start, {"losses": found, "norms": norms,
                       "query": query.shape, "query_shard": query.addressable_shards[0].data.shape,
                       "kv_shard": key.addressable_shards[0].data.shape,
                       "batch_shard": tokens.addressable_shards[0].data.shape}

def muon_losses(shape):
    config.mesh.update(dict(zip(sharding.AXES, shape), slices=1))
    config.train.microbatches = 1
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        steps = make_compiled_steps(config, model, tables, mesh)
        state, found = steps.init(), []
        for number in range(10):
            state, metrics = steps.train(state, sharding.put_batch(mesh, batch(number)))
            found.append(float(metrics.loss))
    return found

start, one = losses((1, 1, 1), 1, None)
results = {"1x1x1": one}
for shape in [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) == 8]:
    results["x".join(map(str, shape))] = losses(shape, 1, start)[1]
for shape in ((1, 8, 1), (2, 2, 2)):
    results["x".join(map(str, shape)) + " in 2"] = losses(shape, 2, start)[1]
config.optimizer.name = "muon"
muon = [muon_losses(shape) for shape in ((1, 1, 1), (2, 2, 2))]

def muon_collectives(shape):
    config.mesh.update(dict(zip(sharding.AXES, shape), slices=1))
    optimizer = make_optimizer(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        stack = {"layers": {"mlp_up": jax.ShapeDtypeStruct((4, 16, 32), np.float32)}}
        trees = (stack, jax.eval_shape(optimizer.init, stack), stack)
        places = sharding.state_sharding(mesh, trees)
        program = jax.jit(optimizer.update, in_shardings=places, out_shardings=places[:2]).lower(*trees).compile()
    return len(re.findall(r" (?:all-[a-z-]+|reduce-scatter|collective-permute[a-z-]*)[(]", program.as_text()))

collectives = [muon_collectives(shape) for shape in ((1, 1, 1), (1, 4, 1), (1, 2, 2))]
print(json.dumps({"meshes": results, "muon": muon, "muon_collectives": collectives}))
"""


@pytest.fixture(scope="module")
def printed():
    # LLVM has no say in how the program is partitioned.
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | HURRIED,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def results(printed):
    return printed["meshes"]


# Half a minute on two quiet cores; on busy ones it is not to fail for that.
@pytest.mark.timeout(1000)
def test_every_mesh_and_every_split_in_microbatches_gives_the_losses_of_one_device(results):
    assert len(results) == 1 + 10 + 2
    for mesh, found in results.items():
        np.testing.assert_allclose(found["losses"], results["1x1x1"]["losses"], rtol=0, atol=1e-5, err_msg=mesh)
        assert found["norms"] == pytest.approx(results["1x1x1"]["norms"], rel=1e-3), mesh
    assert len(set(results["1x1x1"]["losses"])) == 20
    assert len(set(results["1x1x1"]["norms"].values())) == 6


def test_muon_on_a_mesh_takes_the_steps_of_one_device(printed):
    one, split = printed["muon"]
    np.testing.assert_allclose(split, one, rtol=0, atol=1e-4)
    assert one[-1] < one[0] and np.abs(np.subtract(one, printed["meshes"]["1x1x1"]["losses"][:10])).max() > 1e-3


def test_muons_products_meet_no_other_device(printed):
    # To whole layers and back, and the clipping's norm; a product of Newton-Schulz's fifteen would be one each.
    one, *split = printed["muon_collectives"]
    assert one == 0 and all(0 < found <= 5 for found in split), split


def test_parameters_and_moments_lie_as_the_rules_say(results):
    assert results["1x1x1"]["query"] == [1, 16, 8, 4]
    assert results["2x2x2"]["query_shard"] == [1, 8, 4, 4]
    assert results["1x8x1"]["query_shard"] == [1, 2, 8, 4]
    assert results["8x1x1"]["query_shard"] == [1, 16, 8, 4]
    assert results["2x2x2"]["kv_shard"] == [1, 8, 1, 4]
    assert results["1x1x8"]["kv_shard"] == [1, 16, 2, 4]


def test_batches_are_split_by_rows_as_they_enter(results):
    rows = {"1x1x1": 16, "1x1x8": 16, "1x4x2": 4, "2x2x2": 4, "4x2x1": 2, "1x8x1": 2}
    assert {mesh: results[mesh]["batch_shard"] for mesh in rows} == {mesh: [count, 16] for mesh, count in rows.items()}


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
    with pytest.raises(UserError, match=r"12 rows cannot be split over 6 devices .* in 4 microbatches; .* of 24"):
        sharding.check_batch_rows(mesh, 12, microbatches=4)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What mesh construction asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "fake"


def devices_of(slices, per_slice, per_process):
    numbers = np.random.default_rng(0).permutation(slices * per_slice)
    return [FakeDevice(int(i), int(i) // per_process, int(i) // per_slice) for i in numbers]


def hybrid(devices, **sizes):
    config = default_config()
    config.mesh.update(sizes)
    sharding.check_slices(config.mesh.slices, config.mesh.data, devices)
    return sharding.order_devices(config.mesh.slices, [config.mesh[axis] for axis in sharding.AXES], devices)


def test_only_the_data_axis_crosses_slices():
    devices = devices_of(slices=4, per_slice=8, per_process=4)
    order = hybrid(devices, slices=4, data=8, fsdp=2, tensor=2)
    assert order.shape == (8, 2, 2)
    for data in range(8):
        assert {device.slice_index for device in order[data].ravel()} == {data // 2}
    assert len({device.id for device in order.ravel()}) == 32


def test_where_no_device_tells_its_slice_each_process_is_one():
    devices = [dataclasses.replace(device, slice_index=0) for device in devices_of(1, 8, per_process=4)]
    order = hybrid(devices, slices=2, data=2, fsdp=4, tensor=1)
    assert [{device.process_index for device in part.ravel()} for part in order] == [{0}, {1}]


@pytest.mark.parametrize(
    ("slices", "data", "platform", "message"),
    [
        (2, 3, "gpu", r"mesh\.slices: 2 slices cannot split data 3; set config\.mesh\.data to a multiple of 2"),
        (3, 3, "gpu", r"mesh\.slices: 3, and the devices form 2; set it to 2"),
        (1, 1, "tpu", r"mesh\.slices: 1, and the devices form 2; set it to 2"),
    ],
)
def test_slices_that_do_not_fit_are_refused(slices, data, platform, message):
    devices = [dataclasses.replace(device, platform=platform) for device in devices_of(2, 4, per_process=4)]
    with pytest.raises(UserError, match=message):
        sharding.check_slices(slices, data, devices)


def process_of_rows(shape, processes):
    """Shares of processes whose devices come one after another in a mesh of this shape."""
    count = int(np.prod(shape))
    devices = np.array([FakeDevice(i, i * processes // count, 0) for i in range(count)]).reshape(shape)
    return [sharding.share_of(devices, process) for process in range(processes)]


def test_processes_read_consecutive_parts_and_those_along_tensor_the_same_one():
    assert process_of_rows((1, 8, 1), 4) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert process_of_rows((2, 2, 2), 2) == [(0, 2), (1, 2)]
    assert process_of_rows((1, 2, 4), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert process_of_rows((1, 1, 8), 2) == [(0, 1), (0, 1)]
    with pytest.raises(UserError, match="some rows together and others alone"):
        process_of_rows((1, 4, 3), 6)  # two devices each
