"""What a run tells of itself: counters, lines of metrics, the terminal, the result.

Each process counts; the first alone writes and shows. docs/observability.md says what each figure means.
"""

import dataclasses
import pathlib

import jax
import ml_collections
from jax.sharding import Mesh

from cometjax import chips, device_memory, flops, group_norms, metrics, step_guard
from cometjax.goodput import Clock
from cometjax.metrics_writer import MetricsWriter
from cometjax.model import ModelConfig
from cometjax.train_step import StepMetrics
from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run. Losses are nats per target token over the whole tuning split, or config.train.last_eval_batches.

    `tuning_tokens` is the number of target tokens that `tuning_loss` is the mean of: losses of as many compare.
    `tokens_per_second` counts target tokens over the time in steps and in waiting for input (compilation, evaluation
    and checkpoints are not in it); `goodput` is the share of `wall_seconds` spent in steps, and `seconds` has all of
    `wall_seconds` by cause (`cometjax.goodput`). All over every restart, and of a run that continues another from its
    beginning: `continued_from` is the other's WORKDIR:STEP.
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
    # Results of older versions have none of these.
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    continued_from: str = ""
    tuning_tokens: int = 0


class RunRecords:
    """Counts what the steps of a run did, and hands it on: to metrics.jsonl, TensorBoard and the terminal.

    `clock` is the run's, and its owner charges it. Lines beyond `resumed_step` are of lost steps: they are cut.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: ml_collections.ConfigDict,
        model: ModelConfig,
        mesh: Mesh,
        clock: Clock,
        *,
        resumed_step: int,
        progress: bool,
    ) -> None:
        self._workdir, self._config, self._model, self._clock = workdir, config, model, clock
        self._writer = MetricsWriter(workdir, resumed_step=resumed_step, enabled=jax.process_index() == 0)
        self._progress = metrics.Progress(start=resumed_step, steps=config.train.steps, enabled=progress)
        self._window_start = self._so_far()
        device = jax.devices()[0].device_kind
        peak = chips.peak_flops_per_second(device)
        self._peak = None if peak is None else peak * mesh.size
        if peak is None:
            self.say(f"no MFU: the peak of {device!r} is not known; model FLOP/s are reported")

    def say(self, message: str) -> None:
        """A line on the terminal."""
        self._progress.say(message)

    def flush(self) -> None:
        """Wait until the lines so far are in the file; not for ever, where the file system hangs."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end the bar."""
        self._writer.close()
        self._progress.close()

    def step(self, step: int, on_device: StepMetrics) -> None:
        """Count a step, from 1; write and show its figures where they are due, or it was skipped.

        Waits for the devices to finish the step. Raises UserError after too many skipped steps in a row.
        """
        due = step % self._config.train.log_every == 0 or step == self._config.train.steps
        with self._clock.measure("step"):
            # As many arrays as all the rest, and rarely wanted.
            by_group = (on_device.gradient_norms, on_device.update_norms)
            rest = dataclasses.replace(on_device, gradient_norms={}, update_norms={})
            fetched, norms = jax.device_get((rest, by_group if due else None))
        self._clock.tokens += int(fetched.sums.tokens_K.sum())
        self._clock.flops += flops.train_flops(
            self._model, tokens=int(fetched.positions), sum_segment_squared=int(fetched.segment_squares)
        )
        self._progress.advance()
        skipped = bool(fetched.verdict.skipped)
        if due or skipped:
            gradient, update = norms or jax.device_get(by_group)
            values = self._step_values(fetched)
            values |= group_norms.named("gradient_norm", gradient) | group_norms.named("update_norm", update)
            self._writer.write(step, "train", values | device_memory.memory())
            self._progress.train(step, values)
        if skipped:
            self._tell_skipped(step, fetched)

    def _step_values(self, fetched: StepMetrics) -> dict[str, float | int | None]:
        record = self._clock.record()
        before, self._window_start = self._window_start, self._so_far()
        tokens, work, waited, training = (now - then for now, then in zip(self._window_start, before, strict=True))
        training = max(training, 1e-9)
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
            "tokens_per_second": tokens / training,
            "model_flops_per_second": work / training,
            "mfu": None if self._peak is None else work / training / self._peak,
            "input_wait": waited / training,
        } | record | totals.values()  # fmt: skip

    def _so_far(self) -> tuple[float, float, float, float]:
        """(tokens, flops, seconds of waiting for input, seconds in steps and in waiting for input)."""
        clock = self._clock
        return clock.tokens, clock.flops, clock.seconds["input"], clock.training

    def _tell_skipped(self, step: int, fetched: StepMetrics) -> None:
        in_a_row, limit = int(fetched.skipped_in_a_row), self._config.train.max_skipped_steps
        cause = step_guard.CAUSES[int(fetched.verdict.skipped)]
        self.say(
            f"step {step} skipped: {cause} (loss {fetched.loss:.4g}, gradient norm {fetched.gradient_norm:.4g}; "
            f"{in_a_row} in a row)"
        )
        if in_a_row >= limit:
            raise UserError(
                f"{in_a_row} steps skipped in a row, the last of them step {step}: {cause}",
                where=str(self._workdir),
                fix="lower config.optimizer.learning_rate or clip_norm and start in another --workdir (from an earlier "
                "checkpoint: config.continue_from), or raise config.train.max_skipped_steps or spike_threshold "
                "and resume",
            )

    def evaluation(self, step: int, totals: metrics.LossTotals) -> None:
        """Write and show an evaluation on the tuning split."""
        self._writer.write(step, "tuning", {"loss": totals.loss} | self._clock.record() | totals.values())
        by_source = "".join(f"  {name} {own.loss:.4f}" for name, own in totals.by_source.items())
        self.say(f"step {step}  tuning loss {totals.loss:.4f}  {totals.bits_per_event:.3f} bits/event{by_source}")

    def result(
        self, step: int, totals: metrics.LossTotals, *, skipped_steps: int, continued_from: str = ""
    ) -> TrainResult:
        """The result of a run that ends here; shows where its time went."""
        self.say(self._clock.describe())
        record = self._clock.record()
        return TrainResult(
            step=step,
            tuning_loss=totals.loss,
            tuning_loss_by_kind=totals.loss_by_kind,
            tuning_bits_per_event=totals.bits_per_event,
            tokens=self._clock.tokens,
            flops=self._clock.flops,
            tokens_per_second=self._clock.tokens / self._clock.training,
            wall_seconds=record["wall_seconds"],
            goodput=record["goodput"],
            skipped_steps=skipped_steps,
            seconds=dict(self._clock.seconds),
            continued_from=continued_from,
            tuning_tokens=totals.tokens,
        )
