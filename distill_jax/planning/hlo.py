"""Parses the text of a compiled program: its instructions, and how often each is executed.

XLA's own cost analysis counts the body of a loop once. Here the body is multiplied by the trip
count of its loop: the count that XLA annotates, or else the bound in the loop's condition. Left out
on purpose: everything that is not needed to count bytes, such as what an instruction computes.
"""

import dataclasses
import math
import re
from collections import defaultdict

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SLICES = ("dynamic-slice", "gather", "slice")
_INTEGER = re.compile(r"= [su]\d+\[\]\S* constant\((-?\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array.

    Attributes:
      bytes: the size of its elements, without padding.
      on_chip: whether it is in an on-chip memory, not in HBM.
    """

    bytes: int
    on_chip: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: the name of its value.
      opcode: such as "fusion".
      arrays: the arrays of its value; several for a tuple.
      operands: the names of its operands.
      line: the whole text.
      root: whether the computation returns its value.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str
    root: bool

    @property
    def bytes(self) -> int:
        """The size of its value."""
        return sum(array.bytes for array in self.arrays)

    def called(self) -> dict[str, list[str]]:
        """Names of the computations it calls, by attribute: "calls", "body", "branches", ..."""
        found: dict[str, list[str]] = defaultdict(list)
        for attribute, name in _CALLED.findall(self.line):
            found[attribute].append(name)
        for names in _BRANCHES.findall(self.line):
            found["branches"] += [name.strip().lstrip("%") for name in names.split(",")]
        return dict(found)


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: computation name -> its instructions by name, in order.
      entry: the name of the computation that the program starts with.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for kind, sizes, layout in _ARRAY.findall(text):
        bits = _BITS.get(kind, 8 if kind.startswith("f8") else 0)
        size = math.prod(int(n) for n in sizes.split(",") if n)
        found.append(Array(-(-size * bits // 8), "S(" in layout))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position
    raise ValueError(f"unclosed bracket: {text[:80]}")


def _instruction(line: str, match: re.Match) -> Instruction:
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    inside = line[opening + 1 : _closing(line, opening)]
    return Instruction(
        name=match[2],
        opcode=line[end:opening].strip(),
        arrays=_arrays(line[start:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        line=line,
        root=match[1] is not None,
    )


def parse(text: str) -> Module:
    """The program in the text of `jax.stages.Compiled.as_text`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line == "}":  # alone: lines of a kernel's description begin with one
            current = None
        elif current is not None:
            match = _LINE.match(line)
            if match:
                current[match[2]] = _instruction(line, match)
    return Module(computations, entry)


def _constants(module: Module, name: str) -> list[int]:
    """The integer constants of a computation and of those that it calls."""
    found: list[int] = []
    for instruction in module.computations[name].values():
        match = _INTEGER.search(instruction.line)
        found += [int(match[1])] if match else []
        for inner in instruction.called().get("calls", ()):
            found += _constants(module, inner)
    return found


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often the body of a `while` is executed; None where that depends on computed values."""
    known = _TRIP_COUNT.search(loop.line)
    if known:
        return int(known[1])
    (condition,) = loop.called()["condition"]
    # The condition of a counted loop only compares its counter, which starts at 0, with one number.
    bounds = _constants(module, condition)
    compares = [
        i
        for i in _nested_instructions(module, condition)
        if i.opcode == "compare" and "direction=LT" in i.line
    ]
    if len(bounds) == 1 and len(compares) == 1:
        return bounds[0]
    return None


def _nested_instructions(module: Module, name: str) -> list[Instruction]:
    """The instructions of a computation and of those that it calls."""
    found: list[Instruction] = []
    for instruction in module.computations[name].values():
        found.append(instruction)
        for inner in instruction.called().get("calls", ()):
            found += _nested_instructions(module, inner)
    return found


@dataclasses.dataclass(frozen=True)
class ExecutedComputation:
    """A computation and how often it is executed.

    Attributes:
      name: the name of the computation.
      times: executions in one call of the program; each branch of a condition counts as taken.
      fused: whether it is the body of a fusion.
    """

    name: str
    times: int
    fused: bool


def executed_computations(module: Module) -> tuple[list[ExecutedComputation], int]:
    """All computations that are executed, and the number of loops with an unknown trip count.

    The body of such a loop counts once.
    """
    found: list[ExecutedComputation] = []
    unknown = 0

    def visit(name: str, times: int, fused: bool) -> None:
        nonlocal unknown
        found.append(ExecutedComputation(name, times, fused))
        for instruction in module.computations[name].values():
            called = instruction.called()
            if instruction.opcode == "while":
                trips = trip_count(module, instruction)
                unknown += trips is None
                for body in called["body"]:
                    visit(body, times * (1 if trips is None else trips), False)
            elif instruction.opcode == "fusion":
                for inner in called["calls"]:
                    visit(inner, times, True)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for inner in sum(called.values(), []):
                    visit(inner, times, fused)

    visit(module.entry, 1, False)
    return found, unknown


def _reads(module: Module, fusion: Instruction, position: int, whole: int) -> int:
    """Bytes that a fusion reads of one operand: `whole`, or less if it only reads slices of it."""
    (inner,) = fusion.called()["calls"]
    body = module.computations[inner]
    mark = f"parameter({position})"
    own = next((i for i in body.values() if i.opcode == "parameter" and mark in i.line), None)
    if own is None:
        return whole
    names, total = [own.name], 0
    for instruction in body.values():
        uses = [name for name in instruction.operands if name in names]
        if not uses:
            continue
        if instruction.opcode == "bitcast":
            names.append(instruction.name)
        elif instruction.opcode in _SLICES and instruction.operands[0] in names:
            total += instruction.bytes
        elif instruction.opcode == "dynamic-update-slice" and instruction.operands[0] in names:
            continue  # written in place
        elif instruction.opcode == "fusion":
            for number, name in enumerate(instruction.operands):
                if name in names:
                    total += _reads(module, instruction, number, whole)
        else:
            return whole
    return min(total, whole)


def _writes(module: Module, name: str, wanted: Instruction) -> int:
    """Bytes that a fusion writes for one of its values; for an update in place, the update."""
    body = module.computations[name]
    if wanted.opcode == "dynamic-update-slice":
        return body[wanted.operands[1]].bytes
    if wanted.opcode == "tuple":
        return sum(_writes(module, name, body[part]) for part in wanted.operands)
    if wanted.opcode == "bitcast" and wanted.operands:
        return min(wanted.bytes, _writes(module, name, body[wanted.operands[0]]))
    if wanted.opcode == "parameter" or any(array.on_chip for array in wanted.arrays):
        return 0
    return wanted.bytes


_FREE = frozenset(
    """parameter constant get-tuple-element tuple bitcast while conditional call after-all
    partition-id replica-id opt-barrier domain add-dependency""".split()
)


def traffic(module: Module) -> int:
    """Bytes that one call moves between a chip and its HBM.

    The sum over all instructions outside of fusions of their operands and values, without those
    that stay on the chip. Of slices and updates in place only the part that moves counts.
    """
    total = 0
    for computation in executed_computations(module)[0]:
        if computation.fused:
            continue
        body = module.computations[computation.name]
        for instruction in body.values():
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            total += computation.times * _moved(module, body, instruction)
    return total


def _moved(module: Module, body: dict[str, Instruction], instruction: Instruction) -> int:
    """Bytes that one execution of an instruction moves from and to HBM."""

    def in_hbm(value: Instruction) -> int:
        return sum(array.bytes for array in value.arrays if not array.on_chip)

    operands = [body[name] for name in instruction.operands if name in body]
    if instruction.opcode == "fusion":
        (inner,) = instruction.called()["calls"]
        root = next(i for i in module.computations[inner].values() if i.root)
        read = sum(
            _reads(module, instruction, position, in_hbm(value)) if in_hbm(value) else 0
            for position, value in enumerate(operands)
        )
        written = _writes(module, inner, root)
        return read + (min(written, in_hbm(instruction)) if in_hbm(instruction) else 0)
    if instruction.opcode in _SLICES:
        return in_hbm(instruction) + min(instruction.bytes, sum(map(in_hbm, operands)))
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * in_hbm(operands[1]) if in_hbm(instruction) else in_hbm(operands[1])
    if instruction.opcode.endswith("-start") and len(instruction.arrays) > 1:
        # (what is written, what is read, ...)
        return sum(array.bytes for array in instruction.arrays[:2] if not array.on_chip)
    return in_hbm(instruction) + sum(map(in_hbm, operands))
