"""Decoding against Hugging Face `generate`, and against full re-computation.

    python -m benchmarks.decode [1M | 8M | L ...]

Rival: transformers' Qwen2 with the same weights (`cometjax.huggingface`), key/value cache and sampling from the whole
distribution, 16 samples of each of 4 prompts, 256 + 256 tokens; its batch is the faster of all prompts at once and one
prompt at a time. The two take turns on the same device, three times; medians count, compilation does not. On a CPU: in
float32, models of 1M and 8M parameters; on an accelerator: in bfloat16, CoMET-L; or those named. The smaller ratio is
the figure. Needs torch (on a GPU with CUDA) and transformers (extra "parity"); where they are missing the benchmark
says so and has no ratio.

Bound, on a chip of cometjax/chips.py: the time to read the weights, each prompt's keys and values and each sample's own
once a step, at the chip's memory bandwidth.

Floor: the whole sequence through the Decoder for each new token. The tokens must be identical.

Prints one JSON object as its last line; takes some minutes on two CPU cores.
"""

import dataclasses
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax import chips, decoding, engine, grammar_states, huggingface
from cometjax.model import INIT_STDDEV, Decoder, ModelConfig, num_parameters
from data_pipeline import code_maps, intervals
from data_pipeline.vocabulary import PREFIX_LENGTH, Token, Vocabulary
from experiments.configs import comet_l

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 4, 16, 256, 256, 3
BAR = 3.0
BANDWIDTH_BAR = 0.6
MODELS = {
    "1M": ModelConfig(vocab_size=512, layers=4, width=128, heads=4, kv_heads=2, head_dim=32, mlp_width=512),
    "8M": ModelConfig(vocab_size=2048, layers=6, width=256, heads=8, kv_heads=4, head_dim=32, mlp_width=1024),
}
RECOMPUTED = ModelConfig(
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

    def prefix_before(self, tokens: int) -> np.ndarray:
        """What it begins with."""
        return self.prompt_T[:PREFIX_LENGTH]

    def prefix_after(self, seconds: int, vocabulary: Vocabulary) -> np.ndarray:
        """What it begins with."""
        return self.prompt_T[:PREFIX_LENGTH]


def endless_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of ordinary tokens and one-minute intervals: nothing ends a future but its length."""
    preset = intervals.COMET13
    tokens = [Token("PAD", "SPECIAL", "pad")]
    tokens += [Token(f"INTERVAL//{name}", "INTERVAL", "interval") for name in preset.names]
    tokens += [Token(f"OTHER//{index}", "OTHER", "first") for index in range(size - len(tokens))]
    return Vocabulary(tuple(tokens), (), preset, (60.0,) * len(preset.names), code_maps.named("generic"))


def lively_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """A random decoder with weights large enough for every token to depend on the whole history."""
    # Logits with a standard deviation of about 2; layers that change the residual stream by as much as it is.
    of_tokens, of_layers = 2 / (INIT_STDDEV * config.width**0.5), 1 / (INIT_STDDEV * config.width**0.5)
    scale = {2: of_tokens, 3: of_layers, 4: of_layers}
    initial = lambda: Decoder(config, rngs=nnx.Rngs(seed))  # noqa: E731

    def lively(weight: jax.Array) -> jax.Array:
        return jnp.where(weight.std() > 0, weight * scale.get(weight.ndim, 1), weight)

    # For once, LLVM need not try hard.
    hurried = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    weights = jax.jit(lambda: jax.tree.map(lively, nnx.state(initial())), compiler_options=hurried)()
    return nnx.merge(nnx.graphdef(nnx.eval_shape(initial)), weights)


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
    elapsed_R: jax.Array,
    possible_RxV: jax.Array,
) -> jax.Array:
    ones_RxL = jnp.ones_like(tokens_RxL)
    logits_RxLxV = nnx.merge(graph, weights)(tokens_RxL, ones_RxL, jnp.cumsum(ones_RxL, 1) - 1)
    logits_RxV = jnp.take_along_axis(logits_RxLxV, length_R[:, None, None] - 1, 1)[:, 0]
    probability_RxV = decoding.token_probabilities(
        logits_RxV, table, temperature, first_interval_R, elapsed_R, possible_RxV
    )
    return decoding.draw(probability_RxV, uniform_R)


def recompute(
    model: Decoder, vocabulary: Vocabulary, prompts: Sequence[Any], config: engine.SimulationConfig, new_tokens: int
) -> np.ndarray:
    """Draw tokens for each sample without any cache, stopping for none: [prompts x samples, new_tokens].

    Keeps the grammar where config.grammar asks for it. The rows are as long as config.max_new_tokens asks, so that the
    compiled function is one for any `new_tokens`.
    """
    graph, weights = nnx.split(model)
    table = decoding.token_table(vocabulary, timeline_end="never")
    starts = [engine.start_of(prompt, vocabulary, config.max_prompt_tokens) for prompt in prompts]
    longest = max(len(start.tokens_T) for start in starts)
    tokens_RxL = np.zeros((len(prompts) * config.samples, longest + config.max_new_tokens), np.int32)
    for row in range(len(tokens_RxL)):
        tokens_T = starts[row // config.samples].tokens_T
        tokens_RxL[row, : len(tokens_T)] = tokens_T
    length_R = np.repeat([len(start.tokens_T) for start in starts], config.samples)
    first_R = np.repeat([start.first_interval for start in starts], config.samples)
    elapsed_R = np.repeat([-start.clock for start in starts], config.samples)
    rows_R = np.arange(len(tokens_RxL))
    keys = engine.sample_keys(config.seed, prompts, config.samples).reshape(-1, 2)
    uniform_RxT = decoding.uniforms(keys, np.broadcast_to(np.arange(new_tokens), (len(keys), new_tokens)))
    states = grammar_states.build_states(vocabulary) if config.grammar else None
    state_R = np.repeat([start.state for start in starts], config.samples)
    possible_RxV = np.ones((len(tokens_RxL), len(vocabulary)), bool)
    for step in range(new_tokens):
        if states is not None:
            possible_RxV = states.possible(state_R)
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
            elapsed_R,
            possible_RxV,
        )
        if states is not None:
            state_R = states.after(state_R, drawn)
        tokens_RxL[rows_R, at_R] = drawn
    return np.stack([tokens_RxL[row, length_R[row] :][:new_tokens] for row in rows_R])


def recomputation() -> dict[str, Any]:
    """Cached and re-computed decoding of two prompts: speeds, once the tokens are found to be the same."""
    vocabulary, model = endless_vocabulary(RECOMPUTED.vocab_size), lively_model(RECOMPUTED)
    prompts = _prompts((40, 64), RECOMPUTED.vocab_size)
    config = engine.SimulationConfig(samples=2, horizon_seconds=2.0**29, max_new_tokens=NEW_TOKENS, batch_rows=4)
    engine.simulate_futures(model, vocabulary, prompts, config)  # compiles
    cached_s, futures = _timed(lambda: engine.simulate_futures(model, vocabulary, prompts, config))
    recompute(model, vocabulary, prompts, config, new_tokens=1)  # compiles
    full_s, full_RxT = _timed(lambda: recompute(model, vocabulary, prompts, config, NEW_TOKENS))
    np.testing.assert_array_equal(np.stack([future.tokens_T for future in futures]), full_RxT)
    return {
        "identical_tokens": True,
        "cached_tokens_per_s": round(full_RxT.size / cached_s, 1),
        "recomputed_tokens_per_s": round(full_RxT.size / full_s, 1),
        "ratio": round(full_s / cached_s, 2),
    }


def shape_of(name: str) -> ModelConfig:
    """One of MODELS, or CoMET-L with the paper's vocabulary."""
    return ModelConfig.from_config(comet_l.get_config().model, 7105) if name == "L" else MODELS[name]


def measure(shape: ModelConfig, with_rival: bool) -> dict[str, Any]:
    """The engine's tokens per second, beside the memory's bound, and in turns with `generate` on the same prompts."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    shape = dataclasses.replace(shape, compute_dtype=dtype, scan_layers=False)
    vocabulary, model = endless_vocabulary(shape.vocab_size), lively_model(shape)
    prompts = _prompts([PROMPT_TOKENS] * PROMPTS, shape.vocab_size)
    rows = PROMPTS * SAMPLES // min(PROMPTS, len(engine.default_devices()))
    config = engine.SimulationConfig(
        samples=SAMPLES, horizon_seconds=2.0**29, max_new_tokens=NEW_TOKENS, batch_rows=rows
    )
    ours = functools.partial(engine.simulate_futures, model, vocabulary, prompts, config)
    ours()  # compiles
    turns = [ours]
    result: dict[str, Any] = {"parameters": num_parameters(shape)}
    if with_rival:
        rival = _generate(model)
        prompt_BxL = np.stack([prompt.prompt_T for prompt in prompts])
        # Of whole runs: the first tokens, before attention has much to read, favour the other.
        trials = {batch: _timed(lambda: rival(prompt_BxL, batch, NEW_TOKENS))[0] for batch in (1, PROMPTS)}  # noqa: B023
        at_once = min(trials, key=lambda batch: trials[batch])
        turns.append(lambda: rival(prompt_BxL, at_once, NEW_TOKENS))
        result["generate_prompts_at_once"] = at_once
    seconds = []
    for _ in range(ROUNDS):
        seconds.append([_timed(turn)[0] for turn in turns])
        print(f"{num_parameters(shape):,} parameters: {seconds[-1][0]:.2f} s, generate {seconds[-1][1:]}", flush=True)
    ours_s, *rival_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    tokens = PROMPTS * SAMPLES * NEW_TOKENS
    result |= {
        "tokens_per_s": round(tokens / ours_s, 1),
        "seconds": [[round(value, 2) for value in turn] for turn in seconds],
        "bound_share": _share_of_bound(shape, ours_s),
    }
    if rival_s:
        result |= {"generate_tokens_per_s": round(tokens / rival_s[0], 1), "ratio": round(rival_s[0] / ours_s, 2)}
    return result


def _share_of_bound(shape: ModelConfig, seconds: float) -> float | None:
    chip = chips.of_device_kind(jax.devices()[0].device_kind)
    if chip is None:
        return None
    return round(least_bytes(shape, len(engine.default_devices())) / chip.hbm_bandwidth / seconds, 3)


def least_bytes(shape: ModelConfig, devices: int = 1) -> float:
    """What each of `devices` must read in NEW_TOKENS steps: each time the weights, its share of the prompts' keys and
    values, and of what samples added."""
    itemsize = jnp.dtype(shape.compute_dtype).itemsize
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize
    cached_tokens = PROMPTS * PROMPT_TOKENS + PROMPTS * SAMPLES * (NEW_TOKENS - 1) / 2  # on average
    return float(NEW_TOKENS * (num_parameters(shape) * itemsize + cached_tokens * token_bytes / devices))


def _generate(model: Decoder) -> Callable[[np.ndarray, int, int], None]:
    """`generate` of the same weights: (prompts, how many at once, new tokens)."""
    import torch
    import transformers

    shape = model.config
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied_embeddings,
    )
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    rival = transformers.Qwen2ForCausalLM(config).to(getattr(torch, shape.compute_dtype)).eval()
    state = {name: torch.from_numpy(np.array(array)) for name, array in huggingface.to_hf_state(model).items()}
    missing, unexpected = rival.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    rival.to(device)

    def generate(prompt_BxL: np.ndarray, at_once: int, new_tokens: int) -> None:
        with torch.inference_mode():
            for at in range(0, len(prompt_BxL), at_once):
                ids = torch.from_numpy(prompt_BxL[at : at + at_once].astype(np.int64)).to(device)
                out = rival.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=SAMPLES,
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    pad_token_id=0,
                )
                assert out.cpu().shape == (len(ids) * SAMPLES, prompt_BxL.shape[1] + new_tokens)

    return generate


def _prompts(lengths: Sequence[int], vocab_size: int) -> list[RandomPrompt]:
    random = np.random.default_rng(0)
    return [
        RandomPrompt(subject, random.integers(1, vocab_size, length).astype(np.int32))
        for subject, length in enumerate(lengths)
    ]


def _missing() -> list[str]:
    """What the rival lacks here."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if not missing and jax.default_backend() != "cpu":
        import torch

        missing = [] if jax.default_backend() == "gpu" and torch.cuda.is_available() else ["torch for this device"]
    return missing


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def main() -> None:
    """Measure and print."""
    result: dict[str, Any] = {
        "benchmark": "decode",
        "device": jax.devices()[0].device_kind,
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "bar": BAR,
    }
    missing = _missing()
    names = sys.argv[1:] or (["1M", "8M"] if jax.default_backend() == "cpu" else ["L"])
    models = {name: measure(shape_of(name), not missing) for name in names}
    ratios = [model["ratio"] for model in models.values() if "ratio" in model]
    shares = [model["bound_share"] for model in models.values() if model["bound_share"] is not None]
    result |= {
        "models": models,
        "missing": missing,
        "ratio": min(ratios) if ratios else None,
        "passed": min(ratios) >= BAR if ratios else None,
        "bandwidth_bar": BANDWIDTH_BAR,
        "bandwidth_passed": min(shares) >= BANDWIDTH_BAR if shares else None,
    }
    result["recomputation"] = recomputation()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
