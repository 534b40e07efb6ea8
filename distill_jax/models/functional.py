"""A network as a pure function of flat dictionaries: `split` it once, then `apply` it anywhere.

Outside of `models`, parameters and batch statistics are plain dictionaries from "path/with/slashes"
to arrays, sorted by name: optimizers, checkpoints, files, fingerprints and sharding rules all read
the same names. The rest of a network (its architecture and compute dtype) is the graph definition.
It is hashable, and equal for two networks made with the same arguments, so it can be a static
argument of `jit`. A network holds no random state: randomness is the `key` of a call.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.outputs import Outputs

Flat = dict[str, Array]
Module = TypeVar("Module", bound=nnx.Module)


def _flat(state: nnx.State) -> Flat:
    leaves = {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }
    return dict(sorted(leaves.items()))


def _state(flat: Mapping[str, Array]) -> nnx.State:
    # In the paths of NNX, an index into a list is an integer and everything else a string.
    # A NumPy array must be copied: NNX would write the new statistics into the caller's array.
    return nnx.from_flat_state(
        [
            (
                tuple(int(part) if part.isdigit() else part for part in name.split("/")),
                jnp.asarray(value),
            )
            for name, value in flat.items()
        ]
    )


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Flat, Flat]:
    """The three parts of a network.

    Args:
      module: what `create` returned, or `abstract` (the arrays are then `jax.ShapeDtypeStruct`s).

    Returns:
      (graphdef, params, stats): the hashable definition; the trained parameters; the running
      statistics of batch normalisation (empty where a network has none). Both sorted by name.
    """
    graphdef, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, stats = states
    return graphdef, _flat(params), _flat(stats)


def merge(graphdef: nnx.GraphDef[Module], arrays: Mapping[str, Array]) -> Module:
    """The network of a definition and its arrays: the inverse of `split`."""
    return nnx.merge(graphdef, _state(arrays))


def apply(
    graphdef: nnx.GraphDef,
    params: Mapping[str, Array],
    stats: Mapping[str, Array],
    images: Array,
    *,
    train: bool = False,
    key: Array | None = None,
) -> tuple[Outputs, Flat]:
    """Computes a network's outputs; pure, and `jit`-able with `graphdef` and `train` static.

    Args:
      graphdef: from `split`.
      params: from `split`, or trained since.
      stats: from `split`, or from an earlier call.
      images: float [B, H, W, C], normalised.
      train: normalise by the batch's statistics and update the running ones, and drop out;
        otherwise neither.
      key: the random key of this call's dropout; needed when `train` and the network drops out.

    Returns:
      (outputs, new_stats). Without `train`, `new_stats` equals `stats`.
    """
    module = merge(graphdef, {**params, **stats})
    outputs = module(images, train=train, key=key)
    # Sorted, as any pytree of them is: a tap has one position in shapes and in steps.
    outputs = Outputs(outputs.logits, dict(sorted(outputs.taps.items())))
    return outputs, _flat(nnx.state(module, nnx.BatchStat)) if train else dict(stats)


def output_shapes(
    graphdef: nnx.GraphDef,
    params: Mapping[str, Array],
    stats: Mapping[str, Array],
    input_shape: tuple[int, ...],
) -> Outputs:
    """The outputs on one image, as `jax.ShapeDtypeStruct`s [1, ...]; nothing is computed.

    Args:
      graphdef, params, stats: from `split`; the arrays may be `jax.ShapeDtypeStruct`s.
      input_shape: (H, W, C).
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda p, s, x: apply(graphdef, p, s, x, train=False), dict(params), dict(stats), images
    )
    return outputs


def parameter_count(params: Mapping[str, Array]) -> int:
    """The number of parameters, of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(value.shape) for value in params.values())
