"""What chips send each other in a step, read from the program that the compiler wrote.

A program is text: computations, each a list of instructions, that call one another as loops, fusions and asynchronous
parts. What a loop's body does counts as often as the loop runs. The TPU compiler spreads one collective over several
fusions, all with its channel, so that products run meanwhile: it is counted once, and as hidden.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and fate on one chip, in one step.

    `bytes` is the size of what is gathered, reduced or passed on, all `count` together; `sent_bytes` what crosses a
    chip's links for it, around a ring of `members`. `hidden`: the compiler lets other work run meanwhile. `network`:
    between slices.
    """

    kind: str
    members: int
    hidden: bool
    network: bool
    count: int
    bytes: int
    sent_bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes


def read_collectives(program: str) -> tuple[Collective, ...]:
    """The collectives of a compiled program (XLA's text), largest first.

    Raises ValueError for a text that is no program.
    """
    computations, entry = _computations(program)
    found: dict[tuple[str, str, str, bool], tuple[int, int, int, bool]] = {}
    for owner, name, times, overlapped in _walk(computations, entry):
        for instruction in computations[name]:
            one = _collective(instruction)
            if one is None:
                continue
            kind, size, members, network = one
            if kind == "all-reduce" and "scatter" in name:
                kind = "reduce-scatter"  # a fusion that keeps each chip's part of the sum
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            identity = (owner, kind, channel[1] if channel else instruction.name, network)
            hidden = overlapped or network or instruction.opcode.endswith("-start")
            before = found.get(identity, (times, 0, members, False))
            found[identity] = (times, max(size, before[1]), members, hidden or before[3])
    totals: dict[tuple[str, int, bool, bool], list[int]] = {}
    for (_, kind, _, network), (times, size, members, hidden) in found.items():
        total = totals.setdefault((kind, members, hidden, network), [0, 0, 0])
        total[0] += times
        total[1] += times * size
        total[2] += times * round(size * _share_sent(kind, members, network))
    return tuple(sorted((Collective(*key, *total) for key, total in totals.items()), key=lambda one: -one.bytes))


def _share_sent(kind: str, members: int, network: bool) -> float:
    if kind == "collective-permute" or network:
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (members - 1) / members


def _computations(program: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            current = computations.setdefault(name, [])
            entry = name if line.startswith("ENTRY ") else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            type_, rest = _split_type(match[2])
            opcode, _, operands = rest.partition("(")
            current.append(_Instruction(match[1], type_, opcode.strip(), operands))
    if not entry:
        raise ValueError("no ENTRY computation")
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """The type that an instruction's text begins with, and what follows."""
    if not text.startswith("("):
        type_, _, rest = text.partition(" ")
        return type_, rest
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: index + 1], text[index + 1 :].lstrip()
    return text, ""


def _walk(computations: Mapping[str, list[_Instruction]], entry: str) -> Iterator[tuple[str, str, int, bool]]:
    """(loop body or entry that it runs in, computation, times that it runs in a step, among other work)."""
    pending = [(entry, entry, 1, False)]
    visited = set()
    while pending:
        owner, name, times, overlapped = pending.pop()
        if (owner, name, overlapped) in visited or name not in computations:
            continue
        visited.add((owner, name, overlapped))
        yield owner, name, times, overlapped
        for instruction in computations[name]:
            if instruction.opcode == "while":
                body, condition = (_called(instruction, key) for key in ("body", "condition"))
                trips = _trips(instruction, computations[name], computations.get(condition, []))
                pending.append((body, body, times * trips, False))
                continue
            if called := _called(instruction, "calls"):
                spread = "async_collective_fusion" in called or instruction.opcode == "async-start"
                pending.append((owner, called, times, overlapped or spread))


def _called(instruction: _Instruction, key: str) -> str:
    match = re.search(rf"\b{key}=%([\w.\-]+)", instruction.rest)
    return match[1] if match else ""


def _trips(loop: _Instruction, caller: list[_Instruction], condition: list[_Instruction]) -> int:
    """How often a counted loop runs: until its counter, an element of the loop's tuple, is no longer below a constant.

    A loop whose condition is anything else counts once.
    """
    by_name = {instruction.name: instruction for instruction in condition}
    for instruction in condition:
        if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
            counter, limit = (by_name.get(name) for name in re.findall(r"%([\w.\-]+)", instruction.rest)[:2])
            if counter is None or limit is None or limit.opcode != "constant":
                return 1
            index = re.search(r"index=(\d+)", counter.rest)
            start = _start(loop, caller, int(index[1])) if index else 0
            return max(1, int(limit.rest.partition(")")[0]) - start)
    return 1


def _start(loop: _Instruction, caller: list[_Instruction], index: int) -> int:
    by_name = {instruction.name: instruction for instruction in caller}
    tuple_ = by_name.get(_first_operand(loop))
    if tuple_ is None or tuple_.opcode != "tuple":
        return 0
    operands = re.findall(r"%([\w.\-]+)", tuple_.rest.partition(")")[0])
    value = by_name.get(operands[index]) if index < len(operands) else None
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = by_name.get(_first_operand(value))
    digits = value.rest.partition(")")[0] if value is not None and value.opcode == "constant" else ""
    return int(digits) if digits.isdigit() else 0


def _first_operand(instruction: _Instruction) -> str:
    match = re.match(r"%([\w.\-]+)", instruction.rest)
    return match[1] if match else ""


def _collective(instruction: _Instruction) -> tuple[str, int, int, bool] | None:
    """(kind, bytes, chips that take part, whether it goes between slices) of an instruction that is a collective."""
    kind = instruction.opcode.removesuffix("-start")
    sizes = [_array_bytes(*array) for array in _ARRAY.findall(instruction.type)]
    if kind == "send" and (transfer := re.search(r'megascale_transfer_type="(\w+)"', instruction.rest)):
        return transfer[1].lower().replace("_", "-"), sizes[0], 2, True
    if kind not in _KINDS:
        return None
    members = _members(instruction.rest)
    if instruction.opcode.endswith("-start"):  # a tuple of what goes in, what comes out, and flags
        size = max(sizes)
    else:
        size = sum(sizes) * (members if kind == "reduce-scatter" else 1)
    return kind, size, members, False


def _members(attributes: str) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    return 2


def _array_bytes(dtype: str, shape: str) -> int:
    return math.prod(int(size) for size in shape.split(",") if size) * _BYTES.get(dtype, 4)
