"""Floating-point operations of a function, counted in its jaxpr.

XLA's cost analysis sees the body of a loop once, and a count by formula has to know every model.
Here every matrix product and convolution of the traced function is counted, and the body of a scan
as often as it turns: 2 operations for a multiplication and an addition. Products with zeros that
masks or causality would allow to leave out are counted, since they are computed. The kernels of
attention, splash and cuDNN's, count as the plain attention that they stand for: neither the blocks
that they leave out nor the logits that their gradients compute again are seen. Of experts those
that a token has are counted, which is what a TPU computes; a CPU computes all. Left out on purpose:
elementwise functions, which are a few in a hundred of a network.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

# Matrix products of [T, H] and [H, S], or as large, that a part of an attention stands for: logits
# and mixing; of the gradients all; that of the queries; those of chances, keys and values.
_PRODUCTS = {"fwd": 2, "bwd": 4, "dq": 1, "dkv": 3}
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
_CUDNN = re.compile(r"dot_product_attention_(fwd|bwd)_wrapper")


def count(function: Callable[..., Any], *args: Any) -> int:
    """Operations of one call, over all devices.

    Of the branches of a condition the most expensive one counts; a `while` loop counts once, and
    what does not reach the result counts nothing.

    Args:
      function: can be traced.
      *args: arrays or `jax.ShapeDtypeStruct`s.
    """
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _of(jaxpr)


def _of(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation, params["dimension_numbers"])
    if name == "ragged_dot_general":
        return _grouped_product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "pallas_call":
        return _kernel(equation)
    if _CUDNN.match(name):
        query, key = (value.aval.shape for value in equation.invars[:2])  # [B, T, N, H]
        return _attention(_CUDNN.match(name)[1], query, key[1])
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in params["branches"])
    inner = sum(_of(jaxpr) for jaxpr in _inner(params))
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        # Its inside is the work of one device. JAX's versions name the parameter differently.
        axes = params.get("newly_manual_axes") or params.get("manual_axes")
        return inner * math.prod(params["mesh"].shape[axis] for axis in axes)
    return inner


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                found.append(part)
    return found


def _kernel(equation: Any) -> int:
    """Of splash attention the dense products; of another kernel those of its body, in each turn."""
    params = equation.params
    found = _SPLASH.match(params["name"] or "")
    if found is None:
        return sum(map(_of, _inner(params))) * math.prod(params["grid_mapping"].grid)
    arrays = [v.aval for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    query, key = arrays[:2]
    return _attention(found[1], query.shape, key.shape[-2])


def _attention(part: str, query: tuple[int, ...], keys: int) -> int:
    """Of a part of a kernel: the shape of all queries, and how many keys each of them meets."""
    return _PRODUCTS[part] * 2 * math.prod(query) * keys


def _grouped_product(equation: Any) -> int:
    """Of rows in groups: each row meets the matrix of its own group, in either direction."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    found = _product(equation, numbers.dot_dimension_numbers)
    (contracted, _), _ = numbers.dot_dimension_numbers
    # The gradient of the matrices has one result a group, each a sum over the rows of that group.
    summed = numbers.lhs_ragged_dimensions[0] in contracted
    return found // equation.invars[2].aval.shape[-1] if summed else found


def _product(equation: Any, numbers: Any) -> int:
    (contracted, _), _ = numbers
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right = (value.aval.shape for value in equation.invars)
    out = equation.outvars[0].aval.shape
    spatial = 1
    for place, axis in enumerate(numbers.lhs_spec[2:]):
        spatial *= _overlaps(
            left[axis],
            right[numbers.rhs_spec[2 + place]],
            out[numbers.out_spec[2 + place]],
            stride=params["window_strides"][place],
            padding=params["padding"][place],
            holes=params["lhs_dilation"][place],
            spread=params["rhs_dilation"][place],
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2 * batch * features * right[numbers.rhs_spec[1]] * spatial


def _overlaps(
    size: int,
    kernel: int,
    out: int,
    *,
    stride: int,
    padding: tuple[int, int],
    holes: int,
    spread: int,
) -> int:
    """Pairs of an output and a kernel's element that meet an element of the input, in one axis."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread - padding[0]
    inside = (places >= 0) & (places < (size - 1) * holes + 1) & (places % holes == 0)
    return int(np.sum(inside))
