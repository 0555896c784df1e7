"""Pretrain a model on a corpus, or resume.

    python -m cometjax.train --config experiments/configs/demo.py \\
        --workdir runs/mine --config.corpus=runs/demo/corpus \\
        --config.train.steps=200

Shows the loss (nats per token) and the speed while it runs: a bar on a terminal, lines elsewhere. The workdir then
holds checkpoints/, metrics.jsonl, tensorboard/ and, last, result.json with the loss over the whole tuning split.
--profile_steps=100:105 traces steps 100 to 104, SIGUSR1 the next five (`cometjax.profiling`).
Started again with the same workdir it goes on from the latest checkpoint, with the losses of a run that was never
interrupted; a finished run says so. SIGTERM saves at the next step and exits with code 143 (`cometjax.preemption`);
Ctrl-C saves nothing, and says from which step the same command goes on.
--config.continue_from=WORKDIR:STEP begins with another run's checkpoint, and its steps (`cometjax.continuation`).

On several hosts the same command is started on each, by Slurm, GKE or flags (`cometjax.hosts`); the workdir and the
corpus are folders that all of them see. On a CPU each core is a device (`cometjax.cpu_devices`).

docs/config.md lists every key of --config.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from cometjax import (
    agreement,
    attention,
    checkpoint_files,
    compile_cache,
    continuation,
    cpu_devices,
    goodput,
    hosts,
    initial_weights,
    preemption,
    profiling,
    sharding,
    shared_workdir,
)
from cometjax import config as configs
from cometjax import workdir as workdirs
from cometjax.model import ModelConfig
from cometjax.optimizer import learning_rate_schedule
from cometjax.run_records import TrainResult
from cometjax.train_loop import TrainLoop
from data_pipeline import command_line, interrupts
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.loader import refuse_empty
from data_pipeline.locations import require_local
from data_pipeline.mixture import MixedSplit, Mixture, open_corpus


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    progress: bool = True,
    profile_steps: range = range(0),
    started: float | None = None,
) -> TrainResult:
    """Train to `config.train.steps`, from the start or from where this workdir's run was interrupted.

    Steps in `profile_steps`, counted from 1, are traced. Wall time is counted from `started`, a `time.perf_counter`
    (None: from this call).

    Raises:
      UserError: a wrong configuration or corpus; a workdir that was started with another, that another process trains
        in, that not all processes see, or that cannot be written; too many steps in a row whose loss or gradient is not
        finite; the last checkpoint cannot be written, or any, where config says stop.
      SystemExit: with code 143, when SIGTERM came; the step was saved.
      KeyboardInterrupt: from which step the same command goes on.
    """
    with (
        interrupts.resumable(lambda: _resumption(workdir)),
        contextlib.ExitStack() as held,
        preemption.listening() as preempted,
        profiling.listening() as profile_request,
    ):
        agreement.refuse_difference("configuration", config.to_dict())
        corpus, model, mesh = agreement.together(lambda: _prepare(config, workdir))
        agreement.refuse_difference("corpus", [corpus.fingerprint, corpus.vocabulary.fingerprint])
        # What a run goes on from, in order of precedence:
        # 1. result.json: the run is finished, and nothing is computed.
        # 2. The newest whole checkpoint: parameters, optimizer, step and counters. Lines of metrics beyond it are cut.
        # 3. Another run's checkpoint, config.continue_from: the same, but for lines of metrics; chosen when this run is
        #    first started.
        # 4. Nothing: parameters of config.init_from, or else from config.seed, and step 0.
        # In each case the configuration given must be the workdir's own (workdirs.FREE_KEYS aside, where the one given
        # now counts), and so must corpus and vocabulary.
        finished = agreement.from_first(lambda: _open_workdir(workdir, config, corpus, held))
        shared_workdir.refuse_unshared(workdir)
        first = jax.process_index() == 0
        if finished is not None:
            return _already_finished(workdir, TrainResult(**finished), tell=progress and first)
        with jax.set_mesh(mesh):
            loop = TrainLoop(
                config,
                model,
                workdir,
                corpus,
                mesh,
                preempted=preempted,
                profile_request=profile_request,
                profile_steps=profile_steps if first else range(0),
                progress=progress and first,
                started=started,
            )
            try:
                return loop.to_the_end()
            finally:
                loop.close()


def _resumption(workdir: pathlib.Path) -> str:
    steps = checkpoint_files.whole_steps(workdir / checkpoint_files.FOLDER)
    if not steps:
        return "nothing is saved: the same command begins anew"
    return f"the same command goes on from step {steps[-1]}"


def _already_finished(workdir: pathlib.Path, result: TrainResult, *, tell: bool) -> TrainResult:
    if tell:
        print(f"{workdir}: already finished, {result.step} steps, tuning loss {result.tuning_loss:.4f}", flush=True)
    return result


def _prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[Corpus | Mixture, ModelConfig, Mesh]:
    """All that can be refused before anything is written."""
    configs.validate(config)
    require_local(workdir, "--workdir")
    if not config.corpus:
        raise UserError("is not set", where="config.corpus", fix="give a corpus with --config.corpus=DIR")
    corpus = open_corpus(config.corpus)
    train_split = corpus.split("train")
    # A mixture trains on each corpus's split by itself, and evaluates on all their tuning splits together.
    train_parts = train_split.parts if isinstance(train_split, MixedSplit) else (train_split,)
    for split in (*train_parts, corpus.split("tuning")):
        refuse_empty(split)
    model = ModelConfig.from_config(config.model, len(corpus.vocabulary))
    if config.init_from and not (workdir / workdirs.CONFIG).exists():
        initial_weights.refuse_unfit(pathlib.Path(config.init_from), model, corpus.vocabulary)
    learning_rate_schedule(config)
    attention.resolve(model.attention, model.attention_heads)
    mesh = sharding.make_mesh(config.mesh, cpu_devices.for_batch(config))
    sharding.check_batch_rows(mesh, config.train.batch_rows, config.train.microbatches)
    sharding.share_of(mesh.devices, jax.process_index())
    return corpus, model, mesh


def _open_workdir(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, corpus: Corpus | Mixture, held: contextlib.ExitStack
) -> dict[str, Any] | None:
    """The workdir's result, if its run is finished. No other process may train there until `held` ends."""
    begun = (workdir / workdirs.CONFIG).exists()
    origin = None if begun else continuation.choose(config, workdir, corpus)
    held.enter_context(workdirs.held(workdir))
    workdirs.open_workdir(workdir, config, corpus, None if origin is None else dataclasses.asdict(origin))
    result = workdir / workdirs.RESULT
    return workdirs.read_json(result) if result.exists() else None


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of the run; an interrupted run in it is resumed", required=True)
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(); single keys are overridden by --config.key=value"
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first of several processes; auto = ask JAX")
    flags.DEFINE_integer("num_processes", None, "how many processes the run has")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
    flags.DEFINE_string("profile_steps", "", "A:B = trace steps A to B - 1 into WORKDIR/profile")


def main() -> None:
    """Train as the flags say."""
    values = flags.FLAGS
    started = goodput.process_start()
    configs.validate(values.config)
    profile_steps = profiling.parse_steps(values.profile_steps)
    compile_cache.turn_on()
    cluster = hosts.find_cluster(values.coordinator_address, values.num_processes, values.process_id)
    if cluster is None:
        cpu_devices.show_cores()
    with hosts.joined(cluster):
        train(values.config, pathlib.Path(values.workdir), profile_steps=profile_steps, started=started)


if __name__ == "__main__":
    command_line.run(main, _define_flags)
