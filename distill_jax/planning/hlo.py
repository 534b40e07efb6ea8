"""Reading the text of a compiled program: its instructions, and how often each is executed.

XLA's own cost analysis sees the body of a loop once. Here a body counts as often as its loop turns:
by the count that XLA writes beside the loop, or else by the bound in the loop's condition. Left out
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
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SLICES = ("dynamic-slice", "gather", "slice")
_INTEGER = re.compile(r"= [su]\d+\[\]\S* constant\((-?\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of one array.

    Attributes:
      bytes: of its elements, without padding.
      on_chip: whether it is kept in a memory within the chip, not in HBM.
    """

    bytes: int
    on_chip: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its value.
      opcode: such as "fusion".
      arrays: of its value; several for a tuple.
      operands: names of the values that it takes.
      line: the whole text.
      root: whether the computation returns it.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str
    root: bool

    @property
    def bytes(self) -> int:
        """Of its value."""
        return sum(array.bytes for array in self.arrays)

    def called(self) -> dict[str, list[str]]:
        """Names of the computations that it calls, by how: "calls", "body", "branches", ..."""
        found = defaultdict(list)
        for how, name in _CALLED.findall(self.line):
            found[how].append(name)
        for names in _BRANCHES.findall(self.line):
            found["branches"] += [name.strip().lstrip("%") for name in names.split(",")]
        return dict(found)


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: instructions by name, in order, by the name of their computation.
      entry: the name of the first computation.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str


def _arrays(said: str) -> tuple[Array, ...]:
    found = []
    for kind, sizes, layout in _ARRAY.findall(said):
        bits = _BITS.get(kind, 8 if kind.startswith("f8") else 0)
        size = math.prod(int(n) for n in sizes.split(",") if n)
        found.append(Array(-(-size * bits // 8), "S(" in layout))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
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
    """The program of the text that `jax.stages.Compiled.as_text` gives."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line == "}":  # what a kernel says of itself has lines that begin so
            current = None
        elif current is not None:
            match = _LINE.match(line)
            if match:
                current[match[2]] = _instruction(line, match)
    return Module(computations, entry)


def _constants(module: Module, name: str) -> list[int]:
    """The integers in a computation and in those that it calls."""
    found = []
    for instruction in module.computations[name].values():
        match = _INTEGER.search(instruction.line)
        found += [int(match[1])] if match else []
        for inner in instruction.called().get("calls", ()):
            found += _constants(module, inner)
    return found


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often the body of a `while` is executed; None where it depends on what it computes."""
    known = _TRIPS.search(loop.line)
    if known:
        return int(known[1])
    (condition,) = loop.called()["condition"]
    # A counted loop compares its counter, which starts at 0, with one number, and nothing else.
    bounds = _constants(module, condition)
    compares = [
        i
        for i in _everything(module, condition)
        if i.opcode == "compare" and "direction=LT" in i.line
    ]
    if len(bounds) == 1 and len(compares) == 1:
        return bounds[0]
    return None


def _everything(module: Module, name: str) -> list[Instruction]:
    found = []
    for instruction in module.computations[name].values():
        found.append(instruction)
        for inner in instruction.called().get("calls", ()):
            found += _everything(module, inner)
    return found


@dataclasses.dataclass(frozen=True)
class ExecutedComputation:
    """A computation and how often it is executed.

    Attributes:
      name: of it.
      times: in one call of the program. Of branches, each counts as if it were taken.
      fused: whether it is the inside of a fusion.
    """

    name: str
    times: int
    fused: bool


def executed_computations(module: Module) -> tuple[list[ExecutedComputation], int]:
    """All computations that are executed, and the number of loops whose turns are not known.

    A loop of unknown turns counts once.
    """
    found: list[ExecutedComputation] = []
    unknown = 0

    def visit(name: str, times: int, fused: bool) -> None:
        nonlocal unknown
        found.append(ExecutedComputation(name, times, fused))
        for instruction in module.computations[name].values():
            called = instruction.called()
            if instruction.opcode == "while":
                turns = trip_count(module, instruction)
                unknown += turns is None
                for body in called["body"]:
                    visit(body, times * (1 if turns is None else turns), False)
            elif instruction.opcode == "fusion":
                for inner in called["calls"]:
                    visit(inner, times, True)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for inner in sum(called.values(), []):
                    visit(inner, times, fused)

    visit(module.entry, 1, False)
    return found, unknown


def _reads(module: Module, fusion: Instruction, position: int, whole: int) -> int:
    """Bytes of an operand that a fusion reads: of one that it only takes slices of, those."""
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
            for place, name in enumerate(instruction.operands):
                if name in names:
                    total += _reads(module, instruction, place, whole)
        else:
            return whole
    return min(total, whole)


def _writes(module: Module, name: str, wanted: Instruction) -> int:
    """Bytes that a fused value is written as: of an update in place, the update."""
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

    The operands and the value of every instruction that is not within a fusion, but for those that
    are kept on the chip, and of slices and updates in place the part that moves.
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
    def held(value: Instruction) -> int:
        return sum(array.bytes for array in value.arrays if not array.on_chip)

    operands = [body[name] for name in instruction.operands if name in body]
    if instruction.opcode == "fusion":
        (inner,) = instruction.called()["calls"]
        root = next(i for i in module.computations[inner].values() if i.root)
        read = sum(
            _reads(module, instruction, place, held(value)) if held(value) else 0
            for place, value in enumerate(operands)
        )
        written = _writes(module, inner, root)
        return read + (min(written, held(instruction)) if held(instruction) else 0)
    if instruction.opcode in _SLICES:
        return held(instruction) + min(instruction.bytes, sum(map(held, operands)))
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * held(operands[1]) if held(instruction) else held(operands[1])
    if instruction.opcode.endswith("-start") and len(instruction.arrays) > 1:
        # (what is written, what is read, ...)
        return sum(array.bytes for array in instruction.arrays[:2] if not array.on_chip)
    return held(instruction) + sum(map(held, operands))
