"""What results.json says of the run that is evaluated: its losses, its speed, its settings, and the simulation."""

import datetime
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from cometjax import ngrams, workdir, world_truth
from cometjax import risks as risks_module
from data_pipeline import loader, meds
from data_pipeline.errors import UserError
from data_pipeline.mixture import is_there, open_corpus

_SAY_WHERE = "--corpus says where it is"


def refuse_other_corpus(work: pathlib.Path, corpus: str) -> None:
    """Raise UserError unless this is the corpus that a run was trained on."""
    given, trained = open_corpus(corpus).fingerprint, _fingerprint(work)
    if given != trained:
        raise UserError(
            f"has fingerprint {given[:12]}, and the run was trained on {str(trained)[:12]}",
            where=f"corpus {corpus}",
            fix="give the corpus that the run was trained on, or none",
        )


def losses(
    work: pathlib.Path, config: Any, records: Sequence[Mapping[str, Any]], step: int, corpus_at: str, progress: bool
) -> dict[str, Any]:
    """The model's tuning loss, and the count models' on the very same targets; of a world's corpus the floor too.

    `corpus_at`: where the run's corpus is; "": where its configuration says. A relative path counts from the present
    folder, which may not be the one that training was started in. Where no corpus is there, or another, neither count
    models nor floor can be told: `corpus_reason` says so.
    """
    tuning = [record for record in records if record["split"] == "tuning" and record["step"] <= step]
    found = {"tuning_loss": tuning[-1]["loss"], "tuning_step": tuning[-1]["step"]} if tuning else {}
    names = corpus_at or config.corpus
    if not is_there(names):
        return found | {"corpus_reason": f"no corpus is at {names} (seen from {pathlib.Path.cwd().name}); {_SAY_WHERE}"}
    corpus = open_corpus(names)
    if corpus.fingerprint != _fingerprint(work):
        return found | {"corpus_reason": f"another corpus is at {names} than the run was trained on; {_SAY_WHERE}"}
    if tuning:
        found |= world_truth.loss_floor(corpus, tuning[-1], progress=progress)
    settings = loader.LoaderConfig(config.train.batch_rows, config.train.row_length, config.seed)
    is_last = found.get("tuning_step") == config.train.steps
    # Runs of older versions have no such key: their last evaluation was of the whole split.
    batches = (config.train.get("last_eval_batches", 0) if is_last else config.train.eval_batches) or None
    return found | ngrams.ngram_losses(
        loader.evaluation_batches(corpus.split("train"), settings),
        loader.evaluation_batches(corpus.split("tuning"), settings, max_batches=batches),
        len(corpus.vocabulary),
    )


def training_speed(records: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """Median over the logged steps, the first (with compilation) left out."""
    speeds = [r["tokens_per_second"] for r in records if r["split"] == "train" and r["step"] <= step][1:]
    return {"tokens_per_second": float(np.median(speeds))} if speeds else {}


def describe_run(
    work: pathlib.Path, config: Any, step: int, dataset: meds.MedsDataset, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The training run, its data and how it was evaluated."""
    return {
        "workdir": work.resolve().name,
        "step": step,
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "config": config.to_dict(),
        "corpus_fingerprint": _fingerprint(work),
        "dataset": {"name": dataset.name, "version": dataset.version, "subjects": len(dataset.splits)},
        "options": dict(options),
    }


def _fingerprint(work: pathlib.Path) -> str | None:
    """Of the corpus that a run was trained on."""
    path = work / workdir.CORPUS
    return str(workdir.read_json(path)["fingerprint"]) if path.is_file() else None


def describe_simulation(simulations: Mapping[str, risks_module.Simulation], wall_s: float) -> dict[str, Any]:
    """How much was simulated, how fast, and why futures ended. `wall_s` is the time of this start, `tokens_per_second`
    of what it drew itself; None where an earlier start had drawn all."""
    futures = [future for simulation in simulations.values() for future in simulation.futures]
    tokens = sum(simulation.tokens for simulation in simulations.values())
    new_tokens = sum(simulation.new_tokens for simulation in simulations.values())
    return {
        "prompts": len({(future.subject_id, future.prediction_time_us) for future in futures}),
        "futures": len(futures),
        "tokens": tokens,
        "wall_s": wall_s,
        "tokens_per_second": new_tokens / wall_s if new_tokens else None,
        "stops": dict(sorted(Counter(future.stop for future in futures).items())),
    }


def count_parameters(model: Any) -> int:
    """Of the decoder."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
