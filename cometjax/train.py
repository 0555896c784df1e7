"""Pretrain a model on a corpus, or resume.

    python -m cometjax.train --config experiments/configs/demo.py --workdir runs/demo/train \\
        --config.corpus=runs/demo/corpus --config.train.steps=200

Shows the loss (nats per token) and the speed while it runs: a bar on a terminal, lines elsewhere. The workdir then
holds checkpoints/, metrics.jsonl, tensorboard/ and, last, result.json with the loss over the whole tuning split.
Started again with the same workdir it goes on from the latest checkpoint, with the losses of a run that was never
interrupted; a finished run says so. SIGTERM saves at the next step and exits with code 143 (`cometjax.preemption`).

On several hosts the same command is started on each, by Slurm, GKE or flags (`cometjax.hosts`); the workdir and the
corpus are folders that all of them see.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from cometjax import (
    agreement,
    attention,
    chips,
    compile_cache,
    flops,
    hosts,
    initial_weights,
    metrics,
    preemption,
    sharding,
    step_guard,
)
from cometjax import config as configs
from cometjax import workdir as workdirs
from cometjax.checkpoint_files import FOLDER, KeepPolicy
from cometjax.checkpoints import Checkpoints
from cometjax.compiled_step import make_compiled_steps
from cometjax.model import ModelConfig
from cometjax.optimizer import learning_rate_schedule
from cometjax.train_step import LossSums, StepMetrics, TokenTables, TrainState
from data_pipeline import command_line
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.loader import Batch, LoaderConfig, evaluation_batches, evaluation_plan, train_batches
from data_pipeline.locations import require_local
from data_pipeline.mixture import Mixture, open_corpus
from data_pipeline.packing import PackingPlan
from data_pipeline.row_tokens import RecordSource


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run. Losses are nats per target token over the whole tuning split.

    `tokens_per_second` counts target tokens over the time in steps and in waiting for input (compilation, evaluation
    and checkpoints are not in it); `goodput` is the share of `wall_seconds` spent in steps. All over every restart.
    """

    step: int
    tuning_loss: float
    tuning_loss_by_kind: dict[str, float]
    tuning_bits_per_event: float
    tokens: int
    flops: float
    tokens_per_second: float
    wall_seconds: float
    goodput: float
    skipped_steps: int


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, progress: bool = True) -> TrainResult:
    """Train to `config.train.steps`, from the start or from where this workdir's run was interrupted.

    Raises:
      UserError: a wrong configuration or corpus; a workdir that was started with another; too many steps in a row
        whose loss or gradient is not finite; the last checkpoint cannot be written, or any, where config says stop.
      SystemExit: with code 143, when SIGTERM came; the step was saved.
    """
    with preemption.listening() as preempted:
        return _train(config, workdir, preempted, progress)


def _train(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, preempted: preemption.Preemption, progress: bool
) -> TrainResult:
    agreement.refuse_difference("configuration", config.to_dict())
    corpus, model, mesh = agreement.together(lambda: _prepare(config, workdir))
    agreement.refuse_difference("corpus", [corpus.fingerprint, corpus.vocabulary.fingerprint])
    # What a run goes on from, in order of precedence:
    # 1. result.json: the run is finished, and nothing is computed.
    # 2. The newest whole checkpoint: parameters, optimizer, step and counters. Lines of metrics beyond it are cut.
    # 3. Nothing: parameters of config.init_from, or else from config.seed, and step 0.
    # In each case the configuration given must be the workdir's own (workdirs.FREE_KEYS aside, where the one given now
    # counts), and so must corpus and vocabulary.
    finished = agreement.from_first(lambda: _open_workdir(workdir, config, corpus))
    progress = progress and jax.process_index() == 0
    if finished is not None:
        result = TrainResult(**finished)
        if progress:
            print(f"{workdir}: already finished, {result.step} steps, tuning loss {result.tuning_loss:.4f}", flush=True)
        return result
    with jax.set_mesh(mesh):
        run = _Run(config, model, workdir, corpus, mesh, preempted, progress)
        try:
            return run.to_the_end()
        finally:
            run.close()


def _prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[Corpus | Mixture, ModelConfig, Mesh]:
    """All that can be refused before anything is written."""
    configs.validate(config)
    require_local(workdir, "--workdir")
    if not config.corpus:
        raise UserError("is not set", where="config.corpus", fix="give a corpus with --config.corpus=DIR")
    corpus = open_corpus(config.corpus)
    model = ModelConfig.from_config(config.model, len(corpus.vocabulary))
    if config.init_from and not (workdir / workdirs.CONFIG).exists():
        initial_weights.refuse_unfit(pathlib.Path(config.init_from), model, corpus.vocabulary)
    learning_rate_schedule(config)
    attention.resolve(model.attention)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_rows(mesh, config.train.batch_rows, config.train.microbatches)
    sharding.share_of(mesh.devices, jax.process_index())
    return corpus, model, mesh


def _open_workdir(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, corpus: Corpus | Mixture
) -> dict[str, Any] | None:
    """The workdir's result, if its run is finished."""
    workdirs.open_workdir(workdir, config, corpus)
    result = workdir / workdirs.RESULT
    return workdirs.read_json(result) if result.exists() else None


class _Run:
    """One process's part in a run: the compiled steps, the files that it writes, and the loop."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: ModelConfig,
        workdir: pathlib.Path,
        corpus: Corpus | Mixture,
        mesh: Mesh,
        preempted: preemption.Preemption,
        progress: bool,
    ) -> None:
        self._config, self._model, self._mesh = config, model, mesh
        self._workdir, self._corpus = workdir, corpus
        self._preempted, self._leaving = preempted, False
        self._part, self._parts = sharding.share_of(mesh.devices, jax.process_index())
        tables = TokenTables.from_vocabulary(corpus.vocabulary, model.vocab_size)
        self._steps = make_compiled_steps(config, model, tables, mesh)
        keep = KeepPolicy(config.train.keep_checkpoints, every=config.train.keep_every, best=config.train.keep_best)
        self._checkpoints = Checkpoints(workdir, keep)
        self._restore()
        start = self._step
        losses = dict(agreement.from_first(lambda: _tuning_losses(workdir)))
        self._evaluated_step = start if start in losses else 0
        for step in [step for step in losses if step <= start]:
            self._checkpoints.note_tuning_loss(step, losses[step])
        self._writer = metrics.MetricsWriter(workdir, resumed_step=start, enabled=jax.process_index() == 0)
        self._progress = metrics.Progress(start=start, steps=config.train.steps, enabled=progress)
        if start:
            self._progress.say(f"resumed at step {start}")
        self._progress.say(f"attention: {attention.resolve(model.attention)}")
        device = jax.devices()[0].device_kind
        self._peak = chips.peak_flops_per_second(device)
        if self._peak is None:
            self._progress.say(f"no MFU: the peak of {device!r} is not known; model FLOP/s are reported")

    def _restore(self) -> None:
        newest = self._checkpoints.newest(verify=self._config.train.verify_checkpoints)
        if newest is None:
            self._clock = metrics.Clock()
            with self._clock.measure("setup"):
                self._state: TrainState = self._steps.init()
                if self._config.init_from:
                    self._state = self._with_given_weights(self._state)
            self._step = 0
            return
        metadata = self._checkpoints.metadata(newest)
        where = f"{self._workdir / FOLDER / str(newest)}"
        workdirs.refuse_other_run(where, metadata, self._config, self._corpus)
        self._state = self._checkpoints.restore(newest, self._steps.abstract_state)
        self._clock = metrics.Clock(metadata["clock"])
        self._step = newest

    def _with_given_weights(self, state: TrainState) -> TrainState:
        folder = pathlib.Path(self._config.init_from)
        params = agreement.together(lambda: initial_weights.load(folder, self._model, self._corpus.vocabulary))
        return dataclasses.replace(state, params=initial_weights.place(params, state.params))

    def to_the_end(self) -> TrainResult:
        """Train to the last step, evaluate on the whole tuning split, and write result.json."""
        steps = self._config.train.steps
        self._window_start = (self._clock.tokens, self._clock.flops, dict(self._clock.seconds))
        with jax.transfer_guard("disallow"):
            if self._step < steps:
                self._evaluate_if_due()
                self._loop(steps)
            totals = self._evaluate(max_batches=None)
        self._write_evaluation(totals)
        result = TrainResult(
            step=self._step,
            tuning_loss=totals.loss,
            tuning_loss_by_kind=totals.loss_by_kind,
            tuning_bits_per_event=totals.bits_per_event,
            tokens=self._clock.tokens,
            flops=self._clock.flops,
            tokens_per_second=self._clock.tokens / self._clock.training,
            wall_seconds=self._clock.wall,
            goodput=self._clock.goodput,
            skipped_steps=int(jax.device_get(self._state.guard.nonfinite_total + self._state.guard.spike_total)),
        )
        self._checkpoints.wait()
        self._tell_failed_save(may_go_on=False)
        if jax.process_index() == 0:
            workdirs.write_json(self._workdir / workdirs.RESULT, dataclasses.asdict(result))
        return result

    def close(self) -> None:
        """End the save under way and close the files."""
        self._checkpoints.close()
        self._writer.close()
        self._progress.close()

    def _loop(self, steps: int) -> None:
        # Any: what Grain returns can be closed, which ends its threads and workers.
        batches: Any = train_batches(
            self._corpus.split("train"),
            self._loader_config,
            start_step=self._step,
            host=self._part,
            hosts=self._parts,
        )
        in_flight: StepMetrics | None = None
        cause = "compile"  # the first call
        with contextlib.closing(batches):
            while self._step < steps:
                batch = self._next_batch(batches, in_flight)
                with self._clock.measure(cause):
                    self._state, dispatched = self._steps.train(self._state, batch)
                cause = "step"
                self._preempted.work_begins()
                self._leaving = self._preempted.poll()
                self._tell_failed_save(may_go_on=True)
                # The devices already work on this step while the figures of the one before are fetched.
                if in_flight is not None:
                    self._record(self._step, in_flight)
                self._step += 1
                in_flight = dispatched
                if self._must_pause():
                    self._record(self._step, in_flight)
                    in_flight = None
                    self._save_if_due()
                    self._evaluate_if_due()

    def _next_batch(self, batches: Iterator[Batch], in_flight: StepMetrics | None) -> dict[str, jax.Array]:
        """The next batch, on the devices. The time counts as waiting for input when the devices ran dry meanwhile."""
        start = time.perf_counter()
        batch = sharding.put_batch(self._mesh, next(batches))
        loss: Any = None if in_flight is None else in_flight.loss  # Any: jax's type for arrays leaves is_ready out
        still_busy = loss is not None and not loss.is_ready()
        self._clock.add("step" if still_busy else "input", time.perf_counter() - start)
        return batch

    def _must_pause(self) -> bool:
        config = self._config.train
        due = self._step % config.checkpoint_every == 0 or self._step % config.eval_every == 0
        return due or self._step == config.steps or self._leaving

    def _record(self, step: int, step_metrics: StepMetrics) -> None:
        with self._clock.measure("step"):
            fetched: StepMetrics = jax.device_get(step_metrics)
        self._clock.tokens += int(fetched.sums.tokens_K.sum())
        self._clock.flops += flops.train_flops(
            self._model, tokens=int(fetched.positions), sum_segment_squared=int(fetched.segment_squares)
        )
        self._progress.advance()
        if fetched.verdict.skipped or step % self._config.train.log_every == 0 or step == self._config.train.steps:
            values = self._train_values(fetched)
            self._writer.write(step, "train", values)
            self._progress.train(step, values)
        if fetched.verdict.skipped:
            self._refuse_too_many_skipped(step, fetched)

    def _refuse_too_many_skipped(self, step: int, fetched: StepMetrics) -> None:
        in_a_row, limit = int(fetched.skipped_in_a_row), self._config.train.max_skipped_steps
        cause = step_guard.CAUSES[int(fetched.verdict.skipped)]
        self._progress.say(
            f"step {step} skipped: {cause} (loss {fetched.loss:.4g}, gradient norm {fetched.gradient_norm:.4g}; "
            f"{in_a_row} in a row)"
        )
        if in_a_row >= limit:
            raise UserError(
                f"{in_a_row} steps skipped in a row, the last of them step {step}: {cause}",
                where=str(self._workdir),
                fix="lower config.optimizer.learning_rate or clip_norm and start in another --workdir, "
                "or raise config.train.max_skipped_steps or spike_threshold and resume",
            )

    def _train_values(self, fetched: StepMetrics) -> dict[str, float | int | None]:
        tokens, work, seconds = self._window_start
        self._window_start = (self._clock.tokens, self._clock.flops, dict(self._clock.seconds))
        spent = {cause: value - seconds.get(cause, 0.0) for cause, value in self._clock.seconds.items()}
        training = max(spent.get("step", 0.0) + spent.get("input", 0.0), 1e-9)
        flops_per_second = (self._clock.flops - work) / training
        totals = metrics.LossTotals()
        totals.add(fetched.sums)
        return {
            "loss": float(fetched.loss),
            "gradient_norm": float(fetched.gradient_norm),
            "learning_rate": float(fetched.learning_rate),
            "skipped_steps": int(fetched.nonfinite_total + fetched.spike_total),
            "skipped_spikes": int(fetched.spike_total),
            "loss_deviations": float(fetched.verdict.loss_deviations),
            "gradient_deviations": float(fetched.verdict.gradient_deviations),
            "tokens_per_second": (self._clock.tokens - tokens) / training,
            "model_flops_per_second": flops_per_second,
            "mfu": None if self._peak is None else flops_per_second / (self._peak * self._mesh.size),
            "input_wait": spent.get("input", 0.0) / training,
            "goodput": self._clock.goodput,
        } | totals.values()

    def _save_if_due(self) -> None:
        config = self._config.train
        due = self._step % config.checkpoint_every == 0 or self._step == config.steps
        if due or self._leaving:
            self._save()
        self._leave_if_preempted()

    def _save(self) -> None:
        if self._checkpoints.started(self._step):
            return
        with self._clock.measure("checkpoint"), jax.transfer_guard("allow"):
            metadata = {
                "config": self._config.to_dict(),
                "corpus_fingerprint": self._corpus.fingerprint,
                "vocabulary_fingerprint": self._corpus.vocabulary.fingerprint,
                "clock": self._clock.to_dict(),
            }
            self._checkpoints.save(self._step, self._state, metadata)

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
        self._checkpoints.note_tuning_loss(self._step, totals.loss)
        self._writer.write(self._step, "tuning", {"loss": totals.loss} | totals.values())
        self._progress.say(f"step {self._step}  tuning loss {totals.loss:.4f}  {totals.bits_per_event:.3f} bits/event")

    def _evaluate(self, *, max_batches: int | None) -> metrics.LossTotals:
        totals = metrics.LossTotals()
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
                dispatched = self._steps.evaluate(self._state.params, sharding.put_batch(self._mesh, batch))
                if in_flight is not None:
                    totals.add(jax.device_get(in_flight))
                in_flight = dispatched
                self._leaving = self._preempted.poll()
                if self._leaving:
                    self._save()
                    self._leave_if_preempted()
            if in_flight is not None:
                totals.add(jax.device_get(in_flight))
        if not totals.weight:
            raise UserError(
                "the tuning split has no tokens", where=self._config.corpus, fix="rebuild it with more subjects"
            )
        return totals

    @functools.cached_property
    def _tuning(self) -> tuple[RecordSource, PackingPlan]:
        split = self._corpus.split("tuning")
        return split, evaluation_plan(split, self._loader_config)

    def _tell_failed_save(self, *, may_go_on: bool) -> None:
        failure = self._checkpoints.failure()
        if failure is None:
            return
        where = str(self._workdir / FOLDER)
        if not may_go_on or self._config.train.on_checkpoint_error == "stop":
            fix = "mend that, and start again with the same workdir: it goes on from its newest checkpoint"
            raise UserError(failure, where=where, fix=fix)
        logging.error("%s: %s; training goes on (config.train.on_checkpoint_error)", where, failure)

    def _leave_if_preempted(self) -> None:
        if self._leaving:
            self._checkpoints.wait()
            done = self._checkpoints.failure() or f"saved at step {self._step}"
            self._progress.say(f"SIGTERM: {done}; start again with the same workdir to resume")
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
        )


def _tuning_losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    """(step, loss) of each evaluation so far whose loss was finite."""
    lines = [line for line in metrics.read(workdir) if line["split"] == "tuning"]
    return [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of the run; an interrupted run in it is resumed", required=True)
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(); single keys are overridden by --config.key=value"
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first of several processes; auto = ask JAX")
    flags.DEFINE_integer("num_processes", None, "how many processes the run has")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0")


def main() -> None:
    """Train as the flags say."""
    values = flags.FLAGS
    configs.validate(values.config)
    compile_cache.turn_on()
    with hosts.joined(hosts.find_cluster(values.coordinator_address, values.num_processes, values.process_id)):
        train(values.config, pathlib.Path(values.workdir))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
