"""A plan as JSON-ready values, and as text for a terminal."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cometjax.chips import GiB
from cometjax.collectives import Collective
from cometjax.interconnect import axis_bandwidth
from cometjax.model import REMAT_POLICIES
from cometjax.plan_search import Candidate
from cometjax.pod_compiler import CompiledStep
from cometjax.pod_run import PodRun
from cometjax.roofline import PAPER_SEGMENT, Plan, plan_of
from data_pipeline.plurals import counted

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run is to be costed for: tokens, the price of a chip-hour, an expected MFU; None where not asked."""

    tokens: float | None = None
    price: float | None = None
    mfu: float | None = None
    mean_segment: float = PAPER_SEGMENT


def report(run: PodRun, plan: Plan, step: CompiledStep | None, budget: Budget) -> Values:
    """All that is known of a run, in bytes, seconds and FLOPs."""
    model, train = run.model, run.config.train
    roofline = _roofline(run, plan, step)
    return {
        "topology": plan.topology,
        "chips": plan.chips,
        "source": "analytic" if step is None else "compiler",
        "mesh": dict(run.sizes),
        "model": {
            "parameters": plan.parameters,
            "vocab_size": model.vocab_size,
            "vocabulary": run.vocabulary,
            "attention": model.attention,
            "remat": model.remat,
        },
        "batch": {
            "rows": train.batch_rows,
            "row_length": train.row_length,
            "microbatches": train.microbatches,
            "rows_per_chip": run.microbatch_rows,
            "tokens_per_step": plan.tokens_per_step,
            "mean_segment": budget.mean_segment,
        },
        "memory": _memory(plan, step),
        "flops": {
            "model_per_step": plan.model_flops,
            "hardware_per_step": plan.hardware_flops,
            "compiler_per_chip_loops_once": None if step is None else step.flops,
        },
        "collectives": None
        if step is None or step.collectives is None
        else [dataclasses.asdict(one) for one in step.collectives],
        "compile_seconds": None if step is None else step.seconds,
        "roofline": roofline,
        "remat": _remat_policies(run, budget),
        "budget": _costs(plan, roofline["step_seconds"], budget),
    }


def fits(found: Values) -> bool:
    """Whether the run of a report fits its chips."""
    return bool(found["memory"]["fits"])


def _memory(plan: Plan, step: CompiledStep | None) -> Values:
    memory = plan.memory
    analytic = dataclasses.asdict(memory) | {"total": memory.total}
    shared = {"hbm": plan.hbm_bytes, "analytic": analytic, "parameters": memory.parameters}
    if step is None:
        return shared | {
            "fits": plan.fits,
            "total": memory.total,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "batch": memory.batch,
        }
    if not step.fits:
        return shared | {
            "fits": False,
            "total": step.total_bytes,
            "optimizer": memory.optimizer,
            "activations": step.total_bytes,
            "batch": memory.batch,
        }
    assert step.argument_bytes is not None and step.temporary_bytes is not None
    return shared | {
        "fits": True,
        "total": step.total_bytes,
        # What the compiler's arguments hold beside parameters and batch, and all that is no argument.
        "optimizer": step.argument_bytes - memory.parameters - memory.batch,
        "activations": step.total_bytes - step.argument_bytes,
        "batch": memory.batch,
        "code": step.code_bytes,
    }


def _roofline(run: PodRun, plan: Plan, step: CompiledStep | None) -> Values:
    """The clocks, and with a compiled program what its collectives take: hidden ones run beside, the others in line."""
    seconds, step_seconds, bound_by = dict(plan.seconds), plan.step_seconds, plan.bound_by
    if step is not None and step.collectives is not None:
        hidden = sum(_seconds(run, one) for one in step.collectives if one.hidden)
        exposed = sum(_seconds(run, one) for one in step.collectives if not one.hidden)
        seconds = {name: plan.seconds[name] for name in ("compute", "memory")}
        seconds |= {"hidden collectives": hidden, "exposed collectives": exposed}
        beside = {name: value for name, value in seconds.items() if name != "exposed collectives"}
        step_seconds = max(beside.values()) + exposed
        bound_by = max(seconds, key=lambda name: seconds[name])
    return {
        "seconds": seconds,
        "step_seconds": step_seconds,
        "bound_by": bound_by,
        "tokens_per_second": plan.tokens_per_step / step_seconds,
        "mfu_bound": plan.model_flops / (step_seconds * plan.peak_flops * plan.chips),
    }


def _seconds(run: PodRun, one: Collective) -> float:
    if one.network:
        return one.sent_bytes / run.topology.chip.network_bandwidth
    axis = next((axis for axis in ("fsdp", "tensor", "data") if run.sizes[axis] == one.members), "fsdp")
    return one.sent_bytes / axis_bandwidth(run.topology, run.sizes, axis)


def _remat_policies(run: PodRun, budget: Budget) -> Values:
    """Each policy's memory and step for the same run, analytically."""
    plans = {
        name: plan_of(dataclasses.replace(run, model=dataclasses.replace(run.model, remat=name)), budget.mean_segment)
        for name in REMAT_POLICIES
    }
    return {
        name: {"total": plan.memory.total, "fits": plan.fits, "step_seconds": plan.step_seconds}
        for name, plan in plans.items()
    }


def _costs(plan: Plan, step_seconds: float, budget: Budget) -> Values | None:
    if budget.tokens is None:
        return None
    at_roofline = budget.tokens / plan.tokens_per_step * step_seconds / 3600
    costs = {"tokens": budget.tokens, "roofline": _cost(at_roofline, plan.chips, budget.price)}
    if budget.mfu is not None:
        per_step = plan.model_flops / (budget.mfu * plan.peak_flops * plan.chips)
        hours = budget.tokens / plan.tokens_per_step * per_step / 3600
        costs |= {"mfu": budget.mfu, "at_mfu": _cost(hours, plan.chips, budget.price)}
    return costs


def _cost(hours: float, chips: int, price: float | None) -> Values:
    chip_hours = hours * chips
    return {"days": hours / 24, "chip_hours": chip_hours, "money": None if price is None else chip_hours * price}


def text(found: Values) -> str:
    """A report for a terminal."""
    model, batch = found["model"], found["batch"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    how = (
        f"compiled by the TPU's compiler in {found['compile_seconds']:.0f} s"
        if found["source"] == "compiler"
        else "ANALYTIC: worked out from shapes; nothing was compiled"
    )
    lines = [
        f"{found['topology']}, {counted(found['chips'], 'chip')}: {mesh} ({how})",
        f"model      {model['parameters']:,} parameters, vocabulary {model['vocab_size']:,} ({model['vocabulary']}), "
        f"attention {model['attention']}, remat {model['remat']}",
        f"batch      {counted(batch['rows'], 'row')} x {batch['row_length']:,} = {batch['tokens_per_step']:,} tokens; "
        f"{counted(batch['rows_per_chip'], 'row')} a chip x "
        f"{counted(batch['microbatches'], 'microbatch', 'microbatches')}",
        "",
        *_memory_lines(found),
        *_collective_lines(found),
        "",
        *_speed_lines(found),
        "",
        "remat      (analytic)   memory a chip   step at the roofline",
    ]
    for name, values in found["remat"].items():
        note = "" if values["fits"] else "   does not fit"
        lines.append(f"  {name:20} {values['total'] / GiB:10.2f} GiB   {values['step_seconds'] * 1000:10.1f} ms{note}")
    return "\n".join([*lines, *_cost_lines(found)])


def _memory_lines(found: Values) -> list[str]:
    memory, hbm = found["memory"], found["memory"]["hbm"]
    if not memory["fits"] and found["source"] == "compiler":
        return [
            f"DOES NOT FIT: the compiler needs {memory['total'] / GiB:.2f} of {hbm / GiB:.2f} GiB a chip "
            f"(analytic: {memory['analytic']['total'] / GiB:.2f}); try --search, more chips, remat or microbatches"
        ]
    lines = ["memory a chip"]
    for name in ("parameters", "optimizer", "activations", "batch"):
        lines.append(f"  {name:20} {memory[name] / GiB:10.3f} GiB")
    verdict = "fits" if memory["fits"] else "DOES NOT FIT: needs"
    lines.append(f"  {'total':20} {memory['total'] / GiB:10.3f} GiB: {verdict} {_share(memory, hbm)}")
    if found["source"] == "compiler":
        lines.append(f"  {'analytic total':20} {memory['analytic']['total'] / GiB:10.3f} GiB")
    return lines


def _share(memory: Values, hbm: float) -> str:
    return f"{memory['total'] / GiB:.2f} of {hbm / GiB:.2f} GiB ({memory['total'] / hbm:.0%})"


def _collective_lines(found: Values) -> list[str]:
    if found["source"] == "analytic":
        return []
    if found["collectives"] is None:
        return ["", "collectives: the compiled program could not be read"]
    lines = ["", "collectives a chip, a step        members    count        size        sent"]
    for one in found["collectives"]:
        fate = ("over the network" if one["network"] else "hidden") if one["hidden"] else "exposed"
        lines.append(
            f"  {one['kind']:18} {fate:16} {one['members']:4} {one['count']:8,} {one['bytes'] / 1e6:8,.1f} MB "
            f"{one['sent_bytes'] / 1e6:8,.1f} MB"
        )
    return lines


def _speed_lines(found: Values) -> list[str]:
    flops, roofline = found["flops"], found["roofline"]
    compiler = flops["compiler_per_chip_loops_once"]
    clocks = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in roofline["seconds"].items() if value)
    return [
        f"FLOPs a step, all chips: {flops['model_per_step']:.4g} counted, {flops['hardware_per_step']:.4g} executed"
        + (f"; the compiler says {compiler:.4g} a chip with each loop once" if compiler else ""),
        f"roofline   {clocks}; bound by {roofline['bound_by']}",
        f"step       {roofline['step_seconds'] * 1000:.1f} ms at best: {roofline['tokens_per_second']:,.0f} tokens/s, "
        f"MFU at most {roofline['mfu_bound']:.1%}",
    ]


def _cost_lines(found: Values) -> list[str]:
    budget = found["budget"]
    if budget is None:
        return []
    lines = ["", f"{budget['tokens']:.4g} tokens"]
    named = [("at the roofline", budget["roofline"])]
    if "at_mfu" in budget:
        named.append((f"at an MFU of {budget['mfu']:.0%}", budget["at_mfu"]))
    for name, cost in named:
        money = "" if cost["money"] is None else f", costing {cost['money']:,.0f}"
        lines.append(f"  {name:20} {cost['days']:8.2f} days, {cost['chip_hours']:,.0f} chip-hours{money}")
    return lines


def ranking(candidates: Sequence[Candidate]) -> list[Values]:
    """A search's candidates, best first."""
    return [
        {
            "flags": one.name,
            "fits": one.fits,
            "memory": one.plan.memory.total,
            "step_seconds": one.plan.step_seconds,
            "tokens_per_second": one.plan.tokens_per_second,
            "mfu_bound": one.plan.mfu_bound,
        }
        for one in candidates
    ]


def ranking_text(candidates: Sequence[Candidate], tried: int) -> str:
    """The best of a search as a table."""
    lines = [
        f"tried {tried}, analytically; the best:",
        " data  fsdp tensor  remat   rows  micro   memory GiB  fits   tokens/s   MFU at most",
    ]
    for one in candidates:
        mesh, config, plan = one.config.mesh, one.config, one.plan
        lines.append(
            f"{mesh.data:5} {mesh.fsdp:5} {mesh.tensor:6}  {config.model.remat:5} {config.train.batch_rows:6} "
            f"{config.train.microbatches:6} {plan.memory.total / GiB:12.2f}  {'yes' if one.fits else 'no':4} "
            f"{plan.tokens_per_second:10,.0f} {plan.mfu_bound:13.1%}"
        )
    lines.append(f"best: {candidates[0].name}\n")
    return "\n".join(lines)
