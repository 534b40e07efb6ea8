"""Checkpoints of decoders: Hugging Face folders in and out, and the arrays of llama2.c.

A tensor goes from the file to its place in the stacked parameter, in the shards that the parameter
has, before the next one is read: the host never holds more than a tensor or two, and of many
processes each reads what its own devices keep. Nothing in a folder is executed: JSON and
safetensors hold data alone.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from distill_jax.errors import UsageError
from distill_jax.models.functional import split
from distill_jax.models.language import int8
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.decoder import Decoder, ShardingFn, abstract, from_params
from distill_jax.models.language.huggingface import names, tensor_files
from distill_jax.models.language.huggingface.families import from_huggingface
from distill_jax.storage import reporting_unreachable, resolve_path


def load(
    path: str | os.PathLike,
    *,
    param_dtype: DTypeLike = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    quantize: str = "none",
    key: str = "path",
    **options: Any,
) -> Decoder:
    """Reads a Hugging Face folder.

    Args:
      path: the folder, with config.json and safetensors, single or sharded with an index.
      param_dtype: to which every tensor is converted, on the device.
      sharding_fn: the sharding of each parameter; by default all are on one device.
      quantize: "none", or "int8" for the matrices of the layers, see `int8`; each is quantized on
        the device as it is read, so that there is never a dense model.
      key: what an error calls the path.
      **options: dtype, remat and attention of `Decoder`.

    Raises:
      UsageError: there is no such folder, its architecture or an option of it is not implemented, a
        tensor is missing, unexpected or of another shape, a file is truncated, an index points
        outside the folder, or there are only pickles. All of it is found before a tensor is read.
    """
    folder = resolve_path(path, key)
    with reporting_unreachable(folder, key):
        folder.exists()
    try:
        config = _config(folder)
        params = _read(folder, config, param_dtype, sharding_fn, quantize)
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    return from_params(config, params, param_dtype=param_dtype, **options)


def load_zeros(
    path: str | os.PathLike,
    *,
    param_dtype: DTypeLike = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    quantize: str = "none",
    key: str = "path",
    **options: Any,
) -> Decoder:
    """The decoder that `load` gives, of zeros, from config.json alone.

    Within `jax.eval_shape` it is one of shapes, which takes no memory whatever its size. Arguments
    and errors are those of `load`, but for the tensors; `sharding_fn` is not used.
    """
    del sharding_fn
    try:
        config = _config(resolve_path(path, key))
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    kept = _kept(shapes(config), param_dtype, quantize)
    params = {name: jnp.zeros(kind.shape, kind.dtype) for name, kind in kept.items()}
    return from_params(config, params, param_dtype=param_dtype, **options)


def _config(folder: pathlib.Path) -> DecoderConfig:
    if not folder.is_dir():
        raise UsageError("no such folder; expected one with config.json and safetensors")
    return from_huggingface(tensor_files.read_json(folder / tensor_files.CONFIG))


def _kept(
    own: Mapping[str, tuple[int, ...]], dtype: DTypeLike, quantize: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """What is kept of parameters of these shapes: they themselves, or integers and scales."""
    scales = int8.scale_shapes(own) if quantize == "int8" else {}
    dtypes = dict.fromkeys(own, dtype) | dict.fromkeys(scales, jnp.float32)
    dtypes |= {name: jnp.int8 for name in own if int8.scale_name(name) in scales}
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtypes[name]))
        for name, shape in {**own, **scales}.items()
    }


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a decoder, by its flat name."""
    return {name: value.shape for name, value in split(abstract(config))[1].items()}


def _read(
    folder: pathlib.Path,
    config: DecoderConfig,
    dtype: DTypeLike,
    sharding_fn: ShardingFn | None,
    quantize: str,
) -> dict[str, Array]:
    stored = tensor_files.locate(folder)
    stored = {name: file for name, file in stored.items() if not names.is_buffer(name)}
    stored_shapes = {
        names.canonical(name, config): shape for name, shape in tensor_files.shapes(stored).items()
    }
    own = shapes(config)
    wanted = {tensor.name: tensor for tensor in names.tensors(config, own)}
    spare = config.tied and names.HEAD in stored_shapes
    if spare:
        # Transformers takes the embedding and drops this one; so may we, if it is the same.
        _check_same_head(stored, config)
        del stored_shapes[names.HEAD]
    _check(wanted, stored_shapes)
    params, where = {}, {}
    for name, kind in _kept(own, dtype, quantize).items():
        where[name] = sharding_fn(name, kind.shape) if sharding_fn else None
        params[name] = _empty(kind.shape, kind.dtype, where[name])()
    for name, value in tensor_files.stream(stored):
        if spare and name == names.HEAD:
            continue
        tensor = wanted[names.canonical(name, config)]
        axis = 0 if tensor.transposed else len(value.shape) - 1
        parts = value.split(tensor.splits, axis)
        for parameter, part in zip(tensor.parameters, parts, strict=True):
            names_of = (parameter, int8.scale_name(parameter))
            held = tuple(name for name in names_of if name in params)
            placed = _place(
                tuple(params[name] for name in held),
                part,
                tensor,
                tuple(where[name] for name in held),
            )
            params |= zip(held, placed, strict=True)
        # Else the reading runs ahead of the copying, and tensors pile up on the host.
        jax.block_until_ready([params[parameter] for parameter in tensor.parameters])
    return params


def _check(wanted: Mapping[str, names.Tensor], stored: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    faults += [f"{name} is unexpected" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        if wanted[name].shape != stored[name]:
            faults.append(f"{name} is {list(stored[name])}, not {list(wanted[name].shape)}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"the tensors are not those of config.json: {'; '.join(faults[:3])}{more}")


def _check_same_head(stored: Mapping[str, pathlib.Path], config: DecoderConfig) -> None:
    table = next((name for name in stored if name.endswith(names.EMBEDDINGS)), None)
    if table is not None and not tensor_files.equal(stored, names.HEAD, table):
        raise UsageError(
            f"{names.HEAD} differs from {table}, but config.json says tie_word_embeddings; "
            "expected equal ones, or tie_word_embeddings=false"
        )


@functools.cache
def _empty(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None
) -> Callable[[], Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _place(
    held: tuple[Array, ...],
    part: tensor_files.Stored,
    tensor: names.Tensor,
    where: tuple[Sharding | None, ...],
) -> tuple[Array, ...]:
    """The parameter, or its integers and scales, with one tensor in place; buffers are reused."""
    target = None
    if isinstance(where[0], NamedSharding):
        # Each device gets the part that it keeps, laid out as in the file.
        spec = (*where[0].spec, *(None,) * (held[0].ndim - len(where[0].spec)))
        spec = spec[len(tensor.place) :]
        turned = spec[:: -1 if tensor.transposed else 1]
        target = NamedSharding(where[0].mesh, PartitionSpec(*turned))
    moved = _read_part(part, target)
    return _update(where)(held, moved, tensor.place, tensor.transposed)


def _read_part(part: tensor_files.Stored, target: NamedSharding | None) -> Array:
    """A tensor on the devices; a process reads what its own devices keep of it, and that once."""
    if target is None:
        return jnp.asarray(part[(slice(None),) * len(part.shape)])
    found: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in found:
            found[key] = part[index]
        return found[key]

    return jax.make_array_from_callback(part.shape, target, read)


@functools.cache
def _update(where: tuple[Sharding | None, ...]) -> Callable[..., tuple[Array, ...]]:
    def update(held, part, place, transposed):
        part = part.T if transposed else part
        new = (part.astype(held[0].dtype),) if len(held) == 1 else int8.quantize(part)

        def put(old, value):
            value = jnp.expand_dims(value, tuple(range(len(place))))
            return jax.lax.dynamic_update_slice(
                old, value, (*place, *(0,) * (old.ndim - len(place)))
            )

        return tuple(put(old, value) for old, value in zip(held, new, strict=True))

    return jax.jit(update, static_argnums=3, donate_argnums=0, out_shardings=where)


def from_llama2c(
    arrays: Mapping[str, np.ndarray],
    *,
    heads: int,
    max_positions: int = 512,
    key: str = "path",
    **options: Any,
) -> Decoder:
    """A decoder of the arrays that llama2.c trains (karpathy/llama2.c, a small Llama 2).

    Args:
      arrays: tok [V, D]; of L layers ra and rf [L, D] (norms), wq, wk, wv, wo, w1, w2, w3
        [L, out, in]; rn [D]; cls [V, D]. Rotations there turn neighbouring rows of wq and wk.
      heads: of queries, which the arrays do not tell.
      max_positions: the longest context.
      key: what an error calls them.
      **options: dtype, remat and attention of `Decoder`.

    Raises:
      UsageError: an array is missing or of another shape.
    """
    expected = ("tok", "ra", "rf", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "rn", "cls")
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise UsageError(f"{key}: array {missing[0]!r} is missing; expected {', '.join(expected)}")
    a = {name: np.asarray(arrays[name], np.float32) for name in expected}
    (vocab_size, dim), (layers, mlp_dim) = a["tok"].shape, a["w1"].shape[:2]
    if dim % heads or a["wk"].shape[1] % (dim // heads):
        raise UsageError(f"{key}: heads={heads!r}: expected a divisor of {dim} that fits the keys")
    config = DecoderConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=a["wk"].shape[1] // (dim // heads),
        head_dim=dim // heads,
        mlp_dim=mlp_dim,
        tied=bool(np.array_equal(a["tok"], a["cls"])),
        max_positions=max_positions,
    )

    def halves_apart(stack: np.ndarray) -> np.ndarray:
        """Rows (0, 1), (2, 3), ... of each head become rows (0, H), (1, H + 1), ..."""
        pairs = stack.reshape(layers, -1, config.head_dim // 2, 2, dim)
        return pairs.swapaxes(2, 3).reshape(stack.shape)

    flat = {
        "embedding": a["tok"],
        "final_norm/scale": a["rn"],
        "runs/0/attention_norm/scale": a["ra"],
        "runs/0/mlp_norm/scale": a["rf"],
    }
    if not config.tied:
        flat["untied_head"] = a["cls"].T
    for name, value in (
        ("attention/query", halves_apart(a["wq"])),
        ("attention/key", halves_apart(a["wk"])),
        ("attention/value", a["wv"]),
        ("attention/output", a["wo"]),
        ("mlp/gate", a["w1"]),
        ("mlp/down", a["w2"]),
        ("mlp/up", a["w3"]),
    ):
        flat[f"runs/0/{name}/kernel"] = value.swapaxes(1, 2)
    for name, shape in shapes(config).items():
        if flat[name].shape != shape:
            raise UsageError(
                f"{key}: an array gives {name} as {list(flat[name].shape)}, not {list(shape)}"
            )
    return from_params(config, {name: jnp.asarray(v) for name, v in flat.items()}, **options)
