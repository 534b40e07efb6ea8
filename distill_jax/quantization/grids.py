"""Grids: a kernel as codes of few bits and scales, exactly as the file formats define them.

    codes, scales = INT4_G128.encode(kernel)            # kernel [..., inputs, outputs]
    kernel = INT4_G128.decode(codes, scales, jnp.bfloat16)

A group is `group` neighbours along the inputs, or all inputs of an output channel. Two families:

- compressed-tensors (int4, int8, fp8): scale = max |w| / bound, code = round(clip(w / scale)),
  ties to even, with bound 7.5, 127.5 or 448, half of the range of the codes;
- GGUF (q4_0, q8_0): scale = signed max / -8 or max |w| / 127, kept in float16, and codes from the
  reciprocal of the scale before it is rounded to float16, as `gguf.quants` computes them.

`encode` gives the same codes and scales for a numpy array, for a jax array, and under jit. XLA
rewrites a division by a constant or by a broadcast value as a product with the reciprocal, and
fuses a product with the sum after it; both change codes, and `_divide` and the clipping between
product and sum prevent it. So never encode twice: absmax/7.5 is not idempotent, since the largest
weight, decoded, is 7/7.5 or 8/7.5 of what it was.
"""

import dataclasses
import types
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

#: A numpy or a jax array; results are of the same kind.
AnyArray: TypeAlias = Any

# A group with no larger weight is one of zeros: XLA flushes subnormal results to zero.
_ZERO = 2.0**-100


@dataclasses.dataclass(frozen=True)
class Grid:
    """How kernels [..., inputs, outputs] are quantized.

    Attributes:
      name: of the grid.
      bits: of a code.
      kind: "int", or "float" for float8_e4m3fn.
      group: how many neighbours along the inputs share a scale; None for all inputs.
      rule: "absmax" of compressed-tensors, or "q4_0" or "q8_0" of GGUF.
      bound: the scale is the largest |w| of a group divided by it (signed with q4_0).
      lowest: the least code.
      highest: the greatest code.
      scale_dtype: of the scales, "float32" or "float16".
      activations: "int8" or "fp8": inputs of a quantized layer are quantized too, with one scale
        for each token, computed as they come; None leaves them as they are.
    """

    name: str
    bits: int
    kind: Literal["int", "float"]
    group: int | None
    rule: Literal["absmax", "q4_0", "q8_0"]
    bound: float
    lowest: float
    highest: float
    scale_dtype: str = "float32"
    activations: Literal["int8", "fp8"] | None = None

    @property
    def code_dtype(self) -> np.dtype:
        """Of the codes of `encode`: int8 (also for 4 bits), or float8_e4m3fn."""
        return np.dtype(np.int8 if self.kind == "int" else ml_dtypes.float8_e4m3fn)

    def bits_per_weight(self, inputs: int) -> float:
        """Bits that a weight takes with its part of a scale; `inputs` of the kernel."""
        return self.bits + 8 * np.dtype(self.scale_dtype).itemsize / (self.group or inputs)

    def divides(self, inputs: int) -> bool:
        """Whether whole groups fit into a kernel with this many inputs."""
        return inputs > 0 and inputs % (self.group or inputs) == 0

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales, [..., groups, outputs], of a kernel of a shape."""
        return (*shape[:-2], shape[-2] // (self.group or shape[-2]), shape[-1])

    def encode(self, kernel: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Quantizes a kernel.

        Args:
          kernel: [..., inputs, outputs], of finite values of any float dtype; computed in float32.

        Returns:
          (codes, scales): `code_dtype` [..., inputs, outputs], and `scale_dtype`
          [..., groups, outputs]. A group of zeros has codes 0.

        Raises:
          ValueError: groups do not divide the inputs.
        """
        if not self.divides(kernel.shape[-2]):
            raise ValueError(f"{self.name}: groups of {self.group} in {kernel.shape[-2]} inputs")
        xp = _namespace(kernel)
        grouped = _in_groups(kernel.astype(np.float32), self.scale_shape(kernel.shape)[-2])
        size = xp.abs(grouped)
        largest = xp.max(size, axis=-2, keepdims=True)
        largest = xp.where(largest < _ZERO, np.float32(0), largest)
        if self.rule == "absmax":
            scales = _divide(largest, np.float32(self.bound))
            scales = xp.where(scales == 0, np.finfo(np.float32).eps, scales)
            codes = self._round(xp, _divide(grouped, scales))
        else:
            if self.rule == "q4_0":
                first = xp.argmax(size, axis=-2, keepdims=True)
                signed = xp.take_along_axis(grouped, first, axis=-2)
                largest = xp.where(largest == 0, np.float32(0), signed)
            scales = _divide(largest, np.float32(self.bound))
            codes = self._round(xp, grouped * _reciprocal(xp, scales))
        # Above float16's range a scale is infinite, which whoever writes it has to refuse.
        with np.errstate(over="ignore"):
            scales = scales[..., 0, :].astype(self.scale_dtype)
        return codes.astype(self.code_dtype).reshape(kernel.shape), scales

    def nearest(self, kernel: AnyArray, scales: AnyArray) -> AnyArray:
        """The codes of a kernel [..., inputs, outputs] at given scales [..., groups, outputs]."""
        xp = _namespace(kernel)
        grouped = _in_groups(kernel.astype(np.float32), scales.shape[-2])
        wide = scales.astype(np.float32)[..., None, :]
        if self.rule == "absmax":
            codes = self._round(xp, _divide(grouped, wide))
        else:
            codes = self._round(xp, grouped * _reciprocal(xp, wide))
        return codes.astype(self.code_dtype).reshape(kernel.shape)

    def _round(self, xp: types.ModuleType, scaled: AnyArray) -> AnyArray:
        """The codes of weights divided by their scales, before the cast to `code_dtype`."""
        # The clip comes before the sums: it does not change the result, and separates them from
        # the product, with which they would otherwise be fused and not rounded in between.
        if self.rule == "q4_0":
            scaled = xp.clip(scaled, np.float32(-8), np.float32(8))
            return xp.clip(xp.trunc(scaled + np.float32(8.5)), 0, 15) - np.float32(8)
        scaled = xp.clip(scaled, np.float32(self.lowest), np.float32(self.highest))
        if self.rule == "q8_0":  # half away from zero
            size = xp.abs(scaled)
            whole = xp.floor(size)
            return xp.sign(scaled) * (whole + xp.floor(2 * (size - whole)))
        return xp.round(scaled) if self.kind == "int" else scaled

    def decode(self, codes: AnyArray, scales: AnyArray, dtype: DTypeLike) -> AnyArray:
        """The kernel that codes and scales stand for, computed in float32 and then cast.

        Args:
          codes: [..., inputs, outputs].
          scales: [..., groups, outputs].
          dtype: of the result.
        """
        return decode(codes, scales, dtype)

    def fake(self, kernel: AnyArray) -> AnyArray:
        """`decode(*encode(kernel))` in the dtype of the kernel, without a gradient of its own."""
        return self.decode(*self.encode(kernel), kernel.dtype)


def decode(codes: AnyArray, scales: AnyArray, dtype: DTypeLike) -> AnyArray:
    """As `Grid.decode`; the shapes tell the groups, so that all grids decode alike."""
    grouped = _in_groups(codes.astype(np.float32), scales.shape[-2])
    wide = grouped * scales.astype(np.float32)[..., None, :]
    return wide.reshape(codes.shape).astype(dtype)


def encode_tokens(x: AnyArray, kind: Literal["int8", "fp8"]) -> tuple[AnyArray, AnyArray]:
    """Quantizes activations, each token with a scale of its own (dynamic, symmetric).

    Args:
      x: [..., features].
      kind: "int8" (absmax / 127.5) or "fp8" (e4m3, absmax / 448).

    Returns:
      (codes, scales): float32 [..., features] with values of int8 or e4m3, and float32 [..., 1].
    """
    grid = INT8 if kind == "int8" else FP8
    codes, scales = grid.encode(x[..., None])
    return codes[..., 0].astype(np.float32), scales[..., 0]


def _namespace(array: AnyArray) -> types.ModuleType:
    return np if isinstance(array, np.ndarray) else jnp


def _in_groups(array: AnyArray, groups: int) -> AnyArray:
    """[..., inputs, outputs] -> [..., groups, group, outputs]."""
    *lead, inputs, outputs = array.shape
    return array.reshape(*lead, groups, inputs // groups, outputs)


def _divide(a: AnyArray, b: AnyArray) -> AnyArray:
    """a / b, correctly rounded also by XLA, which keeps only a divisor that varies as `a` does."""
    if isinstance(a, np.ndarray):
        return a / b
    divisor = jnp.broadcast_to(b, a.shape)
    return jax.lax.div(a, jnp.where(a == a, divisor, jnp.float32(jnp.nan)))


def _reciprocal(xp: types.ModuleType, scales: AnyArray) -> AnyArray:
    """1 / scale; 0 of 0."""
    zero = scales == 0
    return xp.where(zero, np.float32(0), np.float32(1) / xp.where(zero, np.float32(1), scales))


def _int4(group: int) -> Grid:
    return Grid(f"int4-g{group}", 4, "int", group, "absmax", 7.5, -8, 7)


INT8 = Grid("int8", 8, "int", None, "absmax", 127.5, -128, 127)
INT4_G32, INT4_G64, INT4_G128 = _int4(32), _int4(64), _int4(128)
W8A8 = dataclasses.replace(INT8, name="w8a8", activations="int8")
FP8_WEIGHT_ONLY = Grid("fp8-weight-only", 8, "float", None, "absmax", 448.0, -448, 448)
FP8 = dataclasses.replace(FP8_WEIGHT_ONLY, name="fp8", activations="fp8")
Q4_0 = Grid("q4_0", 4, "int", 32, "q4_0", -8.0, -8, 7, "float16")
Q8_0 = Grid("q8_0", 8, "int", 32, "q8_0", 127.0, -127, 127, "float16")

#: Every grid by its name.
GRIDS = {
    grid.name: grid
    for grid in (INT8, INT4_G32, INT4_G64, INT4_G128, W8A8, FP8, FP8_WEIGHT_ONLY, Q4_0, Q8_0)
}
