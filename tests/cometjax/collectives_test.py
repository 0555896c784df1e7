"""Reading a compiled program's collectives: loops, asynchronous fusions, peeled iterations, slices."""

import pytest

from cometjax.collectives import Collective, read_collectives

# As the TPU compiler writes it (libtpu 0.0.52), with all but the shape of things left out.
PROGRAM = """HloModule jit_train_step, is_scheduled=true

%add.1 (x.61: bf16[], y.61: bf16[]) -> bf16[] {
  ROOT %sum = bf16[]{:T(256)} add(%x.61, %y.61)
}

%async_collective_fusion.1 (p0: bf16[1,32,8192]) -> (bf16[1,2048,8192], u32[]) {
  %p0 = bf16[1,32,8192]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[1,2048,8192]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=76, \
replica_groups=[1,64]<=[64], dimensions={1}, use_global_device_ids=true
  ROOT %tuple.1 = (bf16[1,2048,8192]{2,1,0}, /*index=1*/u32[]) tuple(%all-gather.2)
}

%async_collective_fusion.2 (p0: bf16[1,32,8192]) -> (bf16[1,2048,8192], u32[]) {
  %all-gather.3 = bf16[1,2048,8192]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=76, \
replica_groups=[1,64]<=[64], dimensions={1}, use_global_device_ids=true
}

%all-reduce-scatter.7 (input.7: f32[64,128]) -> f32[1,128] {
  %all-reduce.9 = f32[64,128]{1,0:T(8,128)} all-reduce(%input.7), channel_id=55, \
replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}, to_apply=%add.1
}

%condition (param: (s32[], bf16[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  %param = (s32[]{:T(128)}, bf16[8]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%param), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (param: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %fusion.1 = (bf16[1,2048,8192]{2,1,0}, u32[]) fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %fusion.2 = (bf16[1,2048,8192]{2,1,0}, u32[]) fusion(%y), kind=kOutput, calls=%async_collective_fusion.2
  %all-reduce.5 = (bf16[8,128]{1,0}, bf16[8,128]{1,0}) all-reduce(%a, %b), channel_id=5, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
}

ENTRY %main.59_spmd (arg: bf16[8]) -> bf16[8] {
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one)
  %tuple.9 = (s32[]{:T(128)}, bf16[8]{0}) tuple(%first, %arg)
  %while.1 = (s32[]{:T(128)}, bf16[8]{0}) while(%tuple.9), condition=%condition, body=%body
  %all-reduce.6 = (bf16[8,128]{1,0}, bf16[8,128]{1,0}) all-reduce(%a, %b), channel_id=5, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
  %scattered = f32[1,128]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
  %send.3 = (bf16[256,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%c, %d), channel_id=5, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:63}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %collective-permute-start.1 = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%e), \
channel_id=80, source_target_pairs={{0,1},{1,0}}
}
"""


def by_kind(program: str) -> dict[tuple[str, bool], Collective]:
    return {(one.kind, one.network): one for one in read_collectives(program)}


def test_a_loops_collectives_count_as_often_as_it_runs_and_a_peeled_turn_once() -> None:
    """The loop begins at 1 and ends before 16; its first turn stands before it."""
    reduced = by_kind(PROGRAM)["all-reduce", False]
    assert reduced.count == 15 + 1 and not reduced.hidden and reduced.members == 4
    assert reduced.bytes == 16 * 2 * 8 * 128 * 2
    assert reduced.sent_bytes == reduced.bytes * 2 * 3 / 4


def test_a_gather_spread_over_fusions_is_one_and_hidden() -> None:
    gathered = by_kind(PROGRAM)["all-gather", False]
    assert gathered.hidden and gathered.count == 15 and gathered.members == 64
    assert gathered.bytes == 15 * 2048 * 8192 * 2
    assert gathered.sent_bytes == 15 * round(2048 * 8192 * 2 * 63 / 64)


def test_a_sum_of_which_each_chip_keeps_its_part_is_a_reduce_scatter() -> None:
    scattered = by_kind(PROGRAM)["reduce-scatter", False]
    assert (scattered.count, scattered.members, scattered.bytes) == (1, 16, 64 * 128 * 4)
    assert scattered.sent_bytes == scattered.bytes * 15 / 16


def test_what_slices_send_each_other_goes_over_the_network() -> None:
    """Its channel has a number that another collective has too."""
    between = by_kind(PROGRAM)["all-reduce", True]
    assert between.network and between.hidden and between.bytes == 256 * 8 * 128 * 2


def test_an_asynchronous_permute_counts_what_comes_out() -> None:
    passed = by_kind(PROGRAM)["collective-permute", False]
    assert passed.hidden and passed.bytes == passed.sent_bytes == 4 * 8 * 2


def test_the_largest_comes_first_and_what_is_no_program_is_refused() -> None:
    sizes = [one.bytes for one in read_collectives(PROGRAM)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 5
    with pytest.raises(ValueError, match="no ENTRY"):
        read_collectives("HloModule broken")
