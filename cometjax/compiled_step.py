"""The compiled steps of a run for one mesh, made from shapes alone.

Training runs what is made here, and the planner compiles the same for a topology that it does not have: the mesh may be
over devices that cannot run anything. Nothing is computed or placed until a step is called.
"""

import dataclasses
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cometjax import sharding
from cometjax.model import ModelConfig
from cometjax.optimizer import learning_rate_schedule, make_optimizer
from cometjax.train_step import TokenTables, TrainState, init_state, make_evaluation_step, make_train_step
from data_pipeline.loader import BATCH_DTYPES


@dataclasses.dataclass(frozen=True)
class CompiledSteps:
    """Jitted functions and what they take.

    `init()` → TrainState; `train(state, batch)` → (TrainState, StepMetrics), the state given is donated;
    `evaluate(params, batch)` → LossSums. `abstract_state` and `abstract_batch` are their ShapeDtypeStructs, each with
    its sharding, so `train.lower(abstract_state, abstract_batch).compile()` compiles ahead of time.
    """

    init: Any
    train: Any
    evaluate: Any
    abstract_state: TrainState
    abstract_batch: dict[str, jax.ShapeDtypeStruct]


def make_compiled_steps(
    config: ml_collections.ConfigDict, model: ModelConfig, tables: TokenTables, mesh: Mesh, *, sources: int = 0
) -> CompiledSteps:
    """The steps of `config` for `model` over `mesh`. Trace and call them within `jax.set_mesh(mesh)`.

    `sources`: of a mixture, by which evaluation is told; 0: of one corpus.

    Raises UserError for a learning-rate schedule that cannot be.
    """
    optimizer = make_optimizer(config)

    def init() -> TrainState:
        return init_state(model, optimizer, config.seed)

    abstract = jax.eval_shape(init)
    state, batch = sharding.state_sharding(mesh, abstract), sharding.batch_sharding(mesh)
    replicated = NamedSharding(mesh, P())
    rows = (config.train.batch_rows, config.train.row_length)
    return CompiledSteps(
        init=jax.jit(init, out_shardings=state),
        train=jax.jit(
            make_train_step(
                model,
                tables,
                optimizer,
                learning_rate_schedule(config),
                spike_threshold=config.train.spike_threshold,
                microbatches=config.train.microbatches,
            ),
            in_shardings=(state, batch),
            out_shardings=(state, replicated),
            donate_argnums=0,
        ),
        evaluate=make_compiled_evaluation(model, tables, mesh, state.params, sources),
        abstract_state=jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, state
        ),
        abstract_batch={
            name: jax.ShapeDtypeStruct(rows, dtype, sharding=batch) for name, dtype in BATCH_DTYPES.items()
        },
    )


def make_compiled_evaluation(model: ModelConfig, tables: TokenTables, mesh: Mesh, params: Any, sources: int = 0) -> Any:
    """`evaluate` of `CompiledSteps`, where `params` are the parameters' shardings over the mesh."""
    return jax.jit(
        make_evaluation_step(model, tables, sources),
        in_shardings=(params, sharding.batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, P()),
    )
