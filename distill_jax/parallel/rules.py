"""Sharding rules: which axis of the mesh splits which dimension of an array, by its name.

A rule is a pattern of a parameter's flat name and one entry a dimension: "fsdp", "tensor" or None.
Matrices that widen are split over `tensor` by their outputs and those that narrow by their inputs,
so that a layer of a transformer has one sum over `tensor` after its attention and one after its MLP
(Shoeybi et al. 2019, "Megatron-LM", section 3); the other side of every matrix is split over `fsdp`
(Rajbhandari et al. 2020, "ZeRO", stage 3). An array of an optimizer or an average has the name and
the shape of its parameter, and so its rule. Every expert of a mixture is split as a single MLP is,
and its router is replicated. Left out on purpose: expert, pipeline and sequence parallelism.
"""

import functools
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.parallel.mesh import replicated

#: Parts of a run that can be replicated instead of sharded.
PARTS = ("student", "adapters", "optimizer", "average", "teacher")
#: The checkpoint name of what `gather` returns.
GATHERED = "gathered"

_WIDENS = r"(query|key|value|gate|up|qkv|dense1)"
_NARROWS = r"(output|down|attention/projection|dense2)"
_IN_RUN = r"runs/\d+/\w+/"

#: The first rule applies whose pattern matches the end of an array's name and that has an entry for
#: each of its dimensions; an array without a rule is replicated.
#: The first dimension of arrays in `runs/` counts layers and is never split, because a scan goes
#: over it; nor is the second of four, which counts experts.
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
    """How the rules split an array.

    Attributes:
      spec: the axis that splits each dimension.
      undivided: dimensions that a rule would split but whose size its axis does not divide.
    """

    spec: PartitionSpec
    undivided: tuple[int, ...]


def _rule(name: str, dimensions: int) -> tuple[str | None, ...]:
    for pattern, entries in RULES:
        if len(entries) == dimensions and re.search(rf"(^|/){pattern}$", name):
            return entries
    return (None,) * dimensions


def partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> Partition:
    """How an array is split; a dimension that its axis does not divide stays whole."""
    spec, undivided = [], []
    for dimension, (axis, size) in enumerate(zip(_rule(name, len(shape)), shape, strict=True)):
        ways = 1 if axis is None else mesh.shape[axis]
        if size % ways:
            undivided.append(dimension)
        spec.append(axis if ways > 1 and not size % ways else None)
    return Partition(PartitionSpec(*spec), tuple(undivided))


def sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter by the rules."""
    return NamedSharding(mesh, partition(name, shape, mesh).spec)


def _path_names(path: tuple[Any, ...]) -> list[str]:
    """The keys and fields on the path to a leaf."""
    found = (getattr(part, "key", getattr(part, "name", None)) for part in path)
    return [name for name in found if isinstance(name, str)]


def shardings(tree: Any, mesh: Mesh, replicate: Collection[str] = ()) -> Any:
    """The shardings of all arrays of a pytree.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`s, with parameters in dictionaries by flat name, such
        as a `TrainState`, or the parameters of a teacher.
      mesh: the devices.
      replicate: names of fields at the top of the tree whose arrays are replicated.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _path_names(path)
        if not names or names[0] in replicate:
            return replicated(mesh)
        return sharding(names[-1], leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


class Undivided(NamedTuple):
    """A dimension of an array that stays whole because the size of its axis does not divide it."""

    name: str
    shape: tuple[int, ...]
    axis: str


def undivided(tree: Any, mesh: Mesh) -> Iterator[Undivided]:
    """All dimensions in a pytree that a rule would split but that do not divide."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for name in _path_names(path)[-1:]:
            for dimension in partition(name, leaf.shape, mesh).undivided:
                axis = _rule(name, len(leaf.shape))[dimension]
                assert axis is not None
                yield Undivided(name, leaf.shape, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _reshard(x: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:
    """`x` in the sharding `used`; its gradient in the sharding `stored`."""
    del stored
    return jax.lax.with_sharding_constraint(x, used)


def _reshard_forward(
    x: jax.Array, stored: NamedSharding, used: NamedSharding
) -> tuple[jax.Array, None]:
    return _reshard(x, stored, used), None


def _reshard_backward(
    stored: NamedSharding, used: NamedSharding, residuals: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del used, residuals
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_reshard.defvjp(_reshard_forward, _reshard_backward)


def gather(x: jax.Array, stored: NamedSharding) -> jax.Array:
    """Gathers an array over `fsdp` for its use; its gradient is scattered into shards again.

    The result has the checkpoint name `GATHERED`, so that rematerialisation can gather it again in
    place of keeping it.

    Args:
      x: the array, in the dtype that it is used in.
      stored: its sharding.
    """
    if "fsdp" not in stored.spec:
        return x
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored.spec))
    whole = _reshard(x, stored, NamedSharding(stored.mesh, used))
    return checkpoint_name(whole, GATHERED)


def gather_tree(tree: Any, mesh: Mesh) -> Any:
    """All parameters of a tree, each gathered by `gather`."""
    if mesh.shape["fsdp"] == 1:
        return tree

    def gather_leaf(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return gather(leaf, sharding(_path_names(path)[-1], leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(gather_leaf, tree)
