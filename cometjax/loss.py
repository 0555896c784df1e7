r"""The loss of any checkpoint on any corpus of the same vocabulary: another hospital's, next year's, another split.

    python -m cometjax.loss --workdir runs/mine --corpus runs/next-year \
        --split held_out --step best --out loss.json

Prints nats per target token in all and by kind of token, bits per event, and how many tokens that
is of; as a table, and as a line of JSON, which --out writes to a file. It is the evaluation of
training: the same step over the same batches, so that on the run's own tuning split a checkpoint
has the loss that the run wrote down, but for rounding where the devices differ. A mixture
(a=1,b=1; weights count for nothing) is told by source as well. Takes what an evaluation in
training takes, on all local devices, and the time to compile it; --batches looks at so many
batches only, a fair sample.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags, logging
from flax import nnx
from jax.sharding import Mesh

from cometjax import attention, checkpoint_choice, checkpoints, compile_cache, cpu_devices, metrics, sharding
from cometjax import config as configs
from cometjax import workdir as workdirs
from cometjax.compiled_step import make_compiled_evaluation
from cometjax.model import ModelConfig
from cometjax.train_step import LossSums, TokenTables
from data_pipeline import command_line, loader
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.mixture import Mixture, open_corpus, sources_of
from data_pipeline.progress_bar import progress_bar
from data_pipeline.vocabulary import KINDS, Vocabulary


def loss(
    workdir: pathlib.Path,
    corpus: str,
    *,
    split: str = "tuning",
    step: checkpoint_choice.Step = None,
    batches: int = 0,
    batch_rows: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """The loss of a workdir's checkpoint on a split of a corpus, in nats per target token.

    Args:
        workdir: of the run.
        corpus: folder, URL or mixture, as `mixture.open_corpus`.
        split: of the corpus.
        step: which checkpoint (`cometjax.checkpoint_choice`).
        batches: how many to look at; 0 = the whole split.
        batch_rows: rows in a batch; 0 = as in training.
        progress: show a bar.

    Returns workdir, step, corpus and corpus_fingerprint, split, batches and batch_rows as they were, and
    loss, bits_per_event, tokens, loss_by_kind, tokens_by_kind, and of a mixture loss_by_source, tokens_by_source (else
    empty); a figure that is not finite is None.

    Raises:
      UserError: as `checkpoints.load_for_inference` and `open_corpus`; a corpus of another vocabulary, or without
        that split or subjects in it.
    """
    opened = open_corpus(corpus)
    records = opened.split(split)
    model, vocabulary, config, used = checkpoints.load_for_inference(workdir, step=step)
    _refuse_other_vocabulary(corpus, opened, vocabulary)
    settings = loader.LoaderConfig(batch_rows or config.train.batch_rows, config.train.row_length, config.seed)
    plan = loader.evaluation_plan(records, settings)
    mesh = _mesh(settings.batch_rows)
    sources = sources_of(opened)
    totals = metrics.LossTotals(sources)
    with jax.set_mesh(mesh):
        tables = TokenTables.from_vocabulary(vocabulary, model.config.vocab_size)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        place = sharding.state_sharding(mesh, params)
        params = jax.device_put(params, place)
        evaluate = make_compiled_evaluation(_runnable(model.config), tables, mesh, place, len(sources))
        todo = min(-(-plan.num_rows // settings.batch_rows), batches or plan.num_rows)
        in_flight: LossSums | None = None
        every: Any = loader.evaluation_batches(records, settings, max_batches=todo, plan=plan)
        with contextlib.closing(every):
            for batch in progress_bar(every, desc="loss", unit="batch", total=todo, enabled=progress):
                dispatched = evaluate(params, sharding.put_batch(mesh, batch))
                # The devices work on this batch while the sums of the one before are fetched.
                if in_flight is not None:
                    totals.add(jax.device_get(in_flight))
                in_flight = dispatched
        if in_flight is not None:
            totals.add(jax.device_get(in_flight))
    return {
        "workdir": workdir.resolve().name,
        "step": used,
        "corpus": corpus,
        "corpus_fingerprint": opened.fingerprint,
        "split": split,
        "batches": todo,
        "batch_rows": settings.batch_rows,
        "loss": _finite(totals.loss),
        "bits_per_event": _finite(totals.bits_per_event),
        "tokens": totals.tokens,
        "loss_by_kind": {kind: _finite(value) for kind, value in totals.loss_by_kind.items()},
        "tokens_by_kind": {kind: int(count) for kind, count in zip(KINDS, totals.tokens_K, strict=True) if count},
        "loss_by_source": {name: _finite(own.loss) for name, own in totals.by_source.items()},
        "tokens_by_source": {name: own.tokens for name, own in totals.by_source.items()},
    }


def _refuse_other_vocabulary(name: str, corpus: Corpus | Mixture, vocabulary: Vocabulary) -> None:
    if corpus.vocabulary.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"has vocabulary {corpus.vocabulary.fingerprint[:12]}, and the model was trained with "
            f"{vocabulary.fingerprint[:12]}",
            where=f"corpus {name}",
            fix="build it with the vocabulary of the corpus that the model was trained on (--vocabulary)",
        )


def _mesh(rows: int) -> Mesh:
    """As many local devices as the rows of a batch divide among; training's default shares rows alike."""
    devices = jax.local_devices()
    count = max(count for count in range(1, len(devices) + 1) if rows % count == 0)
    return sharding.make_mesh(configs.default_config().mesh, devices[:count])


def _runnable(model: ModelConfig) -> ModelConfig:
    """With the run's attention, or the platform's own where that cannot run here; the log says so."""
    try:
        attention.resolve(model.attention, model.attention_heads)
    except UserError as error:
        logging.warning("%s; taken here: %s", error, attention.resolve(attention.AUTO, model.attention_heads))
        return dataclasses.replace(model, attention=attention.AUTO)
    return model


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def text_table(result: Mapping[str, Any]) -> str:
    """The short table for a terminal, the most frequent kinds first."""

    def line(name: str, value: float | None, tokens: int) -> str:
        return f"{name:<24}{'-' if value is None else format(value, '.4f'):>12}{tokens:>16,}"

    kinds = sorted(result["tokens_by_kind"].items(), key=lambda kind: -kind[1])
    bits = result["bits_per_event"]
    return "\n".join(
        [
            f"{result['workdir']}, step {result['step']}, on the {result['split']} split of {result['corpus']}",
            f"{'':<24}{'nats/token':>12}{'tokens':>16}",
            line("all", result["loss"], result["tokens"]),
            *(line(name, result["loss_by_source"][name], n) for name, n in result["tokens_by_source"].items()),
            *(line(kind, result["loss_by_kind"][kind], tokens) for kind, tokens in kinds),
            f"{'bits per event':<24}{'-' if bits is None else format(bits, '.3f'):>12}",
        ]
    )


def _refuse_unwritable(out: pathlib.Path) -> None:
    """Before anything is computed."""
    if out.exists():
        raise UserError("is there already", where=str(out), fix="give another --out, or remove it")
    if not out.parent.is_dir():
        raise UserError("is no folder", where=str(out.parent), fix="make it, or give another --out")


def _write(out: pathlib.Path, result: Mapping[str, Any]) -> None:
    try:
        workdirs.write_json(out, result)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(out), fix="check space and rights"
        ) from error


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run, with its checkpoints", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_string("corpus", None, "a build's folder or URL, or a mixture FOLDER=1,FOLDER=1", required=True)
    flags.DEFINE_string("split", "tuning", "split of the corpus: tuning, held_out or train")
    flags.DEFINE_integer("batches", 0, "batches to look at; 0 = the whole split", lower_bound=0)
    flags.DEFINE_integer("batch_rows", 0, "rows in a batch; 0 = as in training; fewer take less memory", lower_bound=0)
    flags.DEFINE_string("out", None, "file for the JSON; must be new")


def main() -> None:
    """Tell the loss as the flags say."""
    values = flags.FLAGS
    out = pathlib.Path(values.out) if values.out else None
    if out:
        _refuse_unwritable(out)
    compile_cache.turn_on()
    cpu_devices.show_cores()
    result = loss(
        pathlib.Path(values.workdir),
        values.corpus,
        split=values.split,
        step=values.step,
        batches=values.batches,
        batch_rows=values.batch_rows,
    )
    if out:
        _write(out, result)
    print(text_table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
