"""Simulation as a job that survives being killed: finished prompts are kept, and never drawn again.

Beside the output folder OUT stands `.OUT.job` while the job is not finished:

    job.json    a hash of everything that decides the futures: weights, vocabulary, prompts, settings
    parts/      the finished prompts (`cometjax.finished_prompts`)

A job that starts again reads the parts and draws what they lack. Futures do not depend on what is drawn beside them
(`cometjax.engine`), so the result is the same to the bit.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from cometjax import engine
from cometjax.finished_prompts import Finished, FinishedPrompts, write_whole
from cometjax.futures import Future, Prompt, SimulationConfig, start_of
from cometjax.model import Decoder
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary


class Job:
    """The unfinished job of an output folder.

    Raises UserError: the folder holds a job of other settings, prompts or weights, or cannot be written.
    """

    def __init__(
        self,
        out: pathlib.Path,
        model: Decoder,
        vocabulary: Vocabulary,
        prompts: Sequence[Prompt],
        config: SimulationConfig,
    ) -> None:
        self.folder = folder_of(out)
        self.model, self.vocabulary, self.prompts, self.config = model, vocabulary, prompts, config
        identity = {
            "weights": hash_of_weights(model),
            "vocabulary": vocabulary.fingerprint,
            "prompts": hash_of_prompts(prompts, vocabulary, config),
            "settings": settings(config),
        }
        file = self.folder / "job.json"
        if not file.exists():
            write_whole(file, lambda path: path.write_text(json.dumps(identity) + "\n"))
        elif (known := json.loads(file.read_text())) != identity:
            differing = ", ".join(name for name in identity if known.get(name) != identity[name])
            raise UserError(
                f"an unfinished simulation of other {differing} is there",
                where=str(self.folder),
                fix="give the same again to finish it, another --out, or remove that folder",
            )
        self._finished = FinishedPrompts(self.folder / "parts", prompts)

    def finish(self, *, progress: bool) -> tuple[list[Future], int]:
        """(all futures in order of prompts and samples, how many of them an earlier start had drawn)."""
        finished, samples = self._finished, self.config.samples
        resumed = len(finished.by_index) * samples
        remaining = [index for index in range(len(self.prompts)) if index not in finished.by_index]
        drawn = engine.iter_futures(
            self.model, self.vocabulary, [self.prompts[index] for index in remaining], self.config, progress=progress
        )
        for at, futures in drawn:
            finished.add(remaining[at], Finished(futures, np.empty((samples, 0)), np.empty((samples, 0), bool)))
        finished.flush()
        return [future for index in range(len(self.prompts)) for future in finished.by_index[index].futures], resumed

    def remove(self) -> None:
        """Remove the folder, once the output is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(out: pathlib.Path) -> pathlib.Path:
    """Where the unfinished job of an output folder is kept."""
    return out.with_name(f".{out.name}.job")


def hash_of_weights(model: Decoder) -> str:
    """SHA-256 of a model's configuration and parameters."""
    weights = hashlib.sha256(repr(model.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param)):
        weights.update(jax.tree_util.keystr(path).encode())
        weights.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return weights.hexdigest()


def hash_of_prompts(prompts: Sequence[Prompt], vocabulary: Vocabulary, config: SimulationConfig) -> str:
    """SHA-256 of who is asked, when, and what the model sees of them."""
    asked = hashlib.sha256()
    for prompt in prompts:
        start = start_of(prompt, vocabulary, config.max_prompt_tokens)
        header = (prompt.subject_id, prompt.prediction_time_us, start.clock, start.first_interval, start.state)
        asked.update(repr(header).encode() + start.tokens_T.tobytes())
    return asked.hexdigest()


def settings(config: SimulationConfig) -> dict[str, Any]:
    """Of the settings those that decide the futures; speeds (batch size, chunks) are none of it."""
    speeds = ("batch_rows", "chunk_steps", "pool_batches")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in speeds}
