"""Weights of public PyTorch implementations under our names and in our layouts.

For each family, a function gives PyTorch's name of each layer in a block, and a table the names of
the layers outside of blocks. The names are those of

    resnet8 .. resnet110, x4    RepDistiller, mdistiller (`fc`, `downsample`); akamaster's
                                pytorch_resnet_cifar10 (`linear`, shortcut="pad")
    resnet50, imagenet_resnet*  RepDistiller, mdistiller (`linear`, `shortcut`); torchvision
    wrn, vgg, mobilenet_v2,     RepDistiller, mdistiller
    shufflenet
    mobilenet_v1                mdistiller
    deit                        DeiT, timm

PyTorch keeps convolution kernels as [out, in / groups, height, width] and dense weights as
[out, in]; here they are [height, width, in / groups, out] and [in, out].

Left out on purpose: names of other implementations, and any change of the numbers except the
conversion to float32.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.models.files.state_dict import ChooseFn
from distill_jax.models.functional import Flat, split
from distill_jax.models.registry import abstract, options
from distill_jax.models.spec import Spec
from distill_jax.models.vision.imagenet_resnet import ImageNetResNet
from distill_jax.models.vision.mobilenet_v1 import MobileNetV1
from distill_jax.models.vision.mobilenet_v2 import MobileNetV2
from distill_jax.models.vision.resnet import ResNet
from distill_jax.models.vision.shufflenet import ShuffleNetV1, ShuffleNetV2
from distill_jax.models.vision.vgg import VGG
from distill_jax.models.vision.vit import DeiT
from distill_jax.models.vision.wide_resnet import WideResNet

# From our name of a layer to PyTorch's, or to alternatives of which a file has one, divided by "|".
Names = dict[str, str]


def _in_order(block: str, *, conv: str = "conv", norm: str = "bn", first: int = 1) -> Names:
    """Up to three pairs of convolution and normalisation, numbered from `first`."""
    return {
        f"{ours}/{part}": f"{block}.{theirs}{number}"
        for number, ours in enumerate(("first", "second", "third"), start=first)
        for part, theirs in (("conv", conv), ("norm", norm))
    }


def _resnet(stage: int, i: int) -> Names:
    block = f"layer{stage}.{i}"
    return _in_order(block) | {
        "projection/conv": f"{block}.downsample.0|{block}.shortcut.0",
        "projection/norm": f"{block}.downsample.1|{block}.shortcut.1",
    }


def _wide_resnet(stage: int, i: int) -> Names:
    block = f"block{stage}.layer.{i}"
    return {
        "norm1": f"{block}.bn1",
        "conv1": f"{block}.conv1",
        "norm2": f"{block}.bn2",
        "conv2": f"{block}.conv2",
        "projection": f"{block}.convShortcut",
    }


def _vgg(stage: int, i: int) -> Names:
    # One sequence of convolution, normalisation, ReLU; the stem is stage 0.
    return {"conv": f"block{stage}.{3 * i}", "norm": f"block{stage}.{3 * i + 1}"}


def _mobilenet_v1(stage: int, i: int) -> Names:
    # One sequence of blocks after the stem; in a block, numbers 2 and 5 are ReLUs.
    block = f"model.{(1, 4, 6, 12)[stage - 1] + i}"
    return {
        "depthwise/conv": f"{block}.0",
        "depthwise/norm": f"{block}.1",
        "pointwise/conv": f"{block}.3",
        "pointwise/norm": f"{block}.4",
    }


_MOBILENET_V2_BLOCKS = (  # "row of the paper's table.block in it", for each stage
    ("0.0", "1.0", "1.1"),
    ("2.0", "2.1", "2.2"),
    ("3.0", "3.1", "3.2", "3.3", "4.0", "4.1", "4.2"),
    ("5.0", "5.1", "5.2", "6.0"),
)


def _mobilenet_v2(stage: int, i: int) -> Names:
    block = f"blocks.{_MOBILENET_V2_BLOCKS[stage - 1][i]}.conv"
    return {
        f"{layer}/{part}": f"{block}.{3 * number + (part == 'norm')}"
        for number, layer in enumerate(("first", "second", "third"))
        for part in ("conv", "norm")
    }


def _shufflenet_v2(stage: int, i: int) -> Names:
    # The first unit numbers the convolutions of its depthwise branch before these.
    block = f"layer{stage}.{i}"
    branch = _in_order(block, first=1 if i else 3)
    return {
        "depthwise/conv": f"{block}.conv1",
        "depthwise/norm": f"{block}.bn1",
        "pointwise/conv": f"{block}.conv2",
        "pointwise/norm": f"{block}.bn2",
        **{f"branch/{ours}": theirs for ours, theirs in branch.items()},
    }


def _deit(stage: int, i: int) -> Names:
    del stage  # All blocks are in one list.
    block = f"blocks.{i}"
    return {
        "norm1": f"{block}.norm1",
        "attention/qkv": f"{block}.attn.qkv",
        "attention/projection": f"{block}.attn.proj",
        "norm2": f"{block}.norm2",
        "dense1": f"{block}.mlp.fc1",
        "dense2": f"{block}.mlp.fc2",
    }


_STEM = {"stem/conv": "conv1", "stem/norm": "bn1", "classifier": "fc|linear"}
_HEAD = {"head/conv": "conv2", "head/norm": "bn2"}
_FAMILIES: dict[type, tuple[Callable[[int, int], Names], Names]] = {
    ResNet: (_resnet, _STEM),
    ImageNetResNet: (_resnet, _STEM),
    ShuffleNetV1: (_resnet, _STEM),
    ShuffleNetV2: (_shufflenet_v2, _STEM | _HEAD),
    WideResNet: (_wide_resnet, {"stem": "conv1", "norm": "bn1", "classifier": "fc"}),
    VGG: (_vgg, {"classifier": "classifier"}),
    MobileNetV1: (
        _mobilenet_v1,
        {"stem/conv": "model.0.0", "stem/norm": "model.0.1", "classifier": "fc"},
    ),
    MobileNetV2: (
        _mobilenet_v2,
        {
            "stem/conv": "conv1.0",
            "stem/norm": "conv1.1",
            "head/conv": "conv2.0",
            "head/norm": "conv2.1",
            "classifier": "classifier.0|classifier",
        },
    ),
    DeiT: (
        _deit,
        {
            "class_token": "cls_token",
            "distillation_token": "dist_token",
            "position_embedding": "pos_embed",
            "stem": "patch_embed.proj",
            "norm": "norm",
            "classifier": "head",
            "distillation_classifier": "head_dist",
        },
    ),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _torch_names(kind: type, name: str) -> list[str]:
    """PyTorch's possible names of our array `name`, such as "stage1/0/first/conv/kernel"."""
    block, outside = _FAMILIES[kind]
    if name in outside:
        return [outside[name]]
    *layer, leaf = name.split("/")
    if len(layer) > 1 and layer[1].isdigit():
        stage = int(layer[0].removeprefix("stage")) if layer[0].startswith("stage") else 0
        modules = block(stage, int(layer[1]))["/".join(layer[2:])]
    else:
        modules = outside["/".join(layer)]
    return [f"{module}.{_LEAVES.get(leaf, leaf)}" for module in modules.split("|")]


def _torch_axes(name: str, rank: int) -> tuple[int, ...] | None:
    """The axes of PyTorch's array in our order; None where PyTorch's has a leading axis of 1."""
    if name in ("class_token", "distillation_token", "position_embedding"):
        return None
    if name.endswith("/kernel"):
        return {4: (2, 3, 1, 0), 2: (1, 0)}[rank]
    return tuple(range(rank))


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = _torch_axes(name, len(shape))
    return (1, *shape) if axes is None else tuple(shape[axes.index(i)] for i in range(len(shape)))


def _listed(title: str, items: list[str]) -> list[str]:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return [f"{title}: {'; '.join(items[:3])}{more}"] if items else []


def from_pytorch(state: Mapping[str, np.ndarray], spec: Spec) -> tuple[Flat, Flat]:
    """The arrays of a network from a state dict of a public PyTorch implementation.

    Args:
      state: PyTorch's names and arrays, as from `read_state_dict`; "num_batches_tracked" is
        ignored.
      spec: the network that they belong to.

    Returns:
      (params, stats): float32, as from `split`.

    Raises:
      UsageError: the network is unknown or has no name map here; or an array is missing in `state`,
        has another shape, is not floating, or is unused.
    """
    module = abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    kind = type(module)
    if kind not in _FAMILIES:
        raise UsageError(f"{spec.name} has no counterpart in PyTorch that is known here")
    params, stats = split(module)[1:]
    conversion = _Conversion(kind, state)
    groups = [
        {name: conversion.take(name, expected.shape) for name, expected in group.items()}
        for group in (params, stats)
    ]
    if faults := conversion.faults():
        hint = ""
        missing = conversion.missing
        if "shortcut" in options(spec.name) and all("/projection/" in name for name in missing):
            hint = ". Shortcuts without parameters are shortcut='pad'" if missing else ""
        raise UsageError(f"these are not the arrays of {spec.name}. {'. '.join(faults)}{hint}")
    return groups[0], groups[1]


def to_pytorch(params: Flat, stats: Flat, spec: Spec) -> dict[str, np.ndarray]:
    """The state dict of a network under the names of PyTorch; the inverse of `from_pytorch`.

    Of names that differ between implementations it has the first of the table above, those of
    torchvision and RepDistiller ("fc", "downsample"). "num_batches_tracked" is left out, which
    `load_state_dict` fills in.

    Args:
      params: flat dictionary, as from `split`.
      stats: likewise.
      spec: the network.

    Returns:
      float32 arrays, contiguous, in the layouts of PyTorch.

    Raises:
      UsageError: the network has no counterpart in PyTorch that is known here.
    """
    module = abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    kind = type(module)
    if kind not in _FAMILIES:
        raise UsageError(f"{spec.name} has no counterpart in PyTorch that is known here")
    state = {}
    for name, value in {**params, **stats}.items():
        axes = _torch_axes(name, value.ndim)
        own = np.asarray(value, np.float32)
        theirs = own[None] if axes is None else own.transpose(np.argsort(axes))
        state[_torch_names(kind, name)[0]] = np.ascontiguousarray(theirs)
    return state


def pytorch_names(arrays: Iterable[str], spec: Spec) -> dict[str, str]:
    """The name here of each array of `to_pytorch`, by its name there."""
    kind = type(
        abstract(
            spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
        )
    )
    return {_torch_names(kind, name)[0]: name for name in sorted(arrays)}


def choose_arrays(spec: Spec, part: str = "") -> ChooseFn:
    """For `read_chosen`: which arrays of a checkpoint are those of a network.

    They lie behind one prefix: the keys of dictionaries ("state_dict"), the attribute in which a
    program holds the network ("model", "backbone", "student"), wrappers ("module"). Prefixes are
    compared by the names and shapes that they lead to; arrays outside of the chosen one (a counter,
    an optimizer, another network) are not read.

    Args:
      spec: the network.
      part: the prefix to choose, or its beginning or end, such as "state_dict_ema"; "." for names
        without a prefix, "" where only one prefix leads to such a network.

    Raises:
      UsageError: from the result: several prefixes lead to such a network with other numbers, or
        none begins or ends with `part`.
    """
    wanted = _wanted(spec)

    def choose(
        shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
    ) -> dict[str, str]:
        prefixes = _prefixes(shapes, wanted)
        if part:
            start = "" if part == "." else f"{part.removesuffix('.')}."
            chosen = [p for p in prefixes if (_leads(start, p) if start else not p)]
            if not chosen:
                raise UsageError(
                    f"no array of {spec.name} is under part={part!r}; it has "
                    f"{_parts(prefixes) or 'none anywhere'}"
                )
            prefixes = chosen
        groups = {prefix: _names_behind(prefix, prefixes, shapes) for prefix in prefixes}
        fits = {prefix: _fit(group, shapes, wanted) for prefix, group in groups.items()}
        best = [prefix for prefix in prefixes if fits[prefix] == max(fits.values())]
        first = groups[best[0]]
        for other in best[1:]:
            same = groups[other].keys() == first.keys() and all(
                np.array_equal(read(first[name]), read(groups[other][name])) for name in first
            )
            if not same:
                raise UsageError(
                    f"holds {len(best)} networks {spec.name}, with other numbers: {_parts(best)}; "
                    "expected one of them, chosen by --part"
                )
        return first

    return choose


def _wanted(spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a network by PyTorch's names, of which alternatives are all."""
    module = abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    if type(module) not in _FAMILIES:
        raise UsageError(f"{spec.name} has no counterpart in PyTorch that is known here")
    _, params, stats = split(module)
    return {
        theirs: _torch_shape(name, value.shape)
        for name, value in {**params, **stats}.items()
        for theirs in _torch_names(type(module), name)
    }


def _prefixes(shapes: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every prefix behind which names of the network lie; "" where there is none."""
    counts = collections.Counter(
        full[: -len(name)] for full in shapes for name in _suffixes(full) if name in wanted
    )
    most = max(counts.values(), default=0)
    # "layer1." leads to few of the names, as if it were the prefix of another network.
    return [prefix for prefix, count in counts.items() if 2 * count > most] or [""]


def _leads(part: str, prefix: str) -> bool:
    """Whether a prefix begins with a part of it or ends with one."""
    return prefix.startswith(part) or f".{prefix}".endswith(f".{part}")


def _suffixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[start:]) for start in range(len(words))]


def _names_behind(prefix: str, prefixes: Sequence[str], shapes: Iterable[str]) -> dict[str, str]:
    """The arrays behind a prefix but not behind a longer one, by their names without it."""
    longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): name
        for name in shapes
        if name.startswith(prefix) and not name.startswith(longer)
    }


def _fit(
    group: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
) -> int:
    """How many arrays have the name and shape of one of the network, less those that do not."""
    counted = [name for name in group if not name.endswith("num_batches_tracked")]
    fits = sum(shapes[group[name]] == wanted.get(name) for name in counted)
    return 2 * fits - len(counted)


def _parts(prefixes: Sequence[str]) -> str:
    return ", ".join(repr(prefix.removesuffix(".") or ".") for prefix in prefixes)


class _Conversion:
    """Takes arrays from a state dict one by one, and notes what does not fit.

    Args:
      kind: the class of the network.
      state: PyTorch's names and arrays.
    """

    def __init__(self, kind: type, state: Mapping[str, np.ndarray]):
        self._kind = kind
        self._state = state
        self._used: set[str] = set()
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def take(self, name: str, expected: tuple[int, ...]) -> jax.Array:
        """Our array `name` of the expected shape; one without numbers where the state has none."""
        nothing = jnp.empty((0,), jnp.float32)
        theirs = _torch_names(self._kind, name)
        present = next((other for other in theirs if other in self._state), None)
        if present is None:
            self.missing.append(f"{name} (as {theirs[0]})")
            return nothing
        self._used.add(present)
        value, shape = self._state[present], _torch_shape(name, expected)
        if value.shape != shape or not jnp.issubdtype(value.dtype, jnp.floating):
            got = f"{value.dtype} {list(value.shape)}"
            self.misshapen.append(f"{present} is {got}, not float {list(shape)}")
            return nothing
        axes = _torch_axes(name, len(expected))
        return jnp.asarray(value[0] if axes is None else value.transpose(axes), jnp.float32)

    def faults(self) -> list[str]:
        """What did not fit, for a message; empty when everything was found and used."""
        unused = [
            name
            for name in self._state
            if name not in self._used and not name.endswith("num_batches_tracked")
        ]
        return [
            *_listed("Missing in the file", self.missing),
            *_listed("Unused in the file", unused),
            *_listed("Of another shape", self.misshapen),
        ]
