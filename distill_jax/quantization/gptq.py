"""GPTQ (Frantar et al., 2023, arXiv:2210.17323): codes that keep a matrix's outputs, not itself.

    factor = inverse_factor(moment)                      # of the inputs of calibration data
    codes, scales = quantize(kernel, factor, INT4_G128)

The inputs are rounded one after the other. What rounding input i has changed in the outputs is
made up for by the inputs after it, as the inverse of the inputs' second moments says (equations 2
and 3, in the Cholesky form of algorithm 1): so sum ||x W - x W'||^2 is lower than that of the
nearest codes. The scales of a group are fixed when its first input is reached, from the weights as
they are then.

This is not `qwix.contrib.gptq` (0.1.8), because that traces a Python loop over all inputs (a
program of thousands of operations for each shape), finds the moments by the module paths of a
forward pass, which our scan over layers hides, inverts them in float32, and knows none of the grids
here. Left out on purpose: inputs in the order of their size (`act_order`), which the packed formats
express only with a permutation.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distill_jax.quantization.grids import Grid

#: Part of the mean of the moments' diagonal that is added to it (section 4.1: 1 %).
DAMPING = 0.01
# Inputs that are rounded before the rest of the matrix is updated (section 3.3, step 2).
_BLOCK = 128

CodesAndScales: TypeAlias = tuple[Array, Array]


def inverse_factor(moment: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """The upper Cholesky factor U of the inverse of damped second moments: inverse = U^T U.

    Computed on the host in float64.

    Args:
      moment: sum of x x^T over the calibration data, [inputs, inputs].
      damping: this part of the mean of the diagonal is added to it.

    Returns:
      float32 [inputs, inputs]. An input that was always 0 is independent of all, so that it gets
      its nearest code.
    """
    wide = np.array(moment, np.float64)
    diagonal = wide.diagonal().copy()
    silent = diagonal <= 0
    wide[silent, :] = wide[:, silent] = 0
    added = damping * diagonal.mean() if diagonal.any() else 1.0
    wide[np.diag_indices_from(wide)] += added + np.where(silent, 1.0, 0.0)
    return np.linalg.cholesky(np.linalg.inv(wide)).T.astype(np.float32)


def quantize(kernel: Array, factor: Array, grid: Grid) -> CodesAndScales:
    """The codes and scales of one matrix.

    Args:
      kernel: [inputs, outputs], of any float dtype.
      factor: of `inverse_factor`, for its inputs.
      grid: whose groups divide the inputs.

    Returns:
      As `Grid.encode`.
    """
    inputs = kernel.shape[0]
    unit = grid.group or 1
    size = unit * max(n for n in range(1, max(_BLOCK // unit, 1) + 1) if inputs % (unit * n) == 0)
    rest = kernel.astype(jnp.float32)
    # Without groups, all inputs of an output share a scale, which is that of the weights at first.
    whole = None if grid.group else grid.encode(rest)[1]
    codes, scales = [], []
    for start in range(0, inputs, size):
        rest, found = _round_block(rest, factor, start, whole, size=size, grid=grid)
        codes.append(found[0])
        scales.append(found[1])
    return jnp.concatenate(codes), jnp.concatenate(scales) if whole is None else whole


@functools.partial(jax.jit, static_argnames=("size", "grid"))
def _round_block(
    kernel: Array, factor: Array, start: Array, whole: Array | None, *, size: int, grid: Grid
) -> tuple[Array, CodesAndScales]:
    """Rounds `size` inputs from `start` on, and changes those after them.

    Args:
      kernel: [inputs, outputs] so far.
      factor: upper triangular [inputs, inputs].
      start: the first input.
      whole: the scales [1, outputs] of all inputs; None for those of each group.
      size: a multiple of the group.
      grid: of the codes.

    Returns:
      The kernel after it, and (codes [size, outputs], scales [groups of the block, outputs]).
    """
    block = jax.lax.dynamic_slice_in_dim(kernel, start, size)
    rows = jax.lax.dynamic_slice_in_dim(factor, start, size)  # [size, inputs]
    square = jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)
    codes = jnp.zeros(block.shape, grid.code_dtype)
    errors, scales = jnp.zeros_like(block), []
    unit = grid.group or size
    for begin in range(0, size, unit):
        group = grid.encode(block[begin : begin + unit])[1] if whole is None else whole
        scales.append(group)

        def step(i: Array, carry: tuple[Array, ...], group: Array = group) -> tuple[Array, ...]:
            block, codes, errors = carry
            own = jax.lax.dynamic_slice_in_dim(block, i, 1)
            code = grid.nearest(own, group)
            error = (own - grid.decode(code, group, jnp.float32)) / square[i, i]
            # The factor is upper triangular: inputs before this one are not changed.
            block = block - square[i][:, None] * error
            update = jax.lax.dynamic_update_slice_in_dim
            return block, update(codes, code, i, 0), update(errors, error, i, 0)

        block, codes, errors = jax.lax.fori_loop(begin, begin + unit, step, (block, codes, errors))
    after = jnp.arange(kernel.shape[0]) >= start + size
    changed = jnp.matmul(rows.T, errors, precision=jax.lax.Precision.HIGHEST)
    kernel = kernel - jnp.where(after[:, None], changed, 0.0)
    return kernel, (codes, jnp.concatenate(scales))
