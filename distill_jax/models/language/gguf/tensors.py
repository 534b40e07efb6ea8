"""The tensors of a GGUF file: their names, and how each lies there."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.gguf.architectures import ARCHITECTURES
from distill_jax.models.language.huggingface import tensor_map

_QUERY, _KEY = "attn_q", "attn_k"


@dataclasses.dataclass(frozen=True)
class Place:
    """A tensor of a Hugging Face checkpoint in a GGUF file.

    Attributes:
      tensor: of the checkpoint.
      name: in the file.
      shape: there, rows first.
      heads: whose rows are permuted; 0 for a tensor as it is in the checkpoint.
      turned: whether its axes are swapped (GPT-2's matrices lie [in, out] in the checkpoint).
      shift: what is added to it, the 1 of Gemma's norms.
      matrix: whether it is multiplied by; norms and biases stay float32.
    """

    tensor: tensor_map.Tensor
    name: str
    shape: tuple[int, ...]
    heads: int
    turned: bool
    shift: float
    matrix: bool

    def to_file(self, value: np.ndarray) -> np.ndarray:
        """A tensor of the checkpoint as it lies in the file."""
        if self.turned:
            value = np.ascontiguousarray(value.T)
        if self.heads:
            value = permute(value, self.heads)
        return value + np.float32(self.shift) if self.shift else value

    def from_file(self, value: np.ndarray) -> np.ndarray:
        """The opposite of `to_file`."""
        if self.shift:
            value = value - np.float32(self.shift)
        if self.heads:
            value = permute(value, self.heads, back=True)
        return np.ascontiguousarray(value.T) if self.turned else value


def permute(value: np.ndarray, heads: int, *, back: bool = False) -> np.ndarray:
    """Rows of queries or keys from halves of a head to pairs, which GGML's rope rotates.

    Args:
      value: [heads x head_dim, …]; codes and scales of blocks along the last axis as well.
      heads: how many heads there are.
      back: from pairs to halves.
    """
    half = value.shape[0] // heads // 2
    inner = (half, 2) if back else (2, half)
    grouped = value.reshape(heads, *inner, *value.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(value.shape)


def places(
    config: DecoderConfig,
    architecture: str,
    shapes: Mapping[str, tuple[int, ...]],
    gguf: ModuleType,
) -> list[Place]:
    """Every tensor of a decoder with its place in a file.

    Args:
      config: of the decoder.
      architecture: as which the file is written or was read.
      shapes: of the decoder's parameters, by their flat names.
      gguf: the package.
    """
    row = ARCHITECTURES[architecture]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.layers)
    found = []
    for tensor in tensor_map.tensors(config, shapes):
        module, _, leaf = tensor.name.rpartition(".")
        base = names.get_name(module)
        if base is None:
            raise ValueError(f"{tensor.name}: {architecture} has no such tensor")
        short = base.rpartition(".")[2]
        own = {_QUERY: config.heads, _KEY: config.kv_heads}.get(short, 0)
        is_norm = any(name.endswith("/scale") for name in tensor.parameters)
        matrix = len(tensor.shape) > 1
        # Embeddings of tokens and positions, and the head, lie in rows everywhere.
        inside = tensor.parameters[0].startswith("runs/")
        turned = matrix and inside and not tensor.transposed
        found.append(
            Place(
                tensor=tensor,
                name=f"{base}.{leaf}",
                shape=tensor.shape[::-1] if turned else tensor.shape,
                heads=own if row.permuted and not is_norm else 0,
                turned=turned,
                shift=1.0 if is_norm and config.norm_offset else 0.0,
                matrix=matrix,
            )
        )
    return found
