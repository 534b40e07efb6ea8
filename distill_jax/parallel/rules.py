"""Sharding rules: which axis of the mesh splits which dimension of an array, by its name.

A rule is a pattern of a parameter's flat name and one entry a dimension: "fsdp", "tensor" or None.
Matrices that widen are split over `tensor` by their outputs and those that narrow by their inputs,
so that a layer of a transformer has one sum over `tensor` after its attention and one after its MLP
(Shoeybi et al. 2019, "Megatron-LM", section 3); the other side of every matrix is split over `fsdp`
(Rajbhandari et al. 2020, "ZeRO", stage 3). An array of an optimizer or an average has the name and
the shape of its parameter, and so its rule. Every expert of a mixture is split as a single MLP is,
and its router is whole. Left out on purpose: experts on devices of their own, pipelines, and
sequences in shards.
"""

import functools
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.parallel.mesh import replicated

#: What can be whole on every device in place of in shards.
PARTS = ("student", "adapters", "optimizer", "average", "teacher")
#: The name of what `gather` returns.
GATHERED = "gathered"

_WIDENS = r"(query|key|value|gate|up|qkv|dense1)"
_NARROWS = r"(output|down|attention/projection|dense2)"
_IN_RUN = r"runs/\d+/\w+/"

#: For an array holds the first rule whose pattern ends its name and that has an entry for each of
#: its dimensions; an array without a rule is whole on every device.
#: The first dimension of what is in `runs/` counts layers, and is whole: a scan goes over it. So is
#: the second of four, which counts experts.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # decoders
    (r"embedding", ("tensor", "fsdp")),
    (r"untied_head", ("fsdp", "tensor")),
    (rf"{_IN_RUN}{_WIDENS}/kernel", (None, "fsdp", "tensor")),
    (rf"{_IN_RUN}{_NARROWS}/kernel", (None, "tensor", "fsdp")),
    (rf"{_IN_RUN}{_WIDENS}/(bias|kernel_scale)", (None, "tensor")),
    (rf"{_IN_RUN}{_WIDENS}/kernel", (None, None, "fsdp", "tensor")),
    (rf"{_IN_RUN}{_NARROWS}/kernel", (None, None, "tensor", "fsdp")),
    (rf"{_IN_RUN}{_WIDENS}/kernel_scale", (None, None, "tensor")),
    (rf"{_IN_RUN}{_WIDENS}/low_rank/a/kernel", (None, "fsdp", None)),
    (rf"{_IN_RUN}{_WIDENS}/low_rank/b/kernel", (None, None, "tensor")),
    (rf"{_IN_RUN}{_NARROWS}/low_rank/a/kernel", (None, "tensor", None)),
    (rf"{_IN_RUN}{_NARROWS}/low_rank/b/kernel", (None, None, "fsdp")),
    # vision transformers
    (rf"blocks/.*/{_WIDENS}/kernel", ("fsdp", "tensor")),
    (rf"blocks/.*/{_NARROWS}/kernel", ("tensor", "fsdp")),
    (rf"blocks/.*/{_WIDENS}/bias", ("tensor",)),
    # convolutions, classifiers, projections of adapters
    (r"kernel", (None, None, "fsdp", "tensor")),
    (r"kernel", ("fsdp", "tensor")),
)


class Partition(NamedTuple):
    """Where an array goes by the rules.

    Attributes:
      spec: what splits each dimension.
      whole: dimensions that a rule would split, and whose size its axis does not divide.
    """

    spec: PartitionSpec
    whole: tuple[int, ...]


def _rule(name: str, dimensions: int) -> tuple[str | None, ...]:
    for pattern, entries in RULES:
        if len(entries) == dimensions and re.search(rf"(^|/){pattern}$", name):
            return entries
    return (None,) * dimensions


def partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> Partition:
    """Where an array of this name and shape goes; a dimension that does not divide stays whole."""
    spec, whole = [], []
    for dimension, (axis, size) in enumerate(zip(_rule(name, len(shape)), shape, strict=True)):
        ways = 1 if axis is None else mesh.shape[axis]
        if size % ways:
            whole.append(dimension)
        spec.append(axis if ways > 1 and not size % ways else None)
    return Partition(PartitionSpec(*spec), tuple(whole))


def sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter by the rules."""
    return NamedSharding(mesh, partition(name, shape, mesh).spec)


def _names(path: tuple[Any, ...]) -> list[str]:
    """The keys and fields on the way to a leaf."""
    found = (getattr(part, "key", getattr(part, "name", None)) for part in path)
    return [name for name in found if isinstance(name, str)]


def shardings(tree: Any, mesh: Mesh, replicate: Collection[str] = ()) -> Any:
    """The shardings of all arrays of a pytree.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`s, with parameters in dictionaries by flat name, such
        as a `TrainState`, or the parameters of a teacher.
      mesh: the devices.
      replicate: names of fields at the top of the tree whose arrays are whole on every device.
    """

    def of(path, leaf):
        names = _names(path)
        if not names or names[0] in replicate:
            return replicated(mesh)
        return sharding(names[-1], leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


def gather_tree(tree: Any, mesh: Mesh) -> Any:
    """Parameters that are put together over `fsdp`, all at once, each with `gather`."""
    if mesh.shape["fsdp"] == 1:
        return tree

    def whole(path, leaf):
        return gather(leaf, sharding(_names(path)[-1], leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(whole, tree)


def undivided(tree: Any, mesh: Mesh) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """What is left whole since it does not divide by its axis: (name, shape, axis)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for name in _names(path)[-1:]:
            for dimension in partition(name, leaf.shape, mesh).whole:
                yield name, leaf.shape, _rule(name, len(leaf.shape))[dimension]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _regathered(x: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:
    del stored
    return jax.lax.with_sharding_constraint(x, used)


def _regathered_forward(x, stored, used):
    return _regathered(x, stored, used), None


def _regathered_backward(stored, used, residuals, gradient):
    del used, residuals
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_regathered.defvjp(_regathered_forward, _regathered_backward)


def gather(x: jax.Array, stored: NamedSharding) -> jax.Array:
    """An array that is put together over `fsdp` for its use; its gradient goes back in shards.

    It carries the name "gathered", by which rematerialisation can tell it from what is to be kept.

    Args:
      x: the array, as it is stored, in the dtype that it is used in.
      stored: where.
    """
    if "fsdp" not in stored.spec:
        return x
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored.spec))
    whole = _regathered(x, stored, NamedSharding(stored.mesh, used))
    return checkpoint_name(whole, GATHERED)
