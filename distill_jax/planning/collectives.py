"""The collectives of a compiled step: their kinds, the mesh axes they run over, and their bytes.

Bytes are those that each chip sends with the ring algorithm, which is optimal in bytes (Patarasuk
and Yuan 2009, "Bandwidth optimal all-reduce"). With n chips and an array of S bytes, an all-gather
(S: its result) and a reduce-scatter (S: its operand) send S (n - 1) / n, an all-reduce twice that.
Left out on purpose: latency, and which link carries the bytes.
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
_SOURCE_TARGET = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same axes in a step.

    Attributes:
      kind: one of `KINDS`.
      axes: the mesh axes, in the mesh's order; () if the groups do not follow axes.
      size: the number of chips in a group.
      count: executions in a step.
      bytes: bytes that each chip sends in a step.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    bytes: int


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _transposed_iota(sizes: Sequence[int], order: str | None) -> np.ndarray:
    """An array of these sizes with the numbers from 0, its dimensions transposed to an order."""
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids if order is None else ids.transpose(_numbers(order))


def first_group(line: str, devices: int) -> tuple[int, ...]:
    """The first replica group of a collective: its devices, numbered in the order of the mesh.

    Args:
      line: the text of the instruction.
      devices: the number of devices of the program.
    """
    listed = _LISTED.search(line)
    if listed:
        return _numbers(listed[1])
    iota = _IOTA.search(line)
    if iota:
        rows = _transposed_iota(_numbers(iota[2]), iota[3]).reshape(_numbers(iota[1]))
        return tuple(int(n) for n in rows.reshape(-1, rows.shape[-1])[0])
    named = _NAMED.search(line)
    if named:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = np.arange(devices)
        if named[2]:
            ids = _transposed_iota(_numbers(named[2]), named[3])
        grid, names = ids.reshape(list(sizes.values())), list(sizes)
        chosen = re.findall(r"'([^']+)'", named[4])
        kept = [slice(None) if name in chosen else 0 for name in names]
        return tuple(int(n) for n in grid[tuple(kept)].ravel())
    pair = _SOURCE_TARGET.search(line)
    return (int(pair[1]), int(pair[2])) if pair else tuple(range(devices))


def axes_of(group: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the members of a group differ; () if the group does not span them.

    The source and target of a collective-permute may be any two devices along an axis.
    """
    coordinates = np.array(np.unravel_index(np.asarray(group), mesh.devices.shape))
    differs = [len(set(row)) > 1 for row in coordinates]
    axes = tuple(name for name, along in zip(mesh.axis_names, differs, strict=True) if along)
    whole = math.prod(mesh.shape[axis] for axis in axes)
    return axes if len(group) in (whole, 2) else ()


def _kind(instruction: Instruction, computation: str) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of it.
    scatter = opcode == "all-reduce" and computation.startswith("all-reduce-scatter")
    return "reduce-scatter" if scatter else opcode


def _continues(name: str, body: dict[str, Instruction]) -> bool:
    """Whether a fusion continues a collective that another fusion started.

    The TPU compiler writes a collective that overlaps with other work as a fusion that starts it,
    fusions of it with that work, and a fusion that ends it. Only the first is counted.
    """
    ends = any('"AsyncCollectiveDone"' in instruction.line for instruction in body.values())
    return ends or name.startswith("async_collective_fusion")


def _sent(kind: str, instruction: Instruction, size: int, operands: int) -> int:
    """Bytes that each chip of a group of `size` sends for one collective."""
    value = instruction.bytes
    if instruction.opcode.endswith("-start"):
        # (operands, results, ...): the larger one is the whole array.
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
    """The collectives of a program by kind and axes, those with the most bytes first.

    Args:
      module: the program, compiled for the devices of the mesh in the mesh's order.
      mesh: the devices.
    """
    totals: dict[tuple[str, tuple[str, ...], int], list[int]] = defaultdict(lambda: [0, 0])
    for computation in executed_computations(module)[0]:
        body = module.computations[computation.name]
        if computation.fused and _continues(computation.name, body):
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
            total = totals[kind, axes, size]
            total[0] += computation.times
            total[1] += computation.times * _sent(kind, instruction, size, operands)
    return sorted(
        (Collective(*key, count, sent) for key, (count, sent) in totals.items()),
        key=lambda c: -c.bytes,
    )
