"""Checkpoints: asynchronous saves by Orbax, restored onto any mesh, and loading a trained model for inference.

The files are written under a temporary name, hashed, and renamed (`cometjax.checkpoint_files`), all in a background
thread: training waits only until its state has left the devices.
"""

import concurrent.futures
import dataclasses
import logging as standard_logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils

from cometjax import agreement, checkpoint_choice, checkpoint_files, hosts
from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER, KeepPolicy, TuningLoss
from cometjax.model import Decoder, ModelConfig
from cometjax.optimizer import path_name
from cometjax.train_step import TrainState
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

# The parameters are an item of their own: inference reads them and leaves the optimizer's moments on disk.
_PARAMS, _PROGRESS, _METADATA = "params", "progress", "metadata"
_NONE, _ALL_DAMAGED = -1, -2
_LOGGERS = (logging.get_absl_logger(), standard_logging.getLogger("asyncio"))


class Checkpoints:
    """The checkpoints of one workdir. Every process of a run makes one; the first alone renames, deletes and checks.

    Made by a run that will save: what a kill left half written is removed. `before_commit` is called, in a thread, once
    a checkpoint is written and before it is seen. Raises UserError in every process where the folder cannot be made.
    """

    def __init__(
        self, workdir: pathlib.Path, keep: KeepPolicy, before_commit: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = (workdir / FOLDER).resolve()
        self._keep, self._before_commit = keep, before_commit
        self._tuning_losses: dict[int, TuningLoss] = {}
        self._started: int | None = None
        self._failure: str | None = None
        self._primary = jax.process_index() == 0
        agreement.from_first(self._open_folder)
        self._checkpointer = _checkpointer()
        self._committing: concurrent.futures.Future[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Orbax logs tracebacks of what `failure` says in a line, and asyncio those of Orbax's other threads at any time
        # later. Added twice, a filter is there once.
        for logger in _LOGGERS:
            logger.addFilter(_is_not_told_elsewhere)
        if not isinstance(sys.unraisablehook, _ClosedLoopsIgnored):
            sys.unraisablehook = _ClosedLoopsIgnored(sys.unraisablehook)

    def _open_folder(self) -> None:
        with workdirs.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in checkpoint_files.remove_leftovers(self._folder):
                logging.warning("%s: half written, removed", self._folder / name)

    def newest(self, *, verify: bool = True) -> int | None:
        """The step of the newest checkpoint that is as it was written, or None where none was ever written.

        A damaged one is named in a warning, with what is wrong, and set aside. Without `verify`, none is looked into.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        chosen = self._newest(verify) if self._primary else _NONE
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int64(chosen)))
        if chosen == _ALL_DAMAGED:
            raise checkpoint_choice.all_damaged(self._folder)
        return None if chosen == _NONE else chosen

    def _newest(self, verify: bool) -> int:
        for step in reversed(checkpoint_files.whole_steps(self._folder)):
            path = self._folder / str(step)
            problem = checkpoint_files.problem(path) if verify else None
            if problem is None:
                return step
            logging.warning("%s: skipped, %s; set aside as %s", path, problem, checkpoint_files.set_aside(path).name)
        return _ALL_DAMAGED if checkpoint_files.damaged(self._folder) else _NONE

    def started(self, step: int) -> bool:
        """Whether `step` is the last one whose save was started, and has not failed so far."""
        return self._started == step

    def save(self, step: int, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Start saving; returns when the state has left the devices. `metadata` is any JSON object.

        Waits first for the save before, if that still goes on. An error, now or later, is told by `failure`: with
        several processes the same in all, whoever met it.
        """
        self.wait()
        args = ocp.args.Composite(
            **{
                _PARAMS: ocp.args.StandardSave(state.params),
                _PROGRESS: ocp.args.StandardSave(_progress(state)),
                _METADATA: ocp.args.JsonSave(dict(metadata)),
            }
        )
        self._started, error = step, ""
        try:
            self._checkpointer.save(checkpoint_files.partial_path(self._folder, step), args=args)
        except Exception as raised:  # every storage has errors of its own, and tensorstore raises them in any type
            _refuse_lost_peer(raised)
            error = _reason(raised)
        self._committing = self._thread.submit(self._end, step, error)

    def _end(self, step: int, error: str) -> None:
        """The rest of a save, in a thread. `error`: what went wrong with its beginning in this process."""
        error = agreement.first_error_beside_the_steps(error) if error else self._commit(step)
        if error:
            self._fail(step, error)
        else:
            self._tidy()

    def _commit(self, step: int) -> str:
        """What went wrong anywhere, alike in all processes; "" for nothing.

        The processes meet twice in Orbax (`_meet`), before the first one finishes what all have written and after, and
        once here. Who fails comes to the next meeting with his error; there all of them leave.
        """
        try:
            self._checkpointer.wait_until_finished()
            if self._primary:
                self._before_commit()
                checkpoint_files.commit(self._folder, step)
        except _FailedSomewhere as told:
            return str(told)
        except Exception as raised:  # as above
            _refuse_lost_peer(raised)
            return agreement.first_error_beside_the_steps(_reason(raised))
        return agreement.first_error_beside_the_steps("")

    def _fail(self, step: int, error: str) -> None:
        self._failure = f"step {step} could not be saved: {error}"
        self._started = None
        # After an error it keeps raising it, close included.
        self._checkpointer = _checkpointer()
        if self._primary:
            checkpoint_files.remove_leftovers(self._folder)

    def saving(self) -> bool:
        """Whether a save is still under way in this process."""
        return self._committing is not None and not self._committing.done()

    def failure(self) -> str | None:
        """What went wrong with the last save, in a line and once; the checkpoints before it are whole.

        Ask after `wait` and before the next `save`, or that one's failure takes its place.
        """
        failure, self._failure = self._failure, None
        return failure

    def note_tuning_loss(self, step: int, loss: TuningLoss) -> None:
        """Say how good the checkpoint of `step` is."""
        self._tuning_losses = self._tuning_losses | {step: loss}

    def _tidy(self) -> None:
        """Leave what the policy keeps, and nothing else; runs while no save does.

        What cannot be deleted is tried again after the next save: NFS keeps what another machine has open.
        """
        if not self._primary:
            return
        try:
            checkpoint_files.remove_leftovers(self._folder)
            steps = checkpoint_files.whole_steps(self._folder)
            for step in sorted(set(steps) - self._keep.kept(steps, self._tuning_losses)):
                checkpoint_files.delete(self._folder / str(step))
        except OSError as error:
            logging.warning("%s: an old checkpoint could not be deleted (%s)", self._folder, _reason(error))

    def metadata(self, step: int, *, folder: pathlib.Path | None = None) -> dict[str, Any]:
        """What was saved with `step` beside the state. `folder`: another run's checkpoints, None: this one's."""
        args = ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()})
        return dict(self._checkpointer.restore((folder or self._folder) / str(step), args=args)[_METADATA])

    def restore(self, step: int, abstract: TrainState, *, folder: pathlib.Path | None = None) -> TrainState:
        """The state at `step`, with the shapes, dtypes and shardings of `abstract`; `folder` as in `metadata`.

        Floating-point arrays saved in another precision are cast, and a warning says so.

        Raises:
          UserError: the checkpoint's arrays are not those of `abstract`; names the first that differ, both ways.
        """
        path = (folder or self._folder) / str(step)
        wanted = {_PARAMS: abstract.params, _PROGRESS: _progress(abstract)}
        saved = self._checkpointer.metadata(path).item_metadata
        _refuse_other_arrays(path, {name: saved[name].tree for name in wanted}, wanted)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
        restored = self._checkpointer.restore(path, args=args)
        if folder is None:  # another run's is not yet saved here
            self._started = step
        return TrainState(params=restored[_PARAMS], **restored[_PROGRESS])

    def wait(self) -> None:
        """Wait for the save under way, if any. What `started` and `failure` then say is the same in all processes."""
        if self._committing is not None:
            self._committing.result()
            self._committing = None

    def close(self) -> None:
        """Wait for the save under way, if any, and free what the checkpoints hold."""
        self.wait()
        self._tidy()
        self._thread.shutdown()
        self._checkpointer.close()


def load_for_inference(
    workdir: pathlib.Path, *, step: checkpoint_choice.Step = None, verify: bool = True
) -> tuple[Decoder, Vocabulary, ml_collections.ConfigDict, int]:
    """A checkpoint of a workdir: (model on the first local device, vocabulary, config, step).

    Which one: as `checkpoint_choice.choose`. Nothing in the workdir is changed: a run may be saving.

    Raises:
      UserError: as `checkpoint_choice.choose`; the vocabulary is not the one that the model was trained on.
    """
    path = checkpoint_choice.choose(pathlib.Path(workdir), step, verify=verify)
    handler = ocp.CompositeCheckpointHandler(
        **{_PARAMS: ocp.StandardCheckpointHandler(), _METADATA: ocp.JsonCheckpointHandler()}
    )
    with ocp.Checkpointer(handler) as checkpointer:
        metadata = checkpointer.restore(path, args=ocp.args.Composite(**{_METADATA: ocp.args.JsonRestore()}))[_METADATA]
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
        params = checkpointer.restore(path, args=ocp.args.Composite(**{_PARAMS: ocp.args.StandardRestore(shapes)}))
    return nnx.merge(graph, params[_PARAMS]), vocabulary, config, int(path.name)


def _checkpointer() -> ocp.AsyncCheckpointer:
    # Orbax's own meetings know nothing of a process that failed before: the others wait there for 20 minutes.
    return ocp.AsyncCheckpointer(_handler(), async_options=ocp.AsyncOptions(barrier_sync_fn=_meet))


class _FailedSomewhere(Exception):
    """A save that one of the processes could not do its part of."""


def _meet(**_: Any) -> None:
    error = agreement.first_error_beside_the_steps("")
    if error:
        raise _FailedSomewhere(error)


def _handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(
        **{
            _PARAMS: ocp.StandardCheckpointHandler(),
            _PROGRESS: ocp.StandardCheckpointHandler(),
            _METADATA: ocp.JsonCheckpointHandler(),
        }
    )


def _refuse_lost_peer(error: Exception) -> None:
    """Raise what no later save can mend: going on, this process would only disturb what the others still exchange.

    That somebody is late is no such loss: he may be waiting for a disk. Of the lost the heartbeats tell.
    """
    lost = hosts.lost_peer(error) if jax.process_count() > 1 else None
    if lost is not None and not lost.startswith("DEADLINE_EXCEEDED"):
        raise error


class _ClosedLoopsIgnored:
    """Instead of `sys.unraisablehook`, which prints a traceback of what no caller can catch.

    Of a save that has failed other arrays are still being written. Tensorstore's threads then report to the event loop
    that waited for them, and Orbax has closed it.
    """

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, told: Any) -> None:
        if not (isinstance(told.exc_value, RuntimeError) and str(told.exc_value) == "Event loop is closed"):
            self._before(told)


def _is_not_told_elsewhere(record: standard_logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    places = [
        record.pathname,
        record.getMessage(),
        *(frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)),
    ]
    of_orbax = any("/orbax/checkpoint/" in place for place in places)
    return not of_orbax or record.levelno < standard_logging.ERROR


def _reason(error: Exception) -> str:
    """An error in a line: tensorstore's hold a page of specification, and the system's error as a number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    code = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(code[1])) if code else text.split("[tensorstore_spec")[0][:400]


def _progress(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}


def _refuse_other_arrays(path: pathlib.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old, new = _arrays(saved), _arrays(wanted)
    differing = [
        f"{name} is {_shown(new.get(name))} but was saved as {_shown(old.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if not (name in old and name in new and _restorable(old[name], new[name]))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"holds another model or optimizer: {', '.join(differing[:3])}{more}",
            where=str(path),
            fix="give the configuration and the program that it was saved with, or choose another --workdir",
        )
    casts = sorted({(str(old[name].dtype), str(new[name].dtype)) for name in old if old[name].dtype != new[name].dtype})
    for before, after in casts:
        logging.warning("%s: saved in %s, restored in %s (config.model.param_dtype)", path, before, after)


def _arrays(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _restorable(old: Any, new: Any) -> bool:
    floating = jnp.issubdtype(old.dtype, jnp.floating) and jnp.issubdtype(new.dtype, jnp.floating)
    return bool(old.shape == new.shape and (floating or old.dtype == new.dtype))


def _shown(array: Any) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape)}"
