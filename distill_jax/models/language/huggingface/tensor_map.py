"""Which tensor of a checkpoint is which parameter of a `Decoder`, by the tables of `names`."""

import dataclasses
import re
from collections.abc import Mapping

from distill_jax.models.language.config import DecoderConfig, layer_locations
from distill_jax.models.language.huggingface import names
from distill_jax.models.language.huggingface.family_table import FAMILIES

# Constants that older versions of transformers stored among the parameters.
_BUFFERS = re.compile(r"(.*\.)?(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)")

# What DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
# What multimodal models of transformers 4 and 5 put before the names of their decoder.
_TEXT_PART = re.compile(r"^(model\.)?language_model\.")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      name: in the checkpoint.
      parameters: the flat names of those it holds, in order along their last axis.
      index: the slice of each of them along its first axes: (row of the layer,), (row, expert), or
        () for the whole parameter.
      transposed: whether the tensor lies [out, in].
      shape: in the checkpoint.
      splits: where the second and the following parameters begin along their last axis.
    """

    name: str
    parameters: tuple[str, ...]
    index: tuple[int, ...]
    transposed: bool
    shape: tuple[int, ...]
    splits: tuple[int, ...]


def tensors(config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Every tensor of a checkpoint of this decoder, each once.

    Args:
      config: of the decoder; its family names the table.
      shapes: of the decoder's parameters, by their flat names.
    """
    scheme = FAMILIES[config.family].tensors
    found = [
        _tensor(theirs, (ours,), (), theirs == names.HEAD, shapes)
        for theirs, ours in scheme.whole.items()
        if ours in shapes
    ]
    for number, (run, row) in enumerate(layer_locations(config)):
        for theirs, ours in scheme.layer.items():
            parameters = tuple(f"runs/{run}/{name}" for name in ours)
            if parameters[0] not in shapes:
                continue
            of_experts = len(shapes[parameters[0]]) == 4  # layer, expert, inputs, outputs
            if of_experts != ("{}" in theirs):  # the table has names for layers of both kinds
                continue
            transposed = parameters[0].endswith("kernel") and scheme.transposed
            name = f"{scheme.layers_prefix}.{number}.{theirs}"
            per_expert = [(row, expert) for expert in range(config.experts)]
            for index in per_expert if "{}" in name else [(row,)]:
                tensor = _tensor(name.format(*index[1:]), parameters, index, transposed, shapes)
                found.append(tensor)
    return found


def _tensor(
    name: str,
    parameters: tuple[str, ...],
    index: tuple[int, ...],
    transposed: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> Tensor:
    sliced = [shapes[parameter][len(index) :] for parameter in parameters]
    widths = [shape[-1] for shape in sliced]
    shape = (*sliced[0][:-1], sum(widths))
    splits = tuple(sum(widths[:i]) for i in range(1, len(widths)))
    return Tensor(name, parameters, index, transposed, shape[::-1] if transposed else shape, splits)


def is_buffer(name: str) -> bool:
    """Whether a tensor is a constant that the decoder computes for itself."""
    return _BUFFERS.fullmatch(name) is not None


def is_of_text(name: str) -> bool:
    """Whether a tensor is of the decoder of a multimodal model."""
    return _TEXT_PART.match(name) is not None


def canonical(name: str, config: DecoderConfig) -> str:
    """The name of a tensor without wrappers, and with the prefix that files without head omit."""
    prefix = FAMILIES[config.family].tensors.optional_prefix
    bare = _TEXT_PART.sub("", _WRAPPERS.sub("", name))
    return bare if bare.startswith((prefix, "lm_head.")) else prefix + bare


def embedding(config: DecoderConfig) -> str:
    """The canonical name of the token embedding."""
    return FAMILIES[config.family].tensors.embedding
