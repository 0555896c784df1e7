"""Simulation as a job that survives being killed: finished prompts are kept, and never drawn again.

Beside the output folder OUT stands `.OUT.job` while the job is not finished:

    job.json             a hash of everything that decides the futures: weights, vocabulary, prompts, settings
    parts/NNNNNN.parquet futures of finished prompts, as tokens; each written whole under another name, then renamed

A job that starts again reads the parts and draws what they lack. Futures do not depend on what is drawn beside them
(`cometjax.engine`), so the result is the same to the bit.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import polars as pl
from flax import nnx

from cometjax import engine
from cometjax.futures import Future, Prompt, SimulationConfig, start_of
from cometjax.model import Decoder
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

# A part holds the prompts that finished within so many seconds: what a kill may cost.
PART_SECONDS = 30.0
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "prompt": pl.Int64,
    "sample": pl.Int64,
    "stop": pl.String,
    "start_seconds": pl.Int64,
    "tokens": pl.List(pl.Int32),
}


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
        self.folder = out.with_name(f".{out.name}.job")
        self.model, self.vocabulary, self.prompts, self.config = model, vocabulary, prompts, config
        identity = _identity(model, vocabulary, prompts, config)
        file = self.folder / "job.json"
        if not file.exists():
            (self.folder / "parts").mkdir(parents=True, exist_ok=True)
            _write_whole(file, lambda path: path.write_text(json.dumps(identity) + "\n"))
        elif (known := json.loads(file.read_text())) != identity:
            differing = ", ".join(name for name in identity if known.get(name) != identity[name])
            raise UserError(
                f"an unfinished simulation of other {differing} is there",
                where=str(self.folder),
                fix="give the same again to finish it, another --out, or remove that folder",
            )

    def finish(self, *, progress: bool) -> tuple[list[Future], int]:
        """(all futures in order of prompts and samples, how many of them an earlier start had drawn)."""
        finished = dict(self._read_parts())
        resumed = len(finished) * self.config.samples
        remaining = [index for index in range(len(self.prompts)) if index not in finished]
        part, began = {}, time.monotonic()
        written = began
        drawn = engine.iter_futures(
            self.model, self.vocabulary, [self.prompts[index] for index in remaining], self.config, progress=progress
        )
        for done, (at, futures) in enumerate(drawn, 1):
            part[remaining[at]] = futures
            if time.monotonic() - written >= PART_SECONDS:
                self._write_part(part)
                finished |= part
                part, written = {}, time.monotonic()
                if progress and not sys.stderr.isatty():  # where there is no bar
                    left = (written - began) / done * (len(remaining) - done)
                    print(
                        f"simulate: {len(finished):,} of {len(self.prompts):,} prompts, about {left / 60:.0f} min left",
                        file=sys.stderr,
                        flush=True,
                    )
        if part:
            self._write_part(part)
        finished |= part
        return [future for index in range(len(self.prompts)) for future in finished[index]], resumed

    def remove(self) -> None:
        """Remove the folder, once the output is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_part(self, part: dict[int, list[Future]]) -> None:
        rows = [
            (index, future.sample, future.stop, future.start_seconds, future.tokens_T.tolist())
            for index, futures in part.items()
            for future in futures
        ]
        number = sum(1 for _ in (self.folder / "parts").glob("*.parquet"))
        table = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        _write_whole(self.folder / "parts" / f"{number:06d}.parquet", table.write_parquet)

    def _read_parts(self) -> Iterator[tuple[int, list[Future]]]:
        for path in sorted((self.folder / "parts").glob("*.parquet")):
            by_prompt: dict[int, list[Future]] = {}
            for index, sample, stop, start_seconds, tokens in pl.read_parquet(path).iter_rows():
                prompt = self.prompts[index]
                tokens_T = np.array(tokens, np.int32)
                future = Future(prompt.subject_id, prompt.prediction_time_us, sample, tokens_T, stop, start_seconds)
                by_prompt.setdefault(index, []).append(future)
            yield from by_prompt.items()


def _write_whole(path: pathlib.Path, write: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(path), fix="check space and rights; then start again"
        ) from error


def _identity(
    model: Decoder, vocabulary: Vocabulary, prompts: Sequence[Prompt], config: SimulationConfig
) -> dict[str, Any]:
    """Hashes of what decides the futures; speeds (batch size, chunks) are none of it."""
    weights, asked = hashlib.sha256(repr(model.config).encode()), hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param)):
        weights.update(jax.tree_util.keystr(path).encode())
        weights.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    for prompt in prompts:
        start = start_of(prompt, vocabulary, config.max_prompt_tokens)
        header = (prompt.subject_id, prompt.prediction_time_us, start.clock, start.first_interval, start.state)
        asked.update(repr(header).encode() + start.tokens_T.tobytes())
    settings = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("batch_rows", "chunk_steps", "pool_batches")
    }
    return {
        "weights": weights.hexdigest(),
        "vocabulary": vocabulary.fingerprint,
        "prompts": asked.hexdigest(),
        "settings": settings,
    }
