"""Decoding by key/value cache against full re-computation: the same tokens, and how much faster.

    python benchmarks/decode.py

The same prompts, samples and random numbers twice: by `cometjax.engine`, and by running the whole sequence through the
Decoder for each new token (one jitted function of a static shape). The tokens must be identical. Prints one JSON object
as its last line. Compilation is left out of both times. Takes about a minute on two CPU cores; expect a ratio well over
the bar of 10.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax import decoding, engine
from cometjax.model import INIT_STDDEV, Decoder, ModelConfig, num_parameters
from data_pipeline import code_maps, intervals
from data_pipeline.vocabulary import Token, Vocabulary

NEW_TOKENS = 512
BAR = 10.0
MODEL = ModelConfig(
    vocab_size=512, layers=4, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=256, tied_embeddings=False
)


@dataclasses.dataclass(frozen=True)
class RandomPrompt:
    """A prompt of given tokens, as far as the engine reads one."""

    subject_id: int
    prompt_T: np.ndarray
    prediction_time_us: int = 0
    last_time_us: int = 0

    def tokens(self, max_tokens: int) -> np.ndarray:
        """All of its tokens."""
        assert len(self.prompt_T) <= max_tokens
        return self.prompt_T


def endless_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of ordinary tokens and one-minute intervals: nothing ends a future but its length."""
    preset = intervals.COMET13
    tokens = [Token("PAD", "SPECIAL", "pad")]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in preset.names]
    tokens += [Token(f"OTHER//{index}", "OTHER", "first") for index in range(size - len(tokens))]
    return Vocabulary(tuple(tokens), (), preset, (60.0,) * len(preset.names), code_maps.named("generic"))


def lively_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """A random decoder with weights large enough for every token to depend on the whole history."""
    graph, weights = nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))
    # Logits with a standard deviation of about 2; layers that change the residual stream by as much as it is.
    of_tokens, of_layers = 2 / (INIT_STDDEV * config.width**0.5), 1 / (INIT_STDDEV * config.width**0.5)
    scale = {2: of_tokens, 3: of_layers, 4: of_layers}
    lively = jax.tree.map(lambda weight: weight * scale.get(weight.ndim, 1) if weight.std() > 0 else weight, weights)
    return nnx.merge(graph, lively)


@functools.partial(jax.jit, static_argnames="graph")
def _next_tokens(
    graph: Any,
    weights: Any,
    table: decoding.TokenTable,
    tokens_RxL: jax.Array,
    length_R: jax.Array,
    uniform_R: jax.Array,
    temperature: jax.Array,
    first_interval_R: jax.Array,
) -> jax.Array:
    ones_RxL = jnp.ones_like(tokens_RxL)
    logits_RxLxV = nnx.merge(graph, weights)(tokens_RxL, ones_RxL, jnp.cumsum(ones_RxL, 1) - 1)
    logits_RxV = jnp.take_along_axis(logits_RxLxV, length_R[:, None, None] - 1, 1)[:, 0]
    return decoding.draw(decoding.token_probabilities(logits_RxV, table, temperature, first_interval_R), uniform_R)


def recompute(
    model: Decoder, vocabulary: Vocabulary, prompts: Sequence[Any], config: engine.SimulationConfig, new_tokens: int
) -> np.ndarray:
    """Draw tokens for each sample without any cache, stopping for none: [prompts x samples, new_tokens].

    The rows are as long as config.max_new_tokens asks, so that the compiled function is one for any `new_tokens`.
    """
    graph, weights = nnx.split(model)
    table = decoding.token_table(vocabulary, stop_at_timeline_end=config.stop_at_timeline_end, answers=frozenset())
    starts = [engine.start_of(prompt, vocabulary, config.max_prompt_tokens) for prompt in prompts]
    longest = max(len(start.tokens_T) for start in starts)
    tokens_RxL = np.zeros((len(prompts) * config.samples, longest + config.max_new_tokens), np.int32)
    for row in range(len(tokens_RxL)):
        tokens_T = starts[row // config.samples].tokens_T
        tokens_RxL[row, : len(tokens_T)] = tokens_T
    length_R = np.repeat([len(start.tokens_T) for start in starts], config.samples)
    first_R = np.repeat([start.first_interval for start in starts], config.samples)
    rows_R = np.arange(len(tokens_RxL))
    keys = engine.sample_keys(config.seed, prompts, config.samples).reshape(-1, 2)
    uniform_RxT = decoding.uniforms(keys, np.broadcast_to(np.arange(new_tokens), (len(keys), new_tokens)))
    for step in range(new_tokens):
        at_R = length_R + step
        drawn = _next_tokens(
            graph,
            weights,
            table,
            tokens_RxL,
            at_R,
            uniform_RxT[:, step],
            np.float32(config.temperature),
            first_R if step == 0 else np.full_like(first_R, -1),
        )
        tokens_RxL[rows_R, at_R] = drawn
    return np.stack([tokens_RxL[row, length_R[row] :][:new_tokens] for row in rows_R])


def main() -> None:
    """Measure and print."""
    random = np.random.default_rng(0)
    vocabulary = endless_vocabulary(MODEL.vocab_size)
    model = lively_model(MODEL)
    prompts = [
        RandomPrompt(subject, random.integers(1, MODEL.vocab_size, length).astype(np.int32))
        for subject, length in enumerate((40, 64))
    ]
    config = engine.SimulationConfig(samples=2, horizon_seconds=2.0**29, max_new_tokens=NEW_TOKENS, batch_rows=4)
    engine.simulate_futures(model, vocabulary, prompts, config)  # compiles
    began = time.perf_counter()
    futures = engine.simulate_futures(model, vocabulary, prompts, config)
    cached_seconds = time.perf_counter() - began
    cached_RxT = np.stack([future.tokens_T for future in futures])

    recompute(model, vocabulary, prompts, config, new_tokens=1)
    began = time.perf_counter()
    full_RxT = recompute(model, vocabulary, prompts, config, NEW_TOKENS)
    full_seconds = time.perf_counter() - began
    np.testing.assert_array_equal(cached_RxT, full_RxT)
    ratio = full_seconds / cached_seconds
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "device": jax.devices()[0].device_kind,
                "parameters": num_parameters(MODEL),
                "futures": len(futures),
                "new_tokens": NEW_TOKENS,
                "cached_tokens_per_s": round(cached_RxT.size / cached_seconds, 1),
                "recomputed_tokens_per_s": round(full_RxT.size / full_seconds, 1),
                "cached_seconds": round(cached_seconds, 3),
                "recomputed_seconds": round(full_seconds, 3),
                "ratio": round(ratio, 2),
                "bar": BAR,
                "passed": ratio >= BAR,
                "identical_tokens": True,
            }
        )
    )


if __name__ == "__main__":
    main()
