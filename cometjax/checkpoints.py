"""Checkpoints: asynchronous saves by Orbax, restored onto any mesh, and loading a trained model for inference."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from cometjax import workdir as workdirs
from cometjax.model import Decoder, ModelConfig
from cometjax.train_step import TrainState
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

FOLDER = "checkpoints"
# What Orbax adds to the name of a step's folder until all of it is written.
_PARTIAL_SUFFIX = ".orbax-checkpoint-tmp"
# The parameters are an item of their own: inference reads them and leaves the optimizer's moments on disk.
_PARAMS, _PROGRESS, _METADATA = "params", "progress", "metadata"


class Checkpoints:
    """The checkpoints of one workdir, the latest `keep` of them.

    A save is renamed into place when whole; what a kill left half written is ignored and removed when next opened.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int) -> None:
        folder = (workdir / FOLDER).resolve()
        # Orbax would remove them too, but in a thread that may outlive this process or not.
        for partial in folder.glob(f"*{_PARTIAL_SUFFIX}*") if jax.process_index() == 0 else ():
            logging.warning("%s: half written, removed", partial)
            shutil.rmtree(partial)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep), save_root_metadata=False
            ),
            item_names=(_PARAMS, _PROGRESS, _METADATA),
        )

    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint."""
        step = self._manager.latest_step()
        return None if step is None else int(step)

    def save(self, step: int, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Start saving; returns when the state has left the devices. `metadata` is any JSON object."""
        args = ocp.args.Composite(
            **{
                _PARAMS: ocp.args.StandardSave(state.params),
                _PROGRESS: ocp.args.StandardSave(_progress(state)),
                _METADATA: ocp.args.JsonSave(dict(metadata)),
            }
        )
        self._manager.save(step, args=args)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step`, with the shapes and shardings of `abstract`, and its metadata."""
        args = ocp.args.Composite(
            **{
                _PARAMS: ocp.args.StandardRestore(abstract.params),
                _PROGRESS: ocp.args.StandardRestore(_progress(abstract)),
                _METADATA: ocp.args.JsonRestore(),
            }
        )
        restored = self._manager.restore(step, args=args)
        return TrainState(restored[_PARAMS], **restored[_PROGRESS]), restored[_METADATA]

    def wait(self) -> None:
        """Wait for the save under way, if any."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the save under way, if any, and free what the checkpoints hold."""
        self._manager.close()


def load_for_inference(workdir: pathlib.Path) -> tuple[Decoder, Vocabulary, ml_collections.ConfigDict, int]:
    """The latest checkpoint of a workdir: (model on the first local device, vocabulary, config, step).

    Raises UserError when the workdir has no checkpoint, or its vocabulary is not the one that the model was trained on.
    """
    folder = (pathlib.Path(workdir) / FOLDER).resolve()
    fix = "train first with python -m cometjax.train, or give the workdir of a run"
    if not folder.is_dir():
        raise UserError("no checkpoint", where=str(workdir), fix=fix)
    # Nothing is cleaned here: a run that is saving right now must keep its unfinished files.
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
    with ocp.CheckpointManager(folder, options=options, item_names=(_PARAMS, _METADATA)) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError("no checkpoint", where=str(workdir), fix=fix)
        metadata = manager.restore(step, args=ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()}))[_METADATA]
        config = ml_collections.ConfigDict(metadata["config"])
        vocabulary = Vocabulary.load(pathlib.Path(workdir) / workdirs.VOCABULARY)
        if vocabulary.fingerprint != metadata["vocabulary_fingerprint"]:
            raise UserError(
                f"fingerprint {vocabulary.fingerprint[:12]}, but the model was trained with "
                f"{metadata['vocabulary_fingerprint'][:12]}",
                where=str(pathlib.Path(workdir) / workdirs.VOCABULARY),
                fix="put back the vocabulary.json of the corpus that it was trained on",
            )
        model = nnx.eval_shape(
            lambda: Decoder(ModelConfig.from_config(config.model, len(vocabulary)), rngs=nnx.Rngs(0))
        )
        graph, abstract = nnx.split(model, nnx.Param)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=device), nnx.to_pure_dict(abstract)
        )
        params = manager.restore(step, args=ocp.args.Composite(**{_PARAMS: ocp.args.StandardRestore(shapes)}))[_PARAMS]
    return nnx.merge(graph, params), vocabulary, config, int(step)


def _progress(state: TrainState) -> dict[str, Any]:
    names = ("optimizer", "step", "nonfinite_in_a_row", "nonfinite_total")
    return {name: getattr(state, name) for name in names}
