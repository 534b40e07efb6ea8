"""Reading a Hugging Face folder into a decoder.

Each tensor is copied from its file into the stacked parameter that holds it, in the parameter's own
shards, before the next one is read: the host never holds more than a tensor or two, and of several
processes each reads only what its own devices keep. Nothing in a folder is executed: JSON and
safetensors are data alone.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from distill_jax.errors import UsageError
from distill_jax.models.files import checksums
from distill_jax.models.functional import split
from distill_jax.models.language import quantized
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.construct import ShardingFn, abstract, from_params
from distill_jax.models.language.decoder import ComputeOptions, Decoder
from distill_jax.models.language.huggingface import compressed, names, tensor_files, tensor_map
from distill_jax.models.language.huggingface.families import from_huggingface
from distill_jax.quantization.grids import Grid
from distill_jax.storage import reporting_unreachable, resolve_path


def load(
    path: str | os.PathLike,
    *,
    param_dtype: DTypeLike = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    quantize: str = "none",
    key: str = "path",
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """Reads a Hugging Face folder.

    Args:
      path: the folder, with config.json and safetensors, single or sharded with an index.
      param_dtype: to which every tensor is converted, on the device.
      sharding_fn: the sharding of each parameter; by default all are on JAX's default device.
      quantize: "none", or "int8" for the matrices of the layers, see `quantized`; each is quantized
        on the device as it is read, so that the dense model never exists. A folder that is
        quantized already keeps its codes and scales as they are, and takes "none" alone.
      key: the config key that errors name.
      **options: dtype, remat, attention and mesh of `Decoder`.

    Raises:
      UsageError: there is no such folder, its architecture or an option of it is not implemented, a
        tensor is missing, unexpected or of another shape, a file is truncated, an index points
        outside the folder, there are only pickles, or a file is not what SHA-256 sums in the folder
        say (see `files.checksums`). All of it is found before a tensor is read.
    """
    folder = resolve_path(path, key)
    with reporting_unreachable(folder, key):
        folder.exists()
    try:
        config, chosen = _read_config(folder, quantize)
        files = tensor_files.locate(folder)
        checksums.verify(folder, tensor_files.names_of(folder, files))
        params = _read_params(files, config, _Kept(param_dtype, chosen, quantize), sharding_fn)
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    return from_params(config, params, activations=quantized.activations(chosen), **options)


def grids_of(path: str | os.PathLike, *, key: str = "path") -> dict[str, Grid]:
    """The grid of each kernel that a folder has quantized, by its flat name; {} for none.

    Raises:
      UsageError: as of `load`, of config.json alone.
    """
    try:
        return _read_config(resolve_path(path, key), "none")[1]
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error


def load_zeros(
    path: str | os.PathLike,
    *,
    param_dtype: DTypeLike = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    quantize: str = "none",
    key: str = "path",
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """The decoder that `load` gives, with zeros for parameters: only config.json is read.

    Within `jax.eval_shape` it has shapes alone, which take no memory whatever its size. Arguments
    and errors are those of `load`, except for the tensors'; `sharding_fn` is not used.
    """
    del sharding_fn
    try:
        folder = resolve_path(path, key)
        config, chosen = _read_config(folder, quantize)
        checksums.verify(folder, [tensor_files.CONFIG])
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    stored = _Kept(param_dtype, chosen, quantize).stored(shapes(config))
    params = {name: jnp.zeros(kind.shape, kind.dtype) for name, kind in stored.items()}
    return from_params(config, params, activations=quantized.activations(chosen), **options)


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a decoder, by its flat name."""
    return {name: value.shape for name, value in split(abstract(config))[1].items()}


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What is kept of the tensors of a folder.

    Attributes:
      dtype: of the parameters that are not quantized.
      chosen: the grid of each kernel that the folder has quantized, by its flat name.
      quantize: "int8" to quantize the kernels that are not.
    """

    dtype: DTypeLike
    chosen: Mapping[str, Grid]
    quantize: str

    def stored(self, own: Mapping[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of what is kept of parameters of these shapes, scales included."""
        grids = dict(self.chosen)
        if self.quantize == "int8":
            grids = dict.fromkeys(quantized.kernels(own), quantized.WHILE_READING)
        found: dict[str, jax.ShapeDtypeStruct] = {}
        for name, shape in own.items():
            kinds = {name: (shape, self.dtype)}
            if name in grids:
                kinds = quantized.stored(name, shape, grids[name])
            found |= {key: jax.ShapeDtypeStruct(*kind) for key, kind in kinds.items()}
        return found


def _read_config(folder: pathlib.Path, quantize: str) -> tuple[DecoderConfig, dict[str, Grid]]:
    """The decoder's config, and the grid of each kernel that the folder has quantized."""
    if not folder.is_dir():
        raise UsageError("no such folder; expected one with config.json and safetensors")
    content = tensor_files.read_json(folder / tensor_files.CONFIG)
    config = from_huggingface(
        {k: v for k, v in content.items() if k not in (compressed.KEY, compressed.GRIDS_KEY)}
    )
    chosen = compressed.read_config(content, config, tensor_map.tensors(config, shapes(config)))
    if chosen and quantize != "none":
        raise UsageError(
            f"is quantized already; expected it with quantize='none', not {quantize!r}"
        )
    return config, chosen


def _read_params(
    located: Mapping[str, pathlib.Path],
    config: DecoderConfig,
    kept: _Kept,
    sharding_fn: ShardingFn | None,
) -> dict[str, Array]:
    multimodal = any(map(tensor_map.is_of_text, located))
    files = {
        name: file
        for name, file in located.items()
        if not tensor_map.is_buffer(name)
        # Of a multimodal model, the decoder alone is read.
        and (not multimodal or tensor_map.is_of_text(name) or name == names.HEAD)
    }
    param_shapes = shapes(config)
    wanted = {tensor.name: tensor for tensor in tensor_map.tensors(config, param_shapes)}
    if config.tied and names.HEAD in files:
        # Transformers reads the embedding and ignores this copy; here it has to be the same.
        _check_same_head(files, config)
        del files[names.HEAD]
    quantized_parts = _split_quantized(wanted, kept.chosen)
    stored_shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_files.shapes(files).items():
        canonical = tensor_map.canonical(name, config)
        if canonical in stored_shapes:
            raise UsageError(f"{canonical} is in the files twice, also as {name}; expected it once")
        stored_shapes[canonical] = shape
    expected = {name: tensor.shape for name, tensor in wanted.items()}
    for tensor, grid in quantized_parts.values():
        expected.pop(tensor.name, None)
        expected |= {n: shape for n, (shape, _) in compressed.files_of(tensor, grid).items()}
    _check_tensors(expected, stored_shapes)
    buffers = _Buffers(kept.stored(param_shapes), sharding_fn)
    for name, value in tensor_files.stream(files):
        canonical = tensor_map.canonical(name, config)
        if canonical in quantized_parts:
            written = _write_quantized(buffers, canonical, value, *quantized_parts[canonical])
        else:
            tensor_files.check_floats(value, name)
            tensor = wanted[canonical]
            parts = value.split(tensor.splits, 0 if tensor.transposed else len(value.shape) - 1)
            for parameter, part in zip(tensor.parameters, parts, strict=True):
                buffers.write(parameter, part, tensor)
            written = tensor.parameters
        # Otherwise reading runs ahead of the copies, and tensors pile up on the host.
        jax.block_until_ready([buffers.arrays[parameter] for parameter in written])
    return buffers.arrays


def _split_quantized(
    wanted: Mapping[str, tensor_map.Tensor], chosen: Mapping[str, Grid]
) -> dict[str, tuple[tensor_map.Tensor, Grid]]:
    """The tensor of a dense checkpoint, and its grid, by each name that it has in the files."""
    found: dict[str, tuple[tensor_map.Tensor, Grid]] = {}
    for tensor in wanted.values():
        grid = compressed.grid_of(tensor, chosen)
        if grid is not None:
            found |= dict.fromkeys(compressed.files_of(tensor, grid), (tensor, grid))
    return found


def _write_quantized(
    buffers: "_Buffers",
    name: str,
    value: tensor_files.Stored,
    tensor: tensor_map.Tensor,
    grid: Grid,
) -> tuple[str, ...]:
    """Writes codes or scales, whose rows are outputs, into the parameters that hold them."""
    if name.endswith(compressed.SHAPE):
        stated = value[(slice(None),)].tolist()
        if stated != list(tensor.shape):
            raise UsageError(f"{name} is {stated}, not {list(tensor.shape)}")
        return ()
    written = []
    for parameter, part in zip(tensor.parameters, value.split(tensor.splits, 0), strict=True):
        content = part[(slice(None),) * 2]
        is_scale, held = compressed.from_file(name, content, grid, tensor.shape[1])
        target = quantized.scale_name(parameter) if is_scale else parameter
        buffers.write_held(target, held, tensor)
        written.append(target)
    return tuple(written)


def _check_tensors(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> None:
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    faults += [f"{name} is unexpected" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        if wanted[name] != stored[name]:
            faults.append(f"{name} is {list(stored[name])}, not {list(wanted[name])}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"the tensors are not those of config.json: {'; '.join(faults[:3])}{more}")


def _check_same_head(files: Mapping[str, pathlib.Path], config: DecoderConfig) -> None:
    embedding = tensor_map.embedding(config)
    table = next((name for name in files if tensor_map.canonical(name, config) == embedding), None)
    if table is not None and not tensor_files.equal(files, names.HEAD, table):
        raise UsageError(
            f"{names.HEAD} differs from {table}, but config.json says tie_word_embeddings; "
            "expected equal ones, or tie_word_embeddings=false"
        )


class _Buffers:
    """The parameters on the devices, at first zeros, into which tensors are written.

    Args:
      stored: shape and dtype of each.
      sharding_fn: the sharding of each; None for JAX's default device.

    Attributes:
      arrays: the parameters by their flat names.
    """

    def __init__(
        self, stored: Mapping[str, jax.ShapeDtypeStruct], sharding_fn: ShardingFn | None
    ) -> None:
        self._shardings: dict[str, Sharding | None] = {}
        self.arrays: dict[str, Array] = {}
        for name, kind in stored.items():
            self._shardings[name] = sharding_fn(name, kind.shape) if sharding_fn else None
            self.arrays[name] = _zeros(kind.shape, kind.dtype, self._shardings[name])()

    def write(self, parameter: str, part: tensor_files.Stored, tensor: tensor_map.Tensor) -> None:
        """Writes a tensor, or its part that belongs to one parameter, into that parameter.

        A kernel that is quantized as it is read is two arrays, integers and scales. Their old
        buffers are donated.
        """
        both = (parameter, quantized.scale_name(parameter))
        held = tuple(name for name in both if name in self.arrays)
        shardings = tuple(self._shardings[name] for name in held)
        target = _file_sharding(shardings[0], self.arrays[parameter].ndim, tensor)
        moved = _to_device(part, target)
        arrays = tuple(self.arrays[name] for name in held)
        updated = _update(shardings)(arrays, moved, tensor.index, tensor.transposed)
        self.arrays |= zip(held, updated, strict=True)

    def write_held(self, parameter: str, part: np.ndarray, tensor: tensor_map.Tensor) -> None:
        """Writes codes or scales, as the model holds them, into their array."""
        plain = dataclasses.replace(tensor, transposed=False)
        sharding, array = self._shardings[parameter], self.arrays[parameter]
        moved = _to_device(part, _file_sharding(sharding, array.ndim, plain))
        (self.arrays[parameter],) = _update((sharding,))((array,), moved, tensor.index, False)


@functools.cache
def _zeros(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None
) -> Callable[[], Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _file_sharding(
    sharding: Sharding | None, ndim: int, tensor: tensor_map.Tensor
) -> NamedSharding | None:
    """The sharding of a tensor as it lies in the file: a device gets only what it keeps."""
    if not isinstance(sharding, NamedSharding):
        return None
    spec = (*sharding.spec, *(None,) * (ndim - len(sharding.spec)))
    spec = spec[len(tensor.index) :]
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec[::-1] if tensor.transposed else spec)))


def _to_device(part: tensor_files.Stored | np.ndarray, sharding: NamedSharding | None) -> Array:
    """A tensor on the devices; each process reads the shards of its own devices, each once."""
    if sharding is None:
        return jnp.asarray(part[(slice(None),) * len(part.shape)])
    shards: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # a NamedSharding gives every device an index
        key = str(index)
        if key not in shards:
            shards[key] = part[index]
        return shards[key]

    return jax.make_array_from_callback(part.shape, sharding, read)


@functools.cache
def _update(shardings: tuple[Sharding | None, ...]) -> Callable[..., tuple[Array, ...]]:
    """(arrays, tensor, index, transposed) -> the arrays with the tensor in their slice `index`."""

    def update(
        arrays: tuple[Array, ...], tensor: Array, index: tuple[int, ...], transposed: bool
    ) -> tuple[Array, ...]:
        matrix = tensor.T if transposed else tensor
        new: tuple[Array, ...] = (matrix.astype(arrays[0].dtype),)
        if len(arrays) == 2:
            new = quantized.encode_kernel(matrix, quantized.WHILE_READING)

        def put(array: Array, value: Array) -> Array:
            value = jnp.expand_dims(value, tuple(range(len(index))))
            start = (*index, *(0,) * (array.ndim - len(index)))
            return jax.lax.dynamic_update_slice(array, value, start)

        return tuple(put(array, value) for array, value in zip(arrays, new, strict=True))

    return jax.jit(update, static_argnums=3, donate_argnums=0, out_shardings=shardings)
