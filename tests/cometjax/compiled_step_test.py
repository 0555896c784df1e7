import jax
import numpy as np
from jax.sharding import AxisType

from cometjax import sharding
from cometjax.compiled_step import make_compiled_steps
from cometjax.config import default_config
from cometjax.model import ModelConfig
from cometjax.train_step import TokenTables

MODEL = ModelConfig(vocab_size=24, layers=1, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=32)
TABLES = TokenTables(np.zeros(24, np.int32), np.ones(24, bool))


def test_the_train_step_compiles_from_shapes_alone_and_takes_the_state_that_init_makes():
    config = default_config()
    config.train.update(steps=100, batch_rows=2, row_length=16)
    config.optimizer.warmup_steps = 2
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps = make_compiled_steps(config, MODEL, TABLES, mesh)
        compiled = steps.train.lower(steps.abstract_state, steps.abstract_batch).compile()
        assert compiled.memory_analysis().argument_size_in_bytes > 0
        state = steps.init()
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), steps.abstract_state
        )
        batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in steps.abstract_batch.items()}
        state, reported = compiled(state, sharding.put_batch(mesh, batch))
        assert int(state.step) == 1 and int(reported.positions) == 0
