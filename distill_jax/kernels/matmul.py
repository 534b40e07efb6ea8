"""Products of bfloat16 matrices on a CPU: oneDNN's where they are in use, XLA's elsewhere.

XLA multiplies bfloat16 matrices in float32. oneDNN uses the processor's own instructions for them,
which multiply twice as fast, and likewise sums in float32. They enter where `jax.lax.dot_general`
is lowered for a CPU: every layer, gradient, scan and rematerialisation has them, and a program for
another platform is as it was. What has no form here (other dtypes, small products, axes that do
not lie as a matrix, a program for several devices) keeps XLA's product.
"""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters import mlir

from distill_jax.kernels import native

_LEAST = 2**22  # floating-point operations, below which a call is not worth its overhead
_LEAST_A_PIECE = 2**25
_MOST_PIECES = 16
_ROWS, _COLUMNS = 64, 1024  # the least of a piece
_SHORTEST = 8  # side of a matrix
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_EXACT = (None, jax.lax.Precision.DEFAULT, jax.lax.DotAlgorithmPreset.BF16_BF16_F32)

Axes = tuple[int, ...]
#: ((contracted of x, of y), (batch of x, of y)), as in `jax.lax.dot_general`.
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]


class Form(NamedTuple):
    """A product as matrices [..., M, K] x [..., K, N] in the memory of its operands.

    Attributes:
      sizes: the batch axes, M, K and N.
      x_strides: of the batch axes, M and K, in elements.
      y_strides: of the batch axes, K and N.
    """

    sizes: tuple[int, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * math.prod(self.sizes)

    def pieces(self) -> tuple[int, int]:
        """(axis of the result, how many of its indices make a piece), from the sizes alone."""
        *batch, m, _, n = self.sizes
        most = max(1, min(_MOST_PIECES, self.operations // _LEAST_A_PIECE))
        if batch and max(batch) >= 4:
            axis = int(np.argmax(batch))
            return axis, math.ceil(batch[axis] / most)
        # A piece of rows reads all of y, one of columns all of x: the larger is read once.
        axis, length, least = len(batch), m, _ROWS
        if n >= 8 * m:
            axis, length, least = len(batch) + 1, n, _COLUMNS
        elif m >= 4 * _ROWS:
            least = 2 * _ROWS
        count = max(1, min(most, length // least))
        return axis, math.ceil(length / count / 32) * 32


def form_of(x: Sequence[int], y: Sequence[int], numbers: DimensionNumbers) -> Form | None:
    """The form of a product of arrays of these shapes; None where it has none."""
    (x_contracted, y_contracted), (x_batch, y_batch) = numbers
    x_strides, y_strides = _strides(x), _strides(y)
    order = np.argsort(x_contracted)
    axes = (
        _joined(x, x_strides, _others(x, x_contracted, x_batch)),
        _joined(x, x_strides, [x_contracted[i] for i in order]),
        _joined(y, y_strides, [y_contracted[i] for i in order]),
        _joined(y, y_strides, _others(y, y_contracted, y_batch)),
    )
    if any(axis is None for axis in axes) or len(x_batch) > 2:
        return None
    (m, x_rows), (k, x_columns), (_, y_rows), (n, y_columns) = axes  # type: ignore[misc]
    sizes = (*(x[axis] for axis in x_batch), m, k, n)
    if min(m, k, n) < _SHORTEST or 1 not in (x_rows, x_columns) or 1 not in (y_rows, y_columns):
        return None
    return Form(
        sizes,
        (*(x_strides[axis] for axis in x_batch), x_rows, x_columns),
        (*(y_strides[axis] for axis in y_batch), y_rows, y_columns),
    )


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _others(shape: Sequence[int], *taken: Axes) -> list[int]:
    return [axis for axis in range(len(shape)) if not any(axis in axes for axes in taken)]


def _joined(
    shape: Sequence[int], strides: Sequence[int], axes: Sequence[int]
) -> tuple[int, int] | None:
    """(length, stride) of several axes as one; None if they do not lie so."""
    axes = [axis for axis in axes if shape[axis] != 1]
    if not axes:
        return 1, 1
    for outer, inner in zip(axes, axes[1:], strict=False):
        if strides[outer] != strides[inner] * shape[inner]:
            return None
    return math.prod(shape[axis] for axis in axes), strides[axes[-1]]


def _multiply(x: Array, y: Array, *, form: Form, result: Any) -> Array:
    """The native call."""
    axis, piece = form.pieces()
    call = jax.ffi.ffi_call("distill_matmul", jax.ShapeDtypeStruct(result.shape, result.dtype))
    names = ("sizes", "x_strides", "y_strides")
    attributes = {name: np.array(v, np.int64) for name, v in zip(names, form, strict=True)}
    return call(x, y, axis=np.int64(axis), piece=np.int64(piece), **attributes)


def _applicable(context: Any, precision: Any) -> bool:
    """Whether products that are lowered in this context may be oneDNN's."""
    pair = precision if isinstance(precision, tuple) else (precision,)
    x, y = context.avals_in
    (z,) = context.avals_out
    devices = getattr(context.module_context.axis_context, "num_devices", 1)
    return (
        native.enabled()
        and x.dtype == y.dtype == jnp.bfloat16
        and z.dtype in (jnp.bfloat16, jnp.float32)
        and all(one in _EXACT for one in pair)
        and devices == 1
    )


@functools.cache
def install() -> bool:
    """Lowers products for CPUs by oneDNN from now on, while `native.enabled`.

    Returns:
      False, and nothing is changed, where the processor has no instructions for bfloat16, or JAX
      has its own rule, for all other products, in another place.
    """
    try:
        from jax._src.lax.lax import _dot_general_lower as own
    except ImportError:
        return False
    if not _has_instructions():
        return False

    def rule(context: Any, x: Any, y: Any, *, precision: Any, **options: Any) -> Any:
        form = None
        if _applicable(context, precision):
            x_aval, y_aval = context.avals_in
            form = form_of(x_aval.shape, y_aval.shape, options["dimension_numbers"])
        if form is None or form.operations < _LEAST:
            return own(context, x, y, precision=precision, platform="cpu", **options)
        call = functools.partial(_multiply, form=form, result=context.avals_out[0])
        return mlir.lower_fun(call, multiple_results=False)(context, x, y)

    mlir.register_lowering(jax.lax.dot_general_p, rule, platform="cpu")
    return True


def _has_instructions() -> bool:
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(name in words for name in _INSTRUCTIONS)
