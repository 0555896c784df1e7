"""Simulation as a job that survives being killed: finished prompts are kept, and never drawn again.

While the job is not finished its folder (`cometjax.job_folder`) holds

    job.json    a hash of everything that decides the futures: weights, vocabulary, prompts, settings
    parts/      the finished prompts (`cometjax.finished_prompts`)

A job that starts again reads the parts and draws what they lack, and so does one whose prompts several processes draw.
Futures do not depend on what is drawn beside them (`cometjax.engine`), so the result is the same to the bit.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from cometjax import engine
from cometjax.finished_prompts import Finished, FinishedPrompts
from cometjax.futures import Future, Prompt, SimulationConfig, start_of
from cometjax.job_folder import EVERYTHING, Part
from cometjax.model import Decoder
from data_pipeline.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Job:
    """Futures of these prompts, kept in a folder as they finish."""

    model: Decoder
    vocabulary: Vocabulary
    prompts: Sequence[Prompt]
    config: SimulationConfig

    def identity(self) -> dict[str, Any]:
        """Everything that decides the futures."""
        return {
            "weights": hash_of_weights(self.model),
            "vocabulary": self.vocabulary.fingerprint,
            "prompts": hash_of_prompts(self.prompts, self.vocabulary, self.config),
            "settings": settings(self.config),
        }

    def draw(self, folder: pathlib.Path, part: Part, *, progress: bool) -> int:
        """Draw a part's share, and keep it; how many futures were drawn."""
        finished = self._finished(folder, part)
        return self._draw(finished, part.share(sizes(self.prompts, self.config)), progress)

    def finish(self, folder: pathlib.Path, *, progress: bool) -> tuple[list[Future], int]:
        """(all futures in order of prompts and samples, how many of them this call has drawn)."""
        finished, every = self._finished(folder, EVERYTHING), range(len(self.prompts))
        drawn = self._draw(finished, every, progress)
        return [future for index in every for future in finished.by_index[index].futures], drawn

    def _finished(self, folder: pathlib.Path, part: Part) -> FinishedPrompts:
        return FinishedPrompts(folder / "parts", self.prompts, part.writer)

    def _draw(self, finished: FinishedPrompts, indices: Iterable[int], progress: bool) -> int:
        samples = self.config.samples
        remaining = [index for index in indices if index not in finished.by_index]
        drawn = engine.iter_futures(
            self.model, self.vocabulary, [self.prompts[index] for index in remaining], self.config, progress=progress
        )
        for at, futures in drawn:
            finished.add(remaining[at], Finished(futures, np.empty((samples, 0)), np.empty((samples, 0), bool)))
        finished.flush()
        return len(remaining) * samples


def sizes(prompts: Sequence[Prompt], config: SimulationConfig) -> list[int]:
    """Each prompt's tokens: what it costs, as far as can be told before."""
    return [len(prompt.tokens(config.max_prompt_tokens)) for prompt in prompts]


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
