"""The decoding kernel: interpreted against plain arithmetic and against XLA's operations, lowered for CUDA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # exported from jax 0.11 on
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from benchmarks import decode
from cometjax import batches, decoding, engine, hopper_decoding
from cometjax.hopper_decoding import Places, Sizes, attend, sizes_for, whole_chunks
from cometjax.model import ModelConfig
from cometjax.packed import Heads
from cometjax.sharding import Device

pytestmark = pytest.mark.usefixtures("hurried_compiler")
PROMPT_SLOTS, SPARE_SLOTS = 4, 3
H200 = Device("gpu", "NVIDIA H200")
VOCABULARY = decode.endless_vocabulary(64)


def interpreted(**sizes) -> Sizes:
    return Sizes(**sizes, interpret=InterpretGPUParams())


def random_inputs(seed, blocks, block, kv_heads, groups, head_dim, prompt_tokens, tokens, dtype=jnp.bfloat16):
    """Arguments of `attend`, with a prompt and a row of no token so far, and a row that is padding."""
    random = np.random.default_rng(seed)
    num_rows = blocks * block
    slots = num_rows + SPARE_SLOTS
    slot_R = random.permutation(slots)[:num_rows]
    slot_R[-1] = slots
    prefix_length_Q = random.integers(0, prompt_tokens + 1, blocks)
    length_R = random.integers(0, tokens, num_rows)
    prefix_length_Q[-1] = length_R[0] = 0
    # Padding names no prompt slot either.
    prefix_slot_Q = random.integers(0, PROMPT_SLOTS + 1, blocks)
    places = Places(*(jnp.asarray(x, jnp.int32) for x in (prefix_slot_Q, prefix_length_Q, slot_R, length_R)))
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    new = (normal(num_rows, kv_heads * groups, head_dim), *(normal(num_rows, kv_heads, head_dim) for _ in "kv"))
    prompts = tuple(normal(PROMPT_SLOTS, kv_heads, prompt_tokens, head_dim) for _ in "kv")
    samples = tuple(normal(slots, kv_heads, tokens, head_dim) for _ in "kv")
    return *new, prompts, samples, places


def expected(q_RxHxC, k_RxKxC, v_RxKxC, prompts, samples, places):
    """(out_RxHxC, samples' keys, values), in float32, a row and a head at a time."""
    q_RxHxC, new_k, new_v, pk, pv, sk, sv = (
        np.array(x, np.float32) for x in (q_RxHxC, k_RxKxC, v_RxKxC, *prompts, *samples)
    )
    out_RxHxC = np.zeros_like(q_RxHxC)
    num_rows, heads, head_dim = q_RxHxC.shape
    block, groups = num_rows // len(places.prefix_slot_Q), heads // new_k.shape[1]
    for row in range(num_rows):
        prompt = min(int(places.prefix_slot_Q[row // block]), len(pk) - 1)
        prompt_tokens = int(places.prefix_length_Q[row // block])
        slot, tokens = min(int(places.slot_R[row]), len(sk) - 1), int(places.length_R[row])
        for head in range(heads):
            at = head // groups
            keys = np.concatenate([pk[prompt, at, :prompt_tokens], sk[slot, at, :tokens], new_k[row, at][None]])
            values = np.concatenate([pv[prompt, at, :prompt_tokens], sv[slot, at, :tokens], new_v[row, at][None]])
            scores = keys @ q_RxHxC[row, head] * head_dim**-0.5
            weights = np.exp(scores - scores.max())
            out_RxHxC[row, head] = weights @ values / weights.sum()
    for row, slot in enumerate(places.slot_R.tolist()):
        if slot < len(sk):
            sk[slot, :, places.length_R[row]], sv[slot, :, places.length_R[row]] = new_k[row], new_v[row]
    return out_RxHxC, sk, sv


def assert_agrees(inputs, sizes: Sizes) -> None:
    out_RxHxC, written = attend(*inputs, sizes)
    out_RxHxC = np.asarray(out_RxHxC, np.float32)
    want_RxHxC, *want = expected(*inputs)
    assert np.isfinite(out_RxHxC).all()
    # The last row is padding: it reads some slot, before or after its row's new token is written there.
    np.testing.assert_allclose(out_RxHxC[:-1], want_RxHxC[:-1], atol=2e-2, rtol=1e-2)
    for pool, wanted in zip(written, want, strict=True):
        np.testing.assert_array_equal(np.asarray(pool, np.float32), wanted)


@pytest.mark.parametrize(
    ("blocks", "block", "kv_heads", "groups", "head_dim", "prompt_tokens", "tokens", "sizes"),
    [
        (2, 8, 1, 1, 64, 256, 256, {"programs": 1}),  # rings that go round
        (2, 2, 2, 1, 64, 128, 128, {}),  # blocks of fewer rows than a tile's eight
        (1, 3, 1, 4, 128, 512, 512, {"programs": 99}),  # tokens shared out among programs
        (1, 12, 1, 8, 64, 128, 64, {}),  # more queries on a prompt than a tile has rows
        (1, 70, 1, 1, 64, 64, 64, {}),  # more rows than that
        (3, 1, 1, 2, 64, 128, 256, {"tile": 128, "stages": 1, "programs": 1}),
    ],
)
def test_outputs_and_written_pools_are_those_of_plain_arithmetic(
    blocks, block, kv_heads, groups, head_dim, prompt_tokens, tokens, sizes
):
    inputs = random_inputs(0, blocks, block, kv_heads, groups, head_dim, prompt_tokens, tokens)
    assert_agrees(inputs, interpreted(**sizes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_they_are_at_random_lengths(seed):
    random = np.random.default_rng(seed)
    groups, head_dim = [(1, 64), (2, 64), (3, 128), (1, 128)][seed % 4]
    block, tokens = int(random.integers(1, 18)), 64 * int(random.integers(1, 9))
    inputs = random_inputs(seed, 2, block, 2, groups, head_dim, 256, tokens, [jnp.bfloat16, jnp.float16][seed % 2])
    assert_agrees(inputs, interpreted(programs=[1, 64][seed % 2], stages=1 + seed % 3))


def test_huge_scores_give_no_nan():
    q_RxHxC, k_RxKxC, *rest = random_inputs(1, 2, 2, 1, 1, 64, 128, 128)
    out_RxHxC, _ = attend(1e3 * q_RxHxC, 1e3 * k_RxKxC, *rest, interpreted())
    assert np.isfinite(np.asarray(out_RxHxC, np.float32)).all()


def test_no_copy_overtakes_those_who_still_read(capfd):
    sizes = Sizes(stages=2, programs=1, interpret=InterpretGPUParams(detect_races=True))
    # Each row of one head: others' programs do read the tile that a row's new token is written to.
    jax.block_until_ready(attend(*random_inputs(2, 1, 2, 1, 1, 64, 256, 256), sizes))
    assert "RACE DETECTED" not in capfd.readouterr().out  # what the interpreter prints


def test_the_engine_draws_with_it_what_it_draws_without(monkeypatch):
    shape = ModelConfig(
        vocab_size=64, layers=2, width=64, heads=2, kv_heads=1, head_dim=64, mlp_width=128, compute_dtype="bfloat16"
    )
    model = decode.lively_model(shape)
    random = np.random.default_rng(0)
    prompts = [decode.RandomPrompt(i, random.integers(1, 64, size).astype(np.int32)) for i, size in enumerate((9, 130))]
    # Cold: a token's probability is most often near 0 or 1, and rounding alone changes no draw.
    config = engine.SimulationConfig(
        samples=2, horizon_seconds=2.0**29, max_new_tokens=4, chunk_steps=2, batch_rows=4, temperature=0.05
    )
    without = engine.simulate_futures(model, VOCABULARY, prompts, config)
    asked = []

    def sizes_here(heads, cache_dtype, chunk_steps, on):
        asked.append(sizes_for(heads, cache_dtype, chunk_steps, H200))
        return dataclasses.replace(asked[-1], interpret=InterpretGPUParams())

    monkeypatch.setattr(hopper_decoding, "sizes_for", sizes_here)
    within = engine.simulate_futures(model, VOCABULARY, prompts, config)
    assert asked and all(asked)
    for future, same in zip(within, without, strict=True):
        np.testing.assert_array_equal(future.tokens_T, same.tokens_T)
    assert len({tuple(future.tokens_T) for future in without}) > 1


def test_batches_have_one_bound_and_narrow_blocks_only_where_these_hold_many_more_rows(monkeypatch):
    monkeypatch.setattr(hopper_decoding, "sizes_for", lambda *_: Sizes())
    shape = ModelConfig(
        vocab_size=64, layers=1, width=64, heads=1, kv_heads=1, head_dim=64, mlp_width=64, compute_dtype="bfloat16"
    )
    rules = decoding.Rules(decoding.token_table(VOCABULARY, timeline_end="never"))
    config = engine.SimulationConfig(samples=8, horizon_seconds=1.0, max_new_tokens=4096, batch_rows=16)
    device = jax.devices()[0]
    on_device = batches.Batches(decode.lively_model(shape), VOCABULARY, rules, config, device)
    slots = batches._Slots.empty(8, 8, 64, 4096, 0)

    def group_of(running_W):
        for prompt, running in enumerate(running_W):
            slots.prompt_W[prompt], slots.stop_WxS[prompt] = prompt, np.arange(8) >= running
        slots.length_WxS[:] = np.arange(8) * 256  # however far they are
        group = on_device._fullest(slots, 256)
        return group.bound, group.block, group.size, sum(len(samples) for _, samples in group.rows_of)

    assert on_device.bounds == [128]
    assert group_of([8, 8, 8, 0, 0, 0, 0, 0]) == (128, 8, 2, 16)
    assert group_of([7, 6, 4, 4, 0, 0, 0, 0]) == (128, 8, 2, 13)
    assert group_of([2, 2, 2, 2, 2, 2, 2, 2]) == (128, 2, 8, 16)


def test_it_runs_where_it_can_and_nowhere_else():
    heads = Heads(64, "bfloat16")
    assert sizes_for(heads, "bfloat16", 32, H200) == Sizes()
    assert sizes_for(heads, "bfloat16", 128, H200) == Sizes()
    assert sizes_for(heads, "bfloat16", 33, H200) is None  # no multiple of it fills tiles but after 64 chunks
    assert sizes_for(heads, "float32", 32, H200) is None
    assert sizes_for(Heads(32, "bfloat16"), "bfloat16", 32, H200) is None
    assert sizes_for(heads, "bfloat16", 32, Device("gpu", "NVIDIA A100")) is None
    assert sizes_for(heads, "bfloat16", 32, Device("cpu", "cpu")) is None


def test_chunks_fill_whole_tiles():
    assert [whole_chunks(chunks, 32, Sizes(tile=64)) for chunks in (1, 2, 7)] == [2, 2, 8]
    assert whole_chunks(3, 128, Sizes(tile=64)) == 3


@pytest.mark.parametrize(("groups", "head_dim"), [(2, 64), (1, 128)])
def test_it_lowers_for_an_h100_and_copies_no_pool(groups, head_dim):
    inputs = jax.eval_shape(lambda: random_inputs(0, 2, 4, 2, groups, head_dim, 128, 128))
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=h100)):
        text = attend.trace(*inputs, Sizes()).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 1
    assert text.count("output_operand_alias<") == 2
