"""The analytic memory model against the TPU compiler's own figures, recorded; and its parts."""

import pytest

from cometjax import memory_model
from cometjax.chips import parse_topology
from cometjax.model import ModelConfig
from cometjax.pod_run import pod_run
from experiments.configs import comet_l, comet_m, comet_s

SHORT_ROWS = {"model.layers": 12, "model.vocab_size": 1024, "train.batch_rows": 16, "train.row_length": 512}
# Peak bytes of a chip (arguments, outputs that are not aliased, temporaries), libtpu 0.0.52 of jax 0.10.2, attention
# "pallas_tpu", 2026-11-26. benchmarks/plan_memory.py compiles anew.
COMPILED = [
    (comet_s, "v5p:2x2x2", {}, 18_662_814_528),
    (comet_m, "v5e:4x4", {}, 10_781_209_600),
    (comet_l, "v5p:4x4x4", {}, 1_939_514_176),
    (comet_l, "v5e:16x16", {"mesh.tensor": 4}, 672_064_512),
    (comet_l, "2xv5e:8x8", {"mesh.slices": 2, "mesh.data": 2, "train.batch_rows": 128}, 2_648_122_368),
    # Short rows, and whole weights kept: two thirds of it (2026-11-28).
    (comet_l, "v5p:2x2x4", SHORT_ROWS | {"model.remat": "none"}, 3_205_000_000),
    (comet_l, "v5p:2x2x4", SHORT_ROWS | {"model.remat": "dots"}, 1_447_000_000),
]


@pytest.mark.parametrize(("config_file", "topology", "changes", "compiled"), COMPILED)
def test_memory_is_within_15_percent_of_the_compilers(config_file, topology, changes, compiled) -> None:
    config = config_file.get_config()
    config.model.vocab_size = 7105
    config.update_from_flattened_dict(changes)
    run = pod_run(config, parse_topology(topology))
    assert run.model.attention == "pallas_tpu"
    assert memory_model.chip_memory(run).total == pytest.approx(compiled, rel=0.15)


def test_arrays_lie_in_tiles_of_the_order_that_wastes_least() -> None:
    assert memory_model.array_bytes((16, 256), "float32", tiled=True) == 16 * 256 * 4
    assert memory_model.array_bytes((7, 256), "float32", tiled=True) == 8 * 256 * 4
    assert memory_model.array_bytes((16, 32, 64), "float32", tiled=True) == 16 * 32 * 128 * 4
    assert memory_model.array_bytes((16, 32, 64), "float32", tiled=False) == 16 * 32 * 64 * 4
    assert memory_model.array_bytes((100,), "float32", tiled=True) == 400


def test_a_chips_share_has_its_part_of_what_divides() -> None:
    model = ModelConfig(vocab_size=7105, layers=2, width=64, heads=8, kv_heads=2, head_dim=8, mlp_width=256)
    share = memory_model.share_of_chip(model, 4)
    assert (share.heads, share.kv_heads, share.mlp_width, share.vocab_size) == (2, 1, 64, 7105)
    assert memory_model.share_of_chip(model, 1) == model


def test_a_layer_without_remat_keeps_each_products_input_and_little_else() -> None:
    model = ModelConfig(
        vocab_size=32, layers=3, width=64, heads=4, kv_heads=4, head_dim=16, mlp_width=256, attention="splash",
        compute_dtype="bfloat16",
    )  # fmt: skip
    of_two_rows = memory_model.saved_bytes(model, 2, 512, False)
    assert of_two_rows == 2 * memory_model.saved_bytes(model, 1, 512, False)
    mlp = 3 * 256 * 2  # gate, up, and their product
    heads = 4 * 64 * 2 + 4 * 4  # query, key, value, output; the normalizer
    norms = 2 * 64 * 2 + 2 * 4  # of each the input, and a float32 for each position
    products = 6 * 64 * 2  # what goes into query, key, value, output, gate and up; the compiler shares some of them
    last_norm = 64 * 2 + 4
    assert of_two_rows / (2 * 512) == pytest.approx(3 * (mlp + heads + norms + products) + last_norm, rel=0.02)
