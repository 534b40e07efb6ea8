"""A network on disk: a folder of model.json (what it is) and weights.safetensors (its numbers).

Reading executes nothing: JSON and safetensors hold only data, and a network is made only from a
registered name. A SHA-256 covers every byte of both files, so a damaged, truncated or exchanged
file is refused, never used. What is known about a network besides (the names of its classes, what
it was trained on) is no part of its fingerprint, and has a SHA-256 of its own.

Writing is atomic, see `storage.replacing_folder`: a process that is killed while it writes leaves a
complete model under the folder's name or a hidden one. `load` looks under both, and reads again
when the folder was renamed meanwhile. Arrays come to the first host tensor by tensor. One writer
per folder; any number of readers.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax import Array

from distill_jax import parallel, storage
from distill_jax.errors import UsageError
from distill_jax.models.files import checksums, quantized_arrays, safetensors_writer
from distill_jax.models.files.pytorch import choose_arrays, from_pytorch
from distill_jax.models.files.state_dict import read_chosen
from distill_jax.models.functional import Flat, split
from distill_jax.models.registry import abstract
from distill_jax.models.spec import Spec
from distill_jax.parallel.transfer import FetchFn
from distill_jax.processes import coordination
from distill_jax.quantization.grids import Grid
from distill_jax.storage import previous_folder, replacing_folder

_FORMAT = 1
_MODEL = "model.json"
_WEIGHTS = "weights.safetensors"
_LARGE = 2**24  # bytes


@dataclasses.dataclass(frozen=True)
class Saved:
    """A network that was read from a file or folder.

    Attributes:
      spec: what it is.
      params: flat dictionary, as from `split`.
      stats: likewise, the batch statistics.
      fingerprint: hex SHA-256 of all of it, see `fingerprint`.
      trained_on: what describes its training examples, as `save` was given it; {} for unknown.
      quantized: the name of the grid of each kernel that the folder has as codes, see
        `quantized_arrays`; {} for none. The parameters here are decoded.
    """

    spec: Spec
    params: Flat
    stats: Flat
    fingerprint: str
    trained_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantized: Mapping[str, str] = dataclasses.field(default_factory=dict)


Arrays = Mapping[str, Array | np.ndarray]


def _grouped(params: Arrays, stats: Arrays) -> dict[str, Array | np.ndarray]:
    groups = {"params": params, "stats": stats}
    return {
        f"{group}/{name}": values[name]
        for group, values in groups.items()
        for name in sorted(values)
    }


def fingerprint(spec: Spec, params: Arrays, stats: Arrays) -> str:
    """Hex SHA-256 of the spec and of every array's name, dtype, shape and bytes, sorted by name."""
    return fingerprint_of(spec.to_json(), _grouped(params, stats))


def fingerprint_of(
    definition: Any,
    arrays: Mapping[str, Any],
    fetch: FetchFn = parallel.fetch_slice,
) -> str:
    """Hex SHA-256 of a definition, as JSON, and of arrays, sorted by name.

    A large array, such as a stack of all layers of a decoder, is fetched row by row.

    Args:
      definition: anything that JSON can hold.
      arrays: on the devices or the host, or anything that `parallel.fetch_slice` can fetch.
      fetch: `parallel.fetch_slice`, or `parallel.fetch_to_first`, with which the result is right in
        the first process alone.
    """
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode())
    for name, value in arrays.items():
        digest.update(f"\n{name} {value.dtype.name} {list(value.shape)}\n".encode())
        large = value.ndim > 2 and value.nbytes > _LARGE
        for index in [(row,) for row in range(value.shape[0])] if large else [()]:
            if (part := fetch(value, index)) is not None:
                digest.update(safetensors_writer.bytes_of(part))
            del part  # Frees the memory before the next part is fetched.
    return digest.hexdigest()


def _sha256_of(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _misfits(spec: Spec, params: Arrays, stats: Arrays) -> str:
    """How arrays differ from those that `create` makes for the spec; empty when they fit."""
    module = abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    faults = []
    for expected, arrived in zip(split(module)[1:], (params, stats), strict=True):
        faults += [f"{name} is missing" for name in sorted(set(expected) - set(arrived))]
        faults += [f"{name} is unexpected" for name in sorted(set(arrived) - set(expected))]
        for name in sorted(set(expected) & set(arrived)):
            want, got = (f"{v.dtype} {list(v.shape)}" for v in (expected[name], arrived[name]))
            if want != got:
                faults.append(f"{name} is {got}, not {want}")
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more


def _about(
    spec: Spec, trained_on: Mapping[str, Any], quantized: Mapping[str, str]
) -> dict[str, Any]:
    """What model.json says besides the network, without what is unknown."""
    known = {
        "class_names": list(spec.class_names),
        "trained_on": dict(trained_on),
        "quantized": dict(quantized),
    }
    return {name: value for name, value in known.items() if value}


def _render(
    spec: Spec, model_hash: str, weights_hash: str, about: Mapping[str, Any] | None = None
) -> bytes:
    """The content of model.json; `about` is what `_about` gave."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "spec": spec.to_json(),
        "fingerprint": model_hash,
        "weights_sha256": weights_hash,
    }
    if about:
        content |= {"about": about, "about_sha256": _sha256_of(about)}
    return (json.dumps(content, indent=2) + "\n").encode()


def save(
    path: str | os.PathLike,
    spec: Spec,
    params: Mapping[str, Array],
    stats: Mapping[str, Array],
    *,
    trained_on: Mapping[str, Any] | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> str:
    """Writes a network to a folder, and replaces an earlier model in it.

    All processes call it together; the first one writes.

    Args:
      path: the folder; created if it does not exist. It may hold an earlier model and nothing else.
      spec: what the network is.
      params: flat dictionary, as from `split`.
      stats: likewise.
      trained_on: what describes the training examples, as JSON; None for unknown.
      grids: of kernels that are written as codes and scales, by flat names; in one process alone.

    Returns:
      The fingerprint, of what is written.

    Raises:
      UsageError: the folder holds other things, which replacing it would delete.
      ValueError: the arrays are not those of the network that the spec names.
    """
    faults = _misfits(spec, params, stats)
    if faults:
        raise ValueError(f"these are not the arrays of {spec.name}: {faults}")
    grids = grids or {}
    arrays = _grouped(quantized_arrays.encode(params, grids) if grids else params, stats)
    whole = fingerprint_of(spec.to_json(), arrays, parallel.fetch_to_first)
    model_hash = coordination.broadcast_from_first(lambda: whole)

    def read(name: str) -> np.ndarray | None:
        return parallel.fetch_to_first(arrays[name])

    if not coordination.is_first():
        safetensors_writer.write(None, arrays, read)  # Takes part in fetching, writes nothing.
        return model_hash
    digest = hashlib.sha256()
    with replacing_folder(path, (_MODEL, _WEIGHTS).__contains__, "a model") as folder:
        safetensors_writer.write(folder / _WEIGHTS, arrays, read, digest=digest)
        named = {name: grid.name for name, grid in grids.items()}
        about = _about(spec, trained_on or {}, named)
        (folder / _MODEL).write_bytes(_render(spec, model_hash, digest.hexdigest(), about))
    return model_hash


def _find(path: pathlib.Path) -> pathlib.Path:
    """The folder that holds the model: `path`, its subfolder "model", or the predecessor of either.

    A predecessor is what a killed process left under a hidden name while it replaced the folder.
    """
    folders = [
        folder if folder.is_dir() else previous_folder(folder)
        for folder in (path.resolve(), path.resolve() / "model")
    ]
    for name in (_MODEL, _WEIGHTS):
        for folder in folders:
            if (folder / name).exists():
                return folder
    if not path.exists():
        raise UsageError("no such folder; expected a saved model")
    raise UsageError(f"no model here; expected a folder with {_MODEL}, or the workdir of a run")


def _read(folder: pathlib.Path) -> Saved:
    """Reads and verifies a model; UsageError, without the path, where it is damaged."""
    model, weights = ((folder / name).read_bytes() for name in (_MODEL, _WEIGHTS))
    try:
        content: dict[str, Any] = json.loads(model)
        version, fields, model_hash, weights_hash = (
            content[name] for name in ("format", "spec", "fingerprint", "weights_sha256")
        )
        about: dict[str, Any] = content.get("about", {})
        names, trained_on = about.get("class_names", ()), about.get("trained_on", {})
        named: dict[str, str] = about.get("quantized", {})
        about_hash = _sha256_of(about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{_MODEL} is damaged or truncated") from error
    if version != _FORMAT:
        raise UsageError(f"{_MODEL} has format {version!r}; this version reads {_FORMAT}")
    if hashlib.sha256(weights).hexdigest() != weights_hash:
        raise UsageError(
            f"{_WEIGHTS} is damaged or truncated: its SHA-256 is not the one in {_MODEL}"
        )
    if about and content.get("about_sha256") != about_hash:
        raise UsageError(f"{_MODEL} is damaged: its class names are not those that were saved")
    spec = Spec.from_json(fields, names)
    params, stats = _ungrouped(weights)
    # Compared as bytes, so that a change which a JSON parser does not see is refused too.
    intact = model == _render(spec, model_hash, weights_hash, about)
    if not intact or fingerprint(spec, params, stats) != model_hash:
        raise UsageError(f"{_MODEL} is damaged: its fingerprint is not that of this model")
    try:
        params = _decoded(spec, params, named)
        faults = _misfits(spec, params, stats)
    except UsageError as error:
        raise UsageError(f"this version has no such model: {error}") from error
    if faults:
        raise UsageError(f"{_WEIGHTS} does not fit {spec.name}: {faults}")
    return Saved(
        spec=spec,
        # Not `jnp.asarray`, which compiles a program for every shape.
        params=jax.device_put(params),
        stats=jax.device_put(stats),
        fingerprint=model_hash,
        trained_on=trained_on,
        quantized=named,
    )


def _decoded(
    spec: Spec, params: dict[str, np.ndarray], named: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The float parameters of those of a folder, of which some are codes."""
    if not named:
        return params
    module = abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    shapes = {name: value.shape for name, value in split(module)[1].items()}
    return quantized_arrays.decode(params, named, shapes)


def _ungrouped(weights: bytes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and batch statistics, sorted by name; the inverse of `_grouped`."""
    groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "stats": {}}
    try:
        arrays = safetensors.numpy.load(weights)
        for full_name in sorted(arrays):
            group, _, name = full_name.partition("/")
            groups[group][name] = arrays[full_name]
    except (safetensors.SafetensorError, KeyError) as error:
        raise UsageError(f"{_WEIGHTS} does not hold the arrays of a model: {error}") from error
    return groups["params"], groups["stats"]


def _load_pytorch(path: pathlib.Path, spec: Spec | None, part: str, key: str) -> Saved:
    """A network from a file of weights that PyTorch wrote."""
    if spec is None:
        raise UsageError(
            f"{key}={str(path)!r}: a file; expected a folder with {_MODEL} or a workdir. "
            f"PyTorch weights become one by: distill-jax import {shlex.quote(str(path))} "
            "--model=resnet56 --classes=100 --mean=.5070,.4865,.4409 --std=.2673,.2564,.2761 "
            "--workdir=DIR"
        )
    try:
        choose = choose_arrays(spec, part)
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    state = read_chosen(path, choose, key=key)
    try:
        params, stats = from_pytorch(state, spec)
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    return Saved(spec, params, stats, fingerprint(spec, params, stats))


def load(
    path: str | os.PathLike,
    *,
    spec: Spec | None = None,
    part: str = "",
    key: str = "teacher.path",
) -> Saved:
    """Reads a network and verifies every byte of it.

    Args:
      path: a folder written by `save`, or the workdir of a run (whose model is in "model"); with a
        spec also a file of PyTorch weights, see `read_chosen` and `from_pytorch`, of which only
        the names and shapes are verified.
      spec: of a file, the network that it holds; of a folder, the one that it must hold.
      part: of a file that holds several such networks, which one, see `choose_arrays`.
      key: the config key that errors name.

    Returns:
      The network. `split(abstract(spec.name, ...))` gives the graph definition that applies it.

    Raises:
      UsageError: there is none, or it is unreadable, truncated, damaged, of an unknown kind, or its
        arrays are not those that `create` makes for its spec.
    """
    source = storage.resolve_path(path, key)
    if not storage.is_remote(source) and source.is_file():
        return _load_pytorch(source, spec, part, key)
    wanted = [f"{folder}{name}" for folder in ("", "model/") for name in (_MODEL, _WEIGHTS)]
    with storage.reporting_unreachable(source, key), storage.local_copy(source, wanted) as folder:
        saved = _load_folder(folder, f"{key}={str(path)!r}")
    if spec is not None and spec != saved.spec:
        raise UsageError(
            f"{key}={str(path)!r}: the model in this folder is {saved.spec.to_json()}, "
            f"not {spec.to_json()}"
        )
    return saved


def saved_identity(folder: pathlib.Path) -> str | None:
    """The fingerprint that a saved model of any kind has in its own files; None for none.

    Args:
      folder: of an image network, or of a decoder that a run saved.
    """
    try:
        found = json.loads((folder / _MODEL).read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return checksums.identity(folder)
    return str(found)


def _load_folder(path: pathlib.Path, location: str) -> Saved:
    """Reads a model; again when another process replaced the folder meanwhile."""
    previous: object = object()
    while True:
        identity: object = None
        try:
            folder = _find(path)
            status = folder.stat()
            identity = (folder, status.st_ino, status.st_ctime_ns)
            return _read(folder)
        except UsageError as error:
            fault = str(error)
        except OSError as error:
            fault = f"{pathlib.Path(error.filename or path).name} cannot be read: {error.strerror}"
        # A second failure in an unchanged folder is damage; a changed folder was being replaced.
        if identity == previous:
            raise UsageError(f"{location}: {fault}")
        previous = identity
