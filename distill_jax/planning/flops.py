"""Counts the floating-point operations of a function in its jaxpr.

XLA's cost analysis counts the body of a loop once, and a formula would have to know every model.
Here every matrix product and convolution of the traced function counts, 2 operations for a
multiplication and an addition, and the body of a scan is multiplied by its trip count. Products
with zeros that a mask or causality would allow to skip count, since they are computed. The
attention kernels, splash and cuDNN's, count as the plain attention that they replace: without the
blocks that they skip and the logits that their gradients recompute. Of a mixture of experts, only
the experts chosen for each token count; that is what a TPU computes, while a CPU computes all. Left
out on purpose: elementwise functions, a few percent of a network.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

# The number of matrix products of the size [T, H] x [H, S] in each attention kernel: logits and the
# weighted sum of values ("fwd"); all gradients ("bwd"); that of the queries ("dq"); those of the
# probabilities, the keys and the values ("dkv").
_PRODUCTS = {"fwd": 2, "bwd": 4, "dq": 1, "dkv": 3}
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
_CUDNN = re.compile(r"dot_product_attention_(fwd|bwd)_wrapper")


def count(function: Callable[..., Any], *args: Any) -> int:
    """Operations of one call, over all devices.

    Of the branches of a `cond`, the most expensive one counts. The body of a `while` loop counts
    once. What does not affect the result does not count.

    Args:
      function: a function that JAX can trace.
      *args: arrays or `jax.ShapeDtypeStruct`s.
    """
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count_jaxpr(jaxpr)


def _count_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation, params["dimension_numbers"])
    if name == "ragged_dot_general":
        return _grouped_product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "pallas_call":
        return _kernel(equation)
    if cudnn := _CUDNN.match(name):
        query, key = (_shape(value) for value in equation.invars[:2])  # [B, T, N, H]
        return _attention(cudnn[1], query, key[1])
    if name == "cond":
        return max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = sum(_count_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(params))
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        # Its body is the work of one device. The parameter's name depends on the version of JAX.
        axes = params.get("newly_manual_axes") or params["manual_axes"]
        return inner * math.prod(params["mesh"].shape[axis] for axis in axes)
    return inner


def _array(value: Var | Literal) -> ShapedArray:
    """The shape and dtype of an operand or a result."""
    assert isinstance(value.aval, ShapedArray)
    return value.aval


def _shape(value: Var | Literal) -> tuple[int, ...]:
    return _array(value).shape


def _inner_jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    found: list[Jaxpr] = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                found.append(part)
    return found


def _kernel(equation: JaxprEqn) -> int:
    """A Pallas kernel: splash attention as dense products, others by their body and grid."""
    params = equation.params
    found = _SPLASH.match(params["name"] or "")
    if found is None:
        body = sum(map(_count_jaxpr, _inner_jaxprs(params)))
        return body * math.prod(params["grid_mapping"].grid)
    arrays = map(_array, equation.invars)
    query, key = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)][:2]
    return _attention(found[1], query.shape, key.shape[-2])


def _attention(part: str, query: tuple[int, ...], keys: int) -> int:
    """A part of an attention kernel, from the shape of the queries and the number of keys."""
    return _PRODUCTS[part] * 2 * math.prod(query) * keys


def _grouped_product(equation: JaxprEqn) -> int:
    """A product of rows in groups, each row with the matrix of its group, or a gradient of it."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    found = _product(equation, numbers.dot_dimension_numbers)
    (contracted, _), _ = numbers.dot_dimension_numbers
    # The gradient of the matrices has one result a group, each a sum over that group's rows.
    summed = numbers.lhs_ragged_dimensions[0] in contracted
    return found // _shape(equation.invars[2])[-1] if summed else found


def _product(equation: JaxprEqn, numbers: Any) -> int:
    (contracted, _), _ = numbers
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right = (_shape(value) for value in equation.invars)
    out = _shape(equation.outvars[0])
    spatial = 1
    for number, axis in enumerate(numbers.lhs_spec[2:]):
        spatial *= _overlaps(
            left[axis],
            right[numbers.rhs_spec[2 + number]],
            out[numbers.out_spec[2 + number]],
            stride=params["window_strides"][number],
            padding=params["padding"][number],
            input_dilation=params["lhs_dilation"][number],
            kernel_dilation=params["rhs_dilation"][number],
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
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of an output and a kernel element that read an input element, along one axis."""
    windows = np.arange(out)[:, None] * stride - padding[0]
    read = windows + np.arange(kernel)[None] * kernel_dilation
    inside = (read >= 0) & (read < (size - 1) * input_dilation + 1) & (read % input_dilation == 0)
    return int(np.sum(inside))
