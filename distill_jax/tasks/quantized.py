"""Students that are trained with quantized matrices: from `student.quantize` to their grids."""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax.quantization import recipes
from distill_jax.quantization.aware import Quantizer

KEY = "student.quantize"


def make_quantizer(
    config: ConfigDict,
    kernels: Mapping[str, tuple[int, ...]],
    by_default: Collection[str],
    *,
    flat: bool = False,
) -> Quantizer | None:
    """The grids of a student's kernels; None where it is not quantized.

    Args:
      config: resolved.
      kernels: the shapes of all kernels that can be quantized, by flat names.
      by_default: those of them that a recipe's name means.
      flat: see `Quantizer`.

    Raises:
      UsageError: the recipe does not fit the student.
    """
    text = config.student.quantize
    if text == "none":
        return None
    return Quantizer(text, recipes.parse(text, KEY).choose(kernels, by_default, KEY), flat)


def description(quantizer: Quantizer | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest records under "quantized"; {} where the student is not quantized.

    Args:
      quantizer: of the student.
      params: all its parameters, of which the shapes are read.
    """
    if quantizer is None:
        return {}
    return {"quantized": quantizer.describe({name: p.shape for name, p in params.items()})}


def saved_bytes(quantizer: Quantizer | None, whole: int, params: Mapping[str, Any]) -> int:
    """Bytes of a student's arrays on disk.

    Args:
      quantizer: of the student, or None.
      whole: bytes of all its arrays in float32.
      params: its parameters, of which the shapes are read.
    """
    described = description(quantizer, params).get("quantized")
    if described is None:
        return whole
    return whole - 4 * described["parameters"] + described["bytes"]
