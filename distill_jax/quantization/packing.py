"""Codes in fewer bytes.

Of 4 bits, in memory and in the files of compressed-tensors alike, a byte has two neighbours along
the inputs, code + 8, the first in the low half. Files hold kernels as [outputs, inputs] and call
four bytes an int32; the last of a row is filled with zeros. Their codes of 8 bits are code + 128.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from distill_jax.quantization.grids import AnyArray


def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the bytes of a kernel [..., inputs, outputs] of 4 bits."""
    return (*shape[:-2], (shape[-2] + 1) // 2, shape[-1])


def pack_nibbles(codes: AnyArray) -> AnyArray:
    """int8 codes of 4 bits [..., inputs, outputs], inputs even -> uint8 [..., inputs / 2, outputs].

    Raises:
      ValueError: an odd number of inputs.
    """
    if codes.shape[-2] % 2:
        raise ValueError(f"{codes.shape[-2]} inputs: expected an even number")
    shifted = (codes + 8).astype(np.uint8)
    return shifted[..., 0::2, :] | (shifted[..., 1::2, :] << 4)


def unpack_nibbles(packed: AnyArray) -> AnyArray:
    """The inverse of `pack_nibbles`."""
    *lead, half, outputs = packed.shape
    low, high = packed & 15, packed >> 4
    xp = np if isinstance(packed, np.ndarray) else jnp
    both = xp.stack((low, high), axis=-2)
    return both.reshape(*lead, 2 * half, outputs).astype(np.int8) - np.int8(8)


def to_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """`weight_packed` of compressed-tensors: int8 [outputs, inputs] -> int32 [outputs, words]."""
    rows, inputs = codes.shape
    shifted = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    per_word = 32 // bits
    padded = np.zeros((rows, -(-inputs // per_word) * per_word), np.uint8)
    padded[:, :inputs] = shifted
    if bits == 4:
        padded = padded[:, 0::2] | (padded[:, 1::2] << 4)
    return np.ascontiguousarray(padded).view("<i4")


def from_words(words: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    """The inverse of `to_words`."""
    content: Any = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 4:
        content = np.stack((content & 15, content >> 4), axis=-1).reshape(len(words), -1)
    return (content[:, :inputs].astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
