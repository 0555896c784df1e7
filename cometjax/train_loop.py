"""One process's part in a run: it restores, steps, saves, evaluates, and leaves when asked to.

What the steps did is told by `cometjax.run_records`; what is compiled, by `cometjax.compiled_step`. The caller has
checked all that can be refused (`cometjax.train`).
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from cometjax import (
    agreement,
    attention,
    continuation,
    environment,
    initial_weights,
    metrics,
    preemption,
    profiling,
    sharding,
)
from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER, KeepPolicy, TuningLoss
from cometjax.checkpoint_timer import CheckpointTimer
from cometjax.checkpoints import Checkpoints
from cometjax.compiled_step import make_compiled_steps
from cometjax.continuation import Origin
from cometjax.goodput import Clock
from cometjax.model import ModelConfig
from cometjax.run_records import RunRecords, TrainResult
from cometjax.train_step import LossSums, StepMetrics, TokenTables, TrainState
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.loader import LoaderConfig, evaluation_batches, evaluation_plan, train_batches
from data_pipeline.mixture import Mixture, sources_of
from data_pipeline.packing import PackingPlan
from data_pipeline.row_tokens import RecordSource


class TrainLoop:
    """A run from where its workdir is: once made, it has restored or drawn its state. For use in `jax.set_mesh(mesh)`.

    `started` is the `time.perf_counter` from which time is counted (None: now), `profile_steps` the steps to trace.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: ModelConfig,
        workdir: pathlib.Path,
        corpus: Corpus | Mixture,
        mesh: Mesh,
        *,
        preempted: preemption.Preemption,
        profile_request: profiling.Request,
        profile_steps: range = range(0),
        progress: bool = False,
        started: float | None = None,
    ) -> None:
        self._config, self._model, self._mesh = config, model, mesh
        self._workdir, self._corpus = workdir, corpus
        self._preempted, self._leaving = preempted, False
        self._timer, self._overdue = CheckpointTimer(config.train.checkpoint_minutes), False
        self._saving: agreement.Poll | None = None  # whether the last save goes on, until it is known how it ended
        self._part, self._parts = sharding.share_of(mesh.devices, jax.process_index())
        tables = TokenTables.from_vocabulary(corpus.vocabulary, model.vocab_size)
        self._sources = sources_of(corpus)
        self._steps = make_compiled_steps(config, model, tables, mesh, sources=len(self._sources))
        keep = KeepPolicy(config.train.keep_checkpoints, every=config.train.keep_every, best=config.train.keep_best)
        # A run that goes on from a checkpoint is to have the lines of all steps before it.
        self._checkpoints = Checkpoints(workdir, keep, before_commit=lambda: self._records.flush())
        newest = self._checkpoints.newest(verify=config.train.verify_checkpoints)
        origin = agreement.from_first(lambda: continuation.read(workdir))
        self._origin = None if origin is None else Origin(**origin)
        begins_at = 0 if self._origin is None else self._origin.step
        earlier = agreement.from_first(lambda: _earlier_records(workdir, newest or begins_at))
        self._restore(newest, {"kept_record": earlier["kept"], "last_record": earlier["last"], "started": started})
        losses = {step: TuningLoss(loss, tokens) for step, loss, tokens in earlier["tuning"]}
        self._evaluated_step = self._step if self._step in losses else 0
        # Any: what Grain returns can be closed.
        self._batches: Any = None
        self._stepped, self._evaluated = False, False  # what was not yet called is compiled by its first call
        for step, loss in losses.items():
            self._checkpoints.note_tuning_loss(step, loss)
        self._records = agreement.together(
            lambda: RunRecords(workdir, config, model, mesh, self._clock, resumed_step=self._step, progress=progress)
        )
        agreement.from_first(lambda: environment.record(workdir, self._step))
        self._profiler = profiling.Profiler(workdir, profile_steps, profile_request, self._records.say)
        self._unsaved = newest is None and self._origin is not None
        if self._unsaved:
            self._records.say(f"continued from {self._origin}")
        elif self._step:
            self._records.say(f"resumed at step {self._step}")
        self._records.say(f"attention: {attention.resolve(model.attention, model.attention_heads)}")
        if model.scan_layers and jax.default_backend() == "gpu":
            self._records.say("layers are scanned; on a GPU config.model.scan_layers=False is a fifth faster")

    def _restore(self, newest: int | None, earlier: Mapping[str, Any]) -> None:
        """Go on from the checkpoint `newest`, or begin; `earlier` is what the clock wants to know besides."""
        if newest is None and self._origin is not None:
            self._restore_another_runs(self._origin, earlier)
            return
        if newest is None:
            self._clock = Clock(**earlier)
            self._state: TrainState = self._steps.init()
            if self._config.init_from:
                self._state = self._with_given_weights(self._state)
            self._step = 0
            return
        metadata = self._checkpoints.metadata(newest)
        where = f"{self._workdir / FOLDER / str(newest)}"
        workdirs.refuse_other_run(where, metadata, self._config, self._corpus)
        self._clock = Clock(metadata["clock"], **earlier)
        self._state = self._checkpoints.restore(newest, self._steps.abstract_state)
        self._step = newest

    def _restore_another_runs(self, origin: Origin, earlier: Mapping[str, Any]) -> None:
        with origin.reading():
            metadata = self._checkpoints.metadata(origin.step, folder=origin.folder)
            origin.refuse_other_run(metadata, self._config, self._corpus)
            # Tokens, FLOPs and seconds go on as well: they are what the weights have cost.
            self._clock = Clock(metadata["clock"], **earlier)
            self._state = self._checkpoints.restore(origin.step, self._steps.abstract_state, folder=origin.folder)
        self._step = origin.step

    def _with_given_weights(self, state: TrainState) -> TrainState:
        folder = pathlib.Path(self._config.init_from)
        params = agreement.together(lambda: initial_weights.load(folder, self._model, self._corpus.vocabulary))
        return dataclasses.replace(state, params=initial_weights.place(params, state.params))

    def to_the_end(self) -> TrainResult:
        """Train to the last step, evaluate (config.train.last_eval_batches), and write result.json."""
        steps = self._config.train.steps
        with jax.transfer_guard("disallow"):
            if self._step < steps:
                if self._unsaved:  # the other run may delete its checkpoint
                    self._save()
                self._evaluate_if_due()
                self.train_to(steps)
                self._close_batches()
            totals = self._evaluate(max_batches=self._config.train.last_eval_batches or None)
        self._write_evaluation(totals)
        with self._clock.measure("checkpoint"):
            # The last one: how those before it ended was told when it began.
            self._end_save(may_go_on=False)
        guard = self._state.guard
        result = self._records.result(
            self._step,
            totals,
            skipped_steps=int(jax.device_get(guard.nonfinite_total + guard.spike_total)),
            continued_from="" if self._origin is None else str(self._origin),
        )
        agreement.from_first(lambda: self._write_result(result))
        return result

    def _write_result(self, result: TrainResult) -> None:
        path = self._workdir / workdirs.RESULT
        with workdirs.writing(path):
            workdirs.write_json(path, dataclasses.asdict(result))

    def close(self) -> None:
        """End the save under way and close the files, also after an error."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._records.close)
            stack.callback(self._checkpoints.close)
            stack.callback(self._profiler.end, self._step)
            stack.callback(self._close_batches)

    def train_to(self, step: int) -> None:
        """Train until `step` is done, its figures recorded, and what is due there saved and evaluated."""
        in_flight: StepMetrics | None = None
        while self._step < step:
            batch = self._next_batch(in_flight)
            with self._profiler.step(self._step + 1, in_flight):
                dispatched = self._dispatch(batch)
            self._preempted.work_begins()
            # With several processes the devices answer, behind the step before: that is where the loop waits for them.
            with self._clock.measure("step"):
                self._leaving = self._preempted.poll()
                self._overdue = self._timer.due()
            if self._saving is not None and not self._saving.ask(self._checkpoints.saving()):
                self._end_save()
            # The devices already work on this step while the figures of the one before are fetched.
            if in_flight is not None:
                self._records.step(self._step, in_flight)
            self._step += 1
            in_flight = dispatched
            self._profiler.dispatched(self._step, in_flight)
            if self._step == step or self._must_pause():
                self._records.step(self._step, in_flight)
                in_flight = None
                self._save_if_due()
                self._evaluate_if_due()

    def _dispatch(self, batch: dict[str, jax.Array]) -> StepMetrics:
        """Start the next step, and return its figures while they are still computed."""
        first, self._stepped = not self._stepped, True
        with self._clock.measure("compile" if first else "step"):
            self._state, dispatched = self._steps.train(self._state, batch)
        if first:  # setup or restart is over
            self._clock.begin("other")
            self._timer.restart()
        return dispatched

    def _next_batch(self, in_flight: StepMetrics | None) -> dict[str, jax.Array]:
        """The next batch, on the devices. The time counts as waiting for input when the devices ran dry meanwhile."""
        if self._batches is None:
            self._batches = train_batches(
                self._corpus.split("train"),
                self._loader_config,
                start_step=self._step,
                host=self._part,
                hosts=self._parts,
            )
        if not self._stepped:  # the first one is part of setup or restart
            return sharding.put_batch(self._mesh, next(self._batches))
        with self._clock.measure("input"):
            batch = sharding.put_batch(self._mesh, next(self._batches))
            loss: Any = None if in_flight is None else in_flight.loss  # Any: jax's type for arrays leaves is_ready out
            if loss is not None and not loss.is_ready():
                self._clock.count_as("step")
        return batch

    def _close_batches(self) -> None:
        """End the loader's threads and workers."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _must_pause(self) -> bool:
        config = self._config.train
        due = self._step % config.checkpoint_every == 0 or self._step % config.eval_every == 0
        return due or self._step == config.steps or self._leaving or self._overdue

    def _save_if_due(self) -> None:
        config = self._config.train
        due = self._step % config.checkpoint_every == 0 or self._step == config.steps
        if due or self._leaving or self._overdue:
            self._save()
        self._leave_if_preempted()

    def _save(self) -> None:
        with self._clock.measure("checkpoint"), jax.transfer_guard("allow"):
            self._end_save()
            if self._checkpoints.started(self._step):
                return
            metadata = {
                "config": self._config.to_dict(),
                "corpus_fingerprint": self._corpus.fingerprint,
                "vocabulary_fingerprint": self._corpus.vocabulary.fingerprint,
                "clock": self._clock.to_dict(),
            }
            self._timer.restart()
            self._checkpoints.save(self._step, self._state, metadata)
            self._saving = agreement.Poll(first=True)

    def _evaluate_if_due(self) -> None:
        """Evaluate at a multiple of eval_every; after a resume too, where a kill came between saving and evaluating."""
        config = self._config.train
        if self._step % config.eval_every or self._step in (0, config.steps, self._evaluated_step):
            return
        self._write_evaluation(self._evaluate(max_batches=config.eval_batches or None))

    def _write_evaluation(self, totals: metrics.LossTotals) -> None:
        if self._evaluated_step == self._step:  # by a run that was killed before it wrote its result
            return
        self._evaluated_step = self._step
        self._checkpoints.note_tuning_loss(self._step, TuningLoss(totals.loss, totals.tokens))
        self._records.evaluation(self._step, totals)

    def _evaluate(self, *, max_batches: int | None) -> metrics.LossTotals:
        totals = metrics.LossTotals(self._sources)
        in_flight: LossSums | None = None
        split, plan = self._tuning
        batches: Any = evaluation_batches(
            split,
            self._loader_config,
            max_batches=max_batches,
            plan=plan,
            host=self._part,
            hosts=self._parts,
        )
        with self._clock.measure("evaluation"), contextlib.closing(batches):
            for batch in batches:
                dispatched = self._dispatch_evaluation(sharding.put_batch(self._mesh, batch))
                if in_flight is not None:
                    totals.add(jax.device_get(in_flight))
                in_flight = dispatched
                self._leaving = self._preempted.poll()
                if self._leaving:
                    self._save()
                    self._leave_if_preempted()
            if in_flight is not None:
                totals.add(jax.device_get(in_flight))
        return totals

    def _dispatch_evaluation(self, batch: dict[str, jax.Array]) -> LossSums:
        compiling = contextlib.nullcontext() if self._evaluated else self._clock.measure("compile")
        self._evaluated = True
        with compiling:
            sums: LossSums = self._steps.evaluate(self._state.params, batch)
        return sums

    @functools.cached_property
    def _tuning(self) -> tuple[RecordSource, PackingPlan]:
        split = self._corpus.split("tuning")
        return split, evaluation_plan(split, self._loader_config)

    def _end_save(self, *, may_go_on: bool = True) -> None:
        """Wait for the save under way, if any, and tell what went wrong with it: in all processes at the same step."""
        self._checkpoints.wait()
        self._saving = None
        failure = self._checkpoints.failure()
        if failure is None:
            return
        where = str(self._workdir / FOLDER)
        if not may_go_on or self._config.train.on_checkpoint_error == "stop":
            fix = "mend that, and start again with the same workdir: it goes on from its newest checkpoint"
            raise UserError(failure, where=where, fix=fix)
        if jax.process_index() == 0:
            logging.error("%s: %s; training goes on (config.train.on_checkpoint_error)", where, failure)

    def _leave_if_preempted(self) -> None:
        if self._leaving:
            with self._clock.measure("checkpoint"):
                self._checkpoints.wait()
            done = self._checkpoints.failure() or f"saved at step {self._step}"
            self._records.say(f"SIGTERM: {done}; start again with the same workdir to resume")
            sys.exit(preemption.EXIT_CODE)

    @property
    def _loader_config(self) -> LoaderConfig:
        config = self._config
        return LoaderConfig(
            batch_rows=config.train.batch_rows,
            row_length=config.train.row_length,
            seed=config.seed,
            workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            group_by_length=config.train.group_by_length,
        )


def _earlier_records(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """What the lines so far tell a run that goes on from `step`.

    `tuning`: (step, loss, target tokens) of each evaluation up to there; `kept`: the last line up to there, or None;
    `last`: the last line of all, or None.
    """
    lines = metrics.read(workdir)
    evaluated = metrics.tuning_losses(line for line in lines if line["step"] <= step)
    timed = [line for line in lines if "seconds/step" in line]  # older versions wrote no time
    kept = [line for line in timed if line["step"] <= step]
    return {
        "tuning": [(step, *loss) for step, loss in evaluated.items()],
        "kept": kept[-1] if kept else None,
        "last": timed[-1] if timed else None,
    }
