"""Quantized folders: `quantization_config` of compressed-tensors, and its tensors.

A quantized matrix "q_proj.weight" [outputs, inputs] lies in a folder as

- pack-quantized (int4, int8): weight_packed int32, weight_scale, weight_shape int64 [2];
- int-quantized (w8a8) and float-quantized (fp8): weight int8 or float8_e4m3fn, weight_scale;

with scales [outputs, groups], one group for scales of output channels. Codes and scales are copied
as they are, in both directions. Left out on purpose, and refused: zero points, reordered groups
(g_idx), scales of whole tensors or blocks, static activations, formats of 4-bit floats, and other
quantization methods (gptq, awq, bitsandbytes).
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.huggingface import names, tensor_map
from distill_jax.models.language.huggingface.family_table import FAMILIES
from distill_jax.models.language.huggingface.tensor_map import Tensor
from distill_jax.models.language.quantized import is_kernel, plain
from distill_jax.quantization import grids, packing
from distill_jax.quantization.grids import Grid

#: The key of config.json.
KEY = "quantization_config"
#: Another one, which other programs ignore: the name of the grid of each group.
GRIDS_KEY = "distill_jax_grids"
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
_FORMATS = {
    (4, "int", None): "pack-quantized",
    (8, "int", None): "pack-quantized",
    (8, "int", "int8"): "int-quantized",
    (8, "float", None): "float-quantized",
    (8, "float", "fp8"): "float-quantized",
}
_MIXED = "mixed-precision"
_READ = (*dict.fromkeys(_FORMATS.values()), "naive-quantized", _MIXED)


def format_of(grid: Grid) -> str:
    """The format of compressed-tensors for the tensors of a grid."""
    return _FORMATS[grid.bits, grid.kind, grid.activations]


def module_of(tensor: Tensor) -> str:
    """The module of transformers that has a tensor, such as "model.layers.0.mlp.up_proj"."""
    return tensor.name.removesuffix(".weight")


def grid_of(tensor: Tensor, chosen: Mapping[str, Grid]) -> Grid | None:
    """The grid of a tensor of a checkpoint; None where it is not quantized.

    Raises:
      UsageError: the parameters that it holds have different grids, such as a fused qkv.
    """
    found = {chosen.get(parameter) for parameter in tensor.parameters}
    if len(found) > 1:
        raise UsageError(
            f"{tensor.name} holds {', '.join(tensor.parameters)}, which have different grids; "
            "expected one grid for them"
        )
    return found.pop()


def write_config(
    config: DecoderConfig, tensors: Iterable[Tensor], chosen: Mapping[str, Grid]
) -> dict[str, Any]:
    """The two keys of config.json that describe the quantized matrices.

    Args:
      config: of the decoder.
      tensors: of its checkpoint, from `tensor_map.tensors`.
      chosen: the grid of each quantized kernel, by its flat name.

    Raises:
      UsageError: the family's matrices are no `Linear` of torch.
    """
    if not FAMILIES[config.family].tensors.transposed:
        raise UsageError(
            f"model_type={config.family}: its matrices are Conv1D layers, which compressed-tensors "
            "does not quantize; expected a family of Linear layers"
        )
    modules: dict[Grid, list[str]] = {}
    left = [names.HEAD.removesuffix(".weight")]
    for tensor in tensors:
        grid = grid_of(tensor, chosen)
        if grid is not None:
            modules.setdefault(grid, []).append(module_of(tensor))
        elif tensor.name.endswith(".weight") and len(tensor.shape) == 2:
            left.append(module_of(tensor))
    one = len(modules) == 1
    groups = {
        f"group_{number}": _group(grid, ["Linear"] if one else own)
        for number, (grid, own) in enumerate(modules.items())
    }
    embedding = tensor_map.embedding(config).removesuffix(".weight")
    formats = {group["format"] for group in groups.values()}
    about = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "config_groups": groups,
        "ignore": [name for name in dict.fromkeys(left) if name != embedding],
    }
    named = {group: grid.name for group, grid in zip(groups, modules, strict=True)}
    return {KEY: about, GRIDS_KEY: named}


def _group(grid: Grid, targets: list[str]) -> dict[str, Any]:
    grouped = grid.group is not None
    common: dict[str, Any] = {"num_bits": grid.bits, "type": grid.kind, "symmetric": True}
    weights = {**common, "strategy": "group" if grouped else "channel", "dynamic": False}
    if grouped:
        weights["group_size"] = grid.group
    tokens = {**common, "strategy": "token", "dynamic": True} if grid.activations else None
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": tokens,
        "output_activations": None,
        "format": format_of(grid),
    }


def read_config(
    content: Mapping[str, Any], config: DecoderConfig, tensors: Iterable[Tensor]
) -> dict[str, Grid]:
    """The grid of each kernel that a folder has quantized, by its flat name.

    Args:
      content: of config.json, whose `quantization_config` is read; {} is returned without one.
      config: of the decoder.
      tensors: of its checkpoint, if nothing were quantized.

    Raises:
      UsageError: a method, format, or option that is not read.
    """
    found = content.get(KEY)
    if found is None:
        return {}
    if not isinstance(found, Mapping) or found.get("quant_method") != "compressed-tensors":
        method = found.get("quant_method") if isinstance(found, Mapping) else found
        raise UsageError(
            f"{KEY}: quant_method={method!r:.60}: not read; expected compressed-tensors"
        )
    if found.get("format") not in _READ:
        raise UsageError(
            f"{KEY}: format={found.get('format')!r:.60}: not read; expected {', '.join(_READ)}"
        )
    if found.get("quantization_status", "compressed") != "compressed":
        raise UsageError(
            f"{KEY}: quantization_status={found['quantization_status']!r:.60}: expected compressed"
        )
    for option in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if found.get(option):
            raise UsageError(f"{KEY}: {option} is set; not read, expected none")
    groups, ignored = found.get("config_groups"), found.get("ignore") or []
    if not isinstance(groups, Mapping) or not groups or not isinstance(ignored, list):
        raise UsageError(f"{KEY}: expected config_groups and a list of ignored modules")
    named = content.get(GRIDS_KEY)
    named = named if isinstance(named, Mapping) else {}
    read = [
        _read_group(f"{KEY}.config_groups.{name}", group, named.get(name))
        for name, group in groups.items()
    ]
    chosen: dict[str, Grid | None] = {}
    for tensor in tensors:
        if not all(map(is_kernel, tensor.parameters)):
            continue
        grid = _match(module_of(tensor), read, ignored) if tensor.transposed else None
        for parameter in tensor.parameters:
            if chosen.setdefault(parameter, grid) != grid:
                raise UsageError(
                    f"{KEY}: {module_of(tensor)} is quantized otherwise than the same matrix of "
                    "other layers, which lie in one array here; expected all layers alike"
                )
    return {name: grid for name, grid in chosen.items() if grid is not None}


def _match(module: str, groups: list[tuple[list[str], Grid]], ignored: list[Any]) -> Grid | None:
    def named(target: Any) -> bool:
        if not isinstance(target, str):
            return False
        if target.startswith("re:"):
            return re.match(target.removeprefix("re:"), module) is not None
        return target == module

    if any(map(named, ignored)):
        return None
    exact = [grid for targets, grid in groups if any(map(named, targets))]
    by_class = [grid for targets, grid in groups if "Linear" in targets]
    return next(iter(exact + by_class), None)


def _read_group(key: str, group: Any, name: Any) -> tuple[list[str], Grid]:
    """Targets and grid of a group of `config_groups`; `name` is what our own key calls the grid."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or not isinstance(targets, list):
        raise UsageError(f"{key}: expected targets and weights")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    group_size, strategy = weights.get("group_size"), weights.get("strategy")
    if strategy is None:
        strategy = "group" if group_size else "channel"
    refused = {
        "num_bits": (bits, (bits, kind) in ((4, "int"), (8, "int"), (8, "float"))),
        "strategy": (strategy, strategy in ("channel", "group")),
        "symmetric": (weights.get("symmetric"), weights.get("symmetric", True) is True),
        "dynamic": (weights.get("dynamic"), weights.get("dynamic", False) is False),
        "actorder": (
            weights.get("actorder"),
            weights.get("actorder") in (None, "weight", "static"),
        ),
        "group_size": (group_size, strategy != "group" or _is_size(group_size)),
    }
    for option, (value, fine) in refused.items():
        if not fine:
            raise UsageError(
                f"{key}.weights: {option}={value!r:.60}: not read; expected symmetric int4, int8 "
                "or fp8 weights with a scale for each channel or group"
            )
    if group.get("output_activations"):
        raise UsageError(f"{key}.output_activations: not read; expected none")
    base = grids.INT8 if (bits, kind) == (8, "int") else grids.FP8_WEIGHT_ONLY
    if bits == 4:
        base = grids.INT4_G128
    size = group_size if strategy == "group" else None
    activations = _read_activations(key, group.get("input_activations"))
    if activations not in (None, "int8" if kind == "int" else "fp8"):
        raise UsageError(f"{key}.input_activations: expected the type of the weights, {kind}")
    wanted = (bits, kind, size, activations)
    for grid in (grids.GRIDS.get(name) if isinstance(name, str) else None, *grids.GRIDS.values()):
        if grid and wanted == (grid.bits, grid.kind, grid.group, grid.activations):
            return targets, grid
    found = dataclasses.replace(base, group=size, activations=activations)
    return targets, dataclasses.replace(found, name=f"{kind}{bits}-{size or 'channel'}")


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0 and value % 2 == 0


def _read_activations(key: str, tokens: Any) -> Literal["int8", "fp8"] | None:
    if not tokens:
        return None
    wanted = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
    kind = tokens.get("type", "int") if isinstance(tokens, Mapping) else None
    if kind not in ("int", "float") or any(tokens.get(k, v) != v for k, v in wanted.items()):
        raise UsageError(
            f"{key}.input_activations={json.dumps(tokens)[:120]}: not read; expected 8 bits with "
            "symmetric dynamic scales of tokens"
        )
    return "int8" if kind == "int" else "fp8"


def files_of(tensor: Tensor, grid: Grid) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of the tensors in the files that a quantized tensor lies in, by name."""
    module = module_of(tensor)
    outputs, inputs = tensor.shape
    scale = {
        f"{module}.{SCALE}": (
            (outputs, inputs // (grid.group or inputs)),
            np.dtype(grid.scale_dtype),
        )
    }
    if format_of(grid) != "pack-quantized":
        return {tensor.name: (tensor.shape, grid.code_dtype), **scale}
    words = -(-inputs * grid.bits // 32)
    return {
        f"{module}.{PACKED}": ((outputs, words), np.dtype(np.int32)),
        **scale,
        f"{module}.{SHAPE}": ((2,), np.dtype(np.int64)),
    }


def to_file(name: str, codes: np.ndarray, scales: np.ndarray, grid: Grid) -> np.ndarray:
    """One of the tensors of `files_of`, of codes and scales of a model [.., outputs]."""
    codes, scales = plain(codes, scales, grid)
    if name.endswith(SCALE):
        return np.ascontiguousarray(scales.T)
    if name.endswith(SHAPE):
        return np.array(codes.shape[::-1], np.int64)
    rows = np.ascontiguousarray(codes.T)
    return packing.to_words(rows, grid.bits) if name.endswith(PACKED) else rows


def from_file(name: str, part: np.ndarray, grid: Grid, inputs: int) -> tuple[bool, np.ndarray]:
    """(whether it is scales, what a model holds) of a tensor of `files_of` but the shape."""
    if name.endswith(SCALE):
        scales = part.astype(np.float32).T
        return True, scales[0] if grid.group is None else scales
    codes = packing.from_words(part, grid.bits, inputs) if name.endswith(PACKED) else part
    codes = codes.T
    return False, packing.pack_nibbles(codes) if grid.bits == 4 else codes
