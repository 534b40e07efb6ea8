"""What a compiled step sends between chips: which collective, over which axes of the mesh, bytes.

Bytes are those that each chip sends with the algorithm of a ring, which no other beats in bytes
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce"): of n chips and an array of S bytes,
S (n - 1) / n for an all-gather (S: the whole) or a reduce-scatter (S: before it), twice that for an
all-reduce. Left out on purpose: the time until the first byte, and which link carries it.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from distill_jax.planning.hlo import Instruction, Module, executed_computations

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective over some axes, over all its places in a step.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, in its order; () where its groups follow no axes.
      size: chips of a group.
      count: how often it is executed in a step.
      bytes: that each chip sends in a step.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    bytes: int


def _numbers(said: str) -> tuple[int, ...]:
    return tuple(int(part) for part in said.split(",") if part)


def _turned(sizes: Sequence[int], order: str | None) -> np.ndarray:
    """The numbers from 0 in an array of these sizes, with its dimensions in another order."""
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids if order is None else ids.transpose(_numbers(order))


def first_group(line: str, devices: int) -> tuple[int, ...]:
    """The first group of a collective: the numbers of its devices in the order of the mesh.

    Args:
      line: the instruction.
      devices: of the program.
    """
    listed = _LISTED.search(line)
    if listed:
        return _numbers(listed[1])
    iota = _IOTA.search(line)
    if iota:
        rows = _turned(_numbers(iota[2]), iota[3]).reshape(_numbers(iota[1]))
        return tuple(int(n) for n in rows.reshape(-1, rows.shape[-1])[0])
    named = _NAMED.search(line)
    if named:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = np.arange(devices)
        if named[2]:
            ids = _turned(_numbers(named[2]), named[3])
        grid, names = ids.reshape(list(sizes.values())), list(sizes)
        chosen = re.findall(r"'([^']+)'", named[4])
        kept = [slice(None) if name in chosen else 0 for name in names]
        return tuple(int(n) for n in grid[tuple(kept)].ravel())
    pair = _PAIRS.search(line)
    return (int(pair[1]), int(pair[2])) if pair else tuple(range(devices))


def axes_of(group: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the members of a group differ; () where a group is no whole slice.

    A pair of a permutation is a step along one axis, and may be a part of it.
    """
    places = np.array(np.unravel_index(np.asarray(group), mesh.devices.shape))
    moves = [len(set(row)) > 1 for row in places]
    axes = tuple(name for name, moved in zip(mesh.axis_names, moves, strict=True) if moved)
    whole = math.prod(mesh.shape[axis] for axis in axes)
    return axes if len(group) in (whole, 2) else ()


def _kind(instruction: Instruction, computation: str) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of it.
    scatter = opcode == "all-reduce" and computation.startswith("all-reduce-scatter")
    return "reduce-scatter" if scatter else opcode


def _goes_on(name: str, body: dict[str, Instruction]) -> bool:
    """Whether a fusion goes on with a collective that another one began.

    The TPU compiler writes one that overlaps with other work as a fusion that begins it, fusions
    of it with that work, and a fusion that ends it.
    """
    ends = any('"AsyncCollectiveDone"' in instruction.line for instruction in body.values())
    return ends or name.startswith("async_collective_fusion")


def _sent(kind: str, instruction: Instruction, size: int, operands: int) -> int:
    """Bytes that a chip sends for one collective in a group of `size`."""
    value = instruction.bytes
    if instruction.opcode.endswith("-start"):
        # (operands, results, ...): the larger is the whole array.
        half = [array.bytes for array in instruction.arrays]
        value = max(half) if len(half) <= 4 else sum(half) // 2
    whole = max(value, operands)
    part = whole * (size - 1) / size
    if kind == "all-reduce":
        return round(2 * part)
    if kind in ("collective-permute", "collective-broadcast"):
        return whole
    return round(part)


def collectives(module: Module, mesh: Mesh) -> list[Collective]:
    """What a program sends, by kind and axes, most bytes first.

    Args:
      module: the program, compiled for the devices of the mesh in its order.
      mesh: the devices.
    """
    found = defaultdict(lambda: [0, 0])
    for computation in executed_computations(module)[0]:
        body = module.computations[computation.name]
        if computation.fused and _goes_on(computation.name, body):
            continue
        for instruction in body.values():
            kind = _kind(instruction, computation.name)
            if kind is None:
                continue
            group = first_group(instruction.line, mesh.size)
            axes = axes_of(group, mesh)
            size = len(group)
            if kind == "collective-permute":
                size = math.prod(mesh.shape[axis] for axis in axes)
            if size == 1:
                continue
            operands = sum(body[name].bytes for name in instruction.operands if name in body)
            entry = found[kind, axes, size]
            entry[0] += computation.times
            entry[1] += computation.times * _sent(kind, instruction, size, operands)
    return sorted(
        (Collective(*key, count, sent) for key, (count, sent) in found.items()),
        key=lambda c: -c.bytes,
    )
