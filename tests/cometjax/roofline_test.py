"""Analytic plans: exact where arithmetic is, and moving the right way with chips, remat and batch."""

import pytest

from cometjax import flops, interconnect
from cometjax.chips import parse_topology
from cometjax.config import default_config
from cometjax.pod_run import pod_run
from cometjax.roofline import analytic_plan
from data_pipeline.errors import UserError


def config(**model):
    config = default_config()
    config.model.update(vocab_size=1024, layers=4, width=512, heads=8, kv_heads=8, head_dim=64, mlp_width=2048)
    config.model.update({"attention": "splash"} | model)
    config.train.update(batch_rows=64, row_length=2048)
    return config


def test_counted_flops_are_those_of_training_for_segments_of_the_given_length() -> None:
    plan = analytic_plan(config(), "v5p:2x2x2", mean_segment=512)
    tokens = 64 * 2048
    of_layers_and_head = 6 * tokens * (4 * (4 * 512 * 512 + 3 * 512 * 2048) + 512 * 1024)
    of_attention = 3 * 2 * 4 * 512 * tokens * 512
    assert plan.model_flops == of_layers_and_head + of_attention
    model = pod_run(config(), parse_topology("v5p:2x2x2")).model
    assert plan.model_flops == flops.train_flops(model, tokens=tokens, sum_segment_squared=tokens * 512)


def test_a_plan_adds_up() -> None:
    plan = analytic_plan(config(), "v5p:2x2x2")
    memory = plan.memory
    assert plan.memory_per_chip_bytes == sum(
        (
            memory.parameters,
            memory.optimizer,
            memory.gradients,
            memory.saved_activations,
            memory.working_set,
            memory.batch,
        )
    )
    assert 0 < plan.mfu_bound < 1 and plan.hardware_flops > plan.model_flops
    assert plan.tokens_per_second == pytest.approx(64 * 2048 / plan.step_seconds)
    assert plan.chip_hours(1e9) == pytest.approx(8 * 1e9 / plan.tokens_per_second / 3600)
    assert plan.chip_hours(1e9, mfu=plan.mfu_bound / 2) == pytest.approx(2 * plan.chip_hours(1e9))


def test_twice_the_chips_halve_the_compute_and_the_state_of_each() -> None:
    few, many = (analytic_plan(config(), topology) for topology in ("v5e:4x4", "v5e:4x8"))
    assert many.seconds["compute"] == pytest.approx(few.seconds["compute"] / 2)
    assert many.memory.saved_activations == few.memory.saved_activations / 2
    assert many.memory.parameters == pytest.approx(few.memory.parameters / 2, rel=0.05)
    assert many.seconds["fsdp"] > few.seconds["fsdp"] / 2


def test_remat_trades_memory_for_flops() -> None:
    none, dots, full = (analytic_plan(config(remat=remat), "v5e:4x4") for remat in ("none", "dots", "full"))
    saved = [plan.memory.saved_activations for plan in (none, dots, full)]
    assert saved[0] > 2 * saved[1] and saved[1] > 2 * saved[2]
    assert none.hardware_flops < dots.hardware_flops < full.hardware_flops
    assert none.model_flops == dots.model_flops == full.model_flops


@pytest.mark.parametrize(
    ("attention", "topology", "again"),
    [("reference", "v5e:4x4", True), ("splash", "v5e:4x4", True), ("blockwise", "v5e:4x4", False),
     ("pallas_tpu", "v5e:4x4", False), ("pallas_gpu", "h100:8", False), ("hopper", "h100:8", False)],
)  # fmt: skip
def test_dots_repeats_attention_only_where_its_result_is_not_kept(attention, topology, again) -> None:
    none, dots, full = (
        analytic_plan(config(attention=attention, remat=remat), topology) for remat in ("none", "dots", "full")
    )
    assert (dots.hardware_flops > none.hardware_flops) == again
    # What "full" repeats beyond attention are the layers' products with weights: 2 FLOPs per weight and token.
    of_layers = 2 * 64 * 2048 * 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    repeated = full.hardware_flops - none.hardware_flops - of_layers
    assert repeated > 0
    assert dots.hardware_flops - none.hardware_flops == pytest.approx(repeated if again else 0)


def test_a_layer_under_full_remat_keeps_its_input_alone() -> None:
    deep, shallow = (analytic_plan(config(remat="full", layers=layers), "v5p:2x2x2") for layers in (6, 4))
    rows, bfloat16 = 64 // 8, 2
    saved = deep.memory.saved_activations - shallow.memory.saved_activations
    assert saved == 2 * rows * 2048 * 512 * bfloat16


def test_microbatches_shrink_activations_and_gather_again() -> None:
    whole, parts = config(), config()
    parts.train.microbatches = 4
    whole_plan, parts_plan = analytic_plan(whole, "v5e:4x4"), analytic_plan(parts, "v5e:4x4")
    assert parts_plan.memory.saved_activations == whole_plan.memory.saved_activations / 4
    assert parts_plan.seconds["fsdp"] == 4 * whole_plan.seconds["fsdp"]


def test_without_remat_the_backward_pass_finds_whole_weights_that_were_kept() -> None:
    none, dots = (analytic_plan(config(remat=remat), "v5e:4x4") for remat in ("none", "dots"))
    assert none.seconds["fsdp"] == pytest.approx(dots.seconds["fsdp"] * 2 / 3)


def test_tensor_parallelism_splits_heads_and_waits_for_sums() -> None:
    split = config()
    split.mesh.tensor = 4
    plan, whole = analytic_plan(split, "v5e:4x4"), analytic_plan(config(), "v5e:4x4")
    assert plan.seconds["tensor"] > 0 == whole.seconds["tensor"]
    assert (
        plan.step_seconds
        == max(plan.seconds[name] for name in ("compute", "memory", "fsdp", "data")) + (plan.seconds["tensor"])
    )


def test_each_chip_of_tensor_scores_its_positions_over_any_vocabulary() -> None:
    def memory_seconds(vocab_size):
        split = config(vocab_size=vocab_size)
        split.mesh.tensor = 4
        return analytic_plan(split, "v5e:4x4").seconds["memory"]

    assert memory_seconds(7105) == pytest.approx(memory_seconds(7104), rel=0.01)


def test_gpus_are_planned_for_too_and_what_does_not_fit_says_so() -> None:
    small = config(attention="reference")
    assert analytic_plan(small, "h100:64").fits
    small.train.update(batch_rows=8 * 4096)
    assert not analytic_plan(small, "h100:8").fits


def test_the_reference_attention_is_paid_for_whole_rows() -> None:
    splash, reference = (analytic_plan(config(attention=name), "v5p:2x2x2") for name in ("splash", "reference"))
    assert reference.memory.saved_activations > 2 * splash.memory.saved_activations
    assert reference.model_flops == splash.model_flops


@pytest.mark.parametrize(
    ("changes", "topology", "says"),
    [
        ({"mesh.tensor": 3}, "v5p:2x2x2", r"config.mesh: .* is 6 devices, and there are 8"),
        ({"train.batch_rows": 12}, "v5p:2x2x2", r"config.train.batch_rows: 12 rows cannot be split over 8 devices"),
        ({}, "2xv5e:2x2", r"config.mesh.slices: 1, and the devices form 2; set it to 2"),
        (
            {},
            "h100:8",
            r"config.model.attention: .* 'splash' cannot run on gpu; on NVIDIA H100 these can run: .*hopper",
        ),
        ({"train.row_length": 1}, "v5p:2x2x2", r"config.train.row_length"),
        ({"train.row_length": 1000}, "v5p:2x2x2", r"config.train.row_length: rows of 1000 tokens .* use a multiple"),
        (
            {"train.row_length": 65536, "model.attention": "auto", "model.compute_dtype": "bfloat16"},
            "v5p:2x2x2",
            r"config.train.row_length: rows of 65536 tokens do not fit .* use 43008 or less",
        ),
    ],
)
def test_what_training_would_refuse_is_refused(changes, topology, says) -> None:
    refused = config()
    refused.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says):
        analytic_plan(refused, topology)


def test_links_count_by_the_dimensions_that_an_axis_spans() -> None:
    def bandwidth(topology, axis, **sizes):
        return interconnect.axis_bandwidth(parse_topology(topology), {"data": 1, "fsdp": 1, "tensor": 1} | sizes, axis)

    assert bandwidth("v5p:4x4x4", "fsdp", fsdp=64) == 6 * 100e9
    assert bandwidth("v5p:2x4x4", "fsdp", fsdp=32) == 3 * 100e9  # half a cube: lines, not rings
    assert bandwidth("v5p:2x2x4", "fsdp", fsdp=16) == 3 * 100e9
    assert bandwidth("v5e:16x16", "fsdp", fsdp=256) == 4 * 50e9
    assert bandwidth("v5e:4x4", "fsdp", fsdp=16) == 2 * 50e9  # lines, not rings
    assert bandwidth("v5e:16x16", "tensor", fsdp=64, tensor=4) == 50e9
    assert bandwidth("2xv5e:16x16", "data", data=2, fsdp=256) == 3.125e9
    assert bandwidth("h100:8", "fsdp", fsdp=8) == 450e9
    assert bandwidth("h100:64", "fsdp", fsdp=64) == 8 * 50e9
    assert bandwidth("h100:64", "fsdp", fsdp=8, tensor=8) == 50e9
