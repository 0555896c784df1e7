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
from data_pipeline.mixture import is_there, open_corpus


def losses(config: Any, records: Sequence[Mapping[str, Any]], step: int, progress: bool) -> dict[str, Any]:
    """The model's tuning loss, and the count models' on the very same targets where the corpus is still there; of a
    world's corpus the floor too."""
    tuning = [record for record in records if record["split"] == "tuning" and record["step"] <= step]
    found = {"tuning_loss": tuning[-1]["loss"], "tuning_step": tuning[-1]["step"]} if tuning else {}
    if not is_there(config.corpus):
        return found
    corpus = open_corpus(config.corpus)
    if tuning:
        found |= world_truth.loss_floor(corpus, tuning[-1], progress=progress)
    settings = loader.LoaderConfig(config.train.batch_rows, config.train.row_length, config.seed)
    # A finished run's last evaluation is of the whole split, the ones before of eval_batches.
    is_whole = found.get("tuning_step") == config.train.steps
    batches = None if is_whole else config.train.eval_batches or None
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
    corpus_file = work / workdir.CORPUS
    return {
        "workdir": work.resolve().name,
        "step": step,
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "config": config.to_dict(),
        "corpus_fingerprint": workdir.read_json(corpus_file)["fingerprint"] if corpus_file.is_file() else None,
        "dataset": {"name": dataset.name, "version": dataset.version, "subjects": len(dataset.splits)},
        "options": dict(options),
    }


def describe_simulation(simulations: Mapping[str, risks_module.Simulation], wall_s: float) -> dict[str, Any]:
    """How much was simulated, how fast, and why futures ended."""
    futures = [future for simulation in simulations.values() for future in simulation.futures]
    tokens = sum(simulation.tokens for simulation in simulations.values())
    return {
        "prompts": len({(future.subject_id, future.prediction_time_us) for future in futures}),
        "futures": len(futures),
        "tokens": tokens,
        "wall_s": wall_s,
        "tokens_per_second": tokens / wall_s,
        "stops": dict(sorted(Counter(future.stop for future in futures).items())),
    }


def count_parameters(model: Any) -> int:
    """Of the decoder."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
