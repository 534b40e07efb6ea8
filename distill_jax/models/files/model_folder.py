"""A network on disk: a folder of model.json (what it is) and weights.safetensors (its numbers).

Reading executes nothing: JSON and safetensors hold data alone, and a network is made only from a
registered name. Every byte of both files is covered by a SHA-256, so that a damaged, truncated or
exchanged file is refused, never used.

Writing is atomic, see `storage.replacing_folder`: a process that is killed on the way leaves a
whole model under the folder's name or a hidden one. `load` looks there too, and reads again when it
meets a rename. Arrays come to the first host tensor by tensor. One writer a folder; any number of
readers.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import Array

from distill_jax import parallel, storage
from distill_jax.errors import UsageError
from distill_jax.models.files import safetensors_writer
from distill_jax.models.files.pytorch import from_pytorch
from distill_jax.models.files.state_dict import read_state_dict
from distill_jax.models.functional import Flat, split
from distill_jax.models.registry import abstract
from distill_jax.models.spec import Spec
from distill_jax.processes import coordination
from distill_jax.storage import previous_folder, replacing_folder

_FORMAT = 1
_MODEL = "model.json"
_WEIGHTS = "weights.safetensors"
_LARGE = 2**24  # bytes


@dataclasses.dataclass(frozen=True)
class Saved:
    """A network as `load` found it.

    Attributes:
      spec: what it is.
      params: flat dictionary, as from `split`.
      stats: likewise, the batch statistics.
      fingerprint: hex SHA-256 of all of it, see `fingerprint`.
    """

    spec: Spec
    params: Flat
    stats: Flat
    fingerprint: str


def _grouped(params: Mapping[str, Array], stats: Mapping[str, Array]) -> Flat:
    groups = {"params": params, "stats": stats}
    return {
        f"{group}/{name}": values[name]
        for group, values in groups.items()
        for name in sorted(values)
    }


def fingerprint(spec: Spec, params: Mapping[str, Array], stats: Mapping[str, Array]) -> str:
    """Hex SHA-256 of the spec and of every array's name, dtype, shape and bytes, sorted by name."""
    return fingerprint_of(spec.to_json(), _grouped(params, stats))


def fingerprint_of(
    definition: Any,
    arrays: Mapping[str, Array],
    fetch: Callable[..., np.ndarray | None] = parallel.fetch_slice,
) -> str:
    """Hex SHA-256 of a definition, as JSON, and of arrays, sorted by name.

    A large stack, of all layers of a decoder, comes to the host layer by layer.

    Args:
      definition: what JSON can hold.
      arrays: on the devices or the host, or what `parallel.fetch_slice` can fetch.
      fetch: it, or `parallel.fetch_to_first`, with which only the first process has the result.
    """
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode())
    for name, value in arrays.items():
        digest.update(f"\n{name} {value.dtype.name} {list(value.shape)}\n".encode())
        large = value.ndim > 2 and value.nbytes > _LARGE
        for place in [(row,) for row in range(value.shape[0])] if large else [()]:
            if (part := fetch(value, place)) is not None:
                digest.update(safetensors_writer.bytes_of(part))
            del part  # before the next one comes
    return digest.hexdigest()


def _misfits(spec: Spec, params: Mapping[str, Array], stats: Mapping[str, Array]) -> str:
    """How arrays differ from those that `create` gives for the spec; empty when they fit."""
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


def _rendered(spec: Spec, hash_of_model: str, hash_of_weights: str) -> bytes:
    content = {
        "format": _FORMAT,
        "spec": spec.to_json(),
        "fingerprint": hash_of_model,
        "weights_sha256": hash_of_weights,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def save(
    path: str | os.PathLike,
    spec: Spec,
    params: Mapping[str, Array],
    stats: Mapping[str, Array],
) -> str:
    """Writes a network to a folder, in place of the one that may be there.

    All processes call it together; the first one writes.

    Args:
      path: the folder; made if need be. It may hold an earlier model and nothing else.
      spec: what the network is.
      params: flat dictionary, as from `split`.
      stats: likewise.

    Returns:
      The fingerprint.

    Raises:
      UsageError: the folder holds other things, which replacing it would delete.
      ValueError: the arrays are not those of the network that the spec names.
    """
    faults = _misfits(spec, params, stats)
    if faults:
        raise ValueError(f"these are not the arrays of {spec.name}: {faults}")
    arrays = _grouped(params, stats)
    whole = fingerprint_of(spec.to_json(), arrays, parallel.fetch_to_first)
    hash_of_model = coordination.broadcast_from_first(lambda: whole)
    written = replacing_folder(path, (_MODEL, _WEIGHTS).__contains__, "a model")
    with written if coordination.is_first() else contextlib.nullcontext() as saving:
        weights, digest = saving and saving / _WEIGHTS, hashlib.sha256()
        safetensors_writer.write(
            weights, arrays, lambda name: parallel.fetch_to_first(arrays[name]), digest=digest
        )
        if saving:
            model = _rendered(spec, hash_of_model, digest.hexdigest())
            (saving / _MODEL).write_bytes(model)
    return hash_of_model


def _find(path: pathlib.Path) -> pathlib.Path:
    """The folder with the model of `path`: itself, "model" in it, or what either was to replace."""
    places = [
        place if place.is_dir() else previous_folder(place)
        for place in (path.resolve(), path.resolve() / "model")
    ]
    for name in (_MODEL, _WEIGHTS):
        for place in places:
            if (place / name).exists():
                return place
    if not path.exists():
        raise UsageError("no such folder; expected a saved model")
    raise UsageError(f"no model here; expected a folder with {_MODEL}, or the workdir of a run")


def _read(folder: pathlib.Path) -> Saved:
    model, weights = ((folder / name).read_bytes() for name in (_MODEL, _WEIGHTS))
    try:
        content: dict[str, Any] = json.loads(model)
        written, fields, hash_of_model, hash_of_weights = (
            content[name] for name in ("format", "spec", "fingerprint", "weights_sha256")
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{_MODEL} is damaged or truncated") from error
    if written != _FORMAT:
        raise UsageError(f"{_MODEL} has format {written!r}; this version reads {_FORMAT}")
    if hashlib.sha256(weights).hexdigest() != hash_of_weights:
        raise UsageError(
            f"{_WEIGHTS} is damaged or truncated: its SHA-256 is not the one in {_MODEL}"
        )
    spec = Spec.from_json(fields)
    try:
        arrays = safetensors.numpy.load(weights)
        groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "stats": {}}
        for full_name in sorted(arrays):
            group, _, name = full_name.partition("/")
            groups[group][name] = arrays[full_name]
    except (safetensors.SafetensorError, KeyError) as error:
        raise UsageError(f"{_WEIGHTS} does not hold the arrays of a model: {error}") from error
    params, stats = groups["params"], groups["stats"]
    # Byte for byte: so that also a change which means the same to a JSON parser is a change.
    intact = model == _rendered(spec, hash_of_model, hash_of_weights)
    if not intact or fingerprint(spec, params, stats) != hash_of_model:
        raise UsageError(f"{_MODEL} is damaged: its fingerprint is not that of this model")
    try:
        faults = _misfits(spec, params, stats)
    except UsageError as error:
        raise UsageError(f"this version has no such model: {error}") from error
    if faults:
        raise UsageError(f"{_WEIGHTS} does not fit {spec.name}: {faults}")
    as_jax = ({name: jnp.asarray(v) for name, v in group.items()} for group in (params, stats))
    return Saved(spec, *as_jax, hash_of_model)


def _converted(path: pathlib.Path, spec: Spec | None, key: str) -> Saved:
    """A file of weights that PyTorch wrote."""
    if spec is None:
        raise UsageError(
            f"{key}={str(path)!r}: a file; expected a folder with {_MODEL} or a workdir. "
            f"PyTorch weights become one by: distill-jax import {shlex.quote(str(path))} "
            "--model=resnet56 --classes=100 --mean=.5070,.4865,.4409 --std=.2673,.2564,.2761 "
            "--workdir=DIR"
        )
    state = read_state_dict(path, key=key)
    try:
        params, stats = from_pytorch(state, spec)
    except UsageError as error:
        raise UsageError(f"{key}={str(path)!r}: {error}") from error
    return Saved(spec, params, stats, fingerprint(spec, params, stats))


def load(path: str | os.PathLike, *, spec: Spec | None = None, key: str = "teacher.path") -> Saved:
    """Reads a network and verifies every byte of it.

    Args:
      path: a folder written by `save`, or the workdir of a run (whose model lies in "model"); with
        a spec also a file of PyTorch weights, see `read_state_dict` and `from_pytorch`, of which
        only the names and shapes are verified.
      spec: what a file holds. A folder says that itself, and may have no other.
      key: what an error calls the path.

    Returns:
      The network. `split(abstract(spec.name, ...))` gives the graph definition that applies it.

    Raises:
      UsageError: there is none, or it is unreadable, truncated, damaged, of an unknown kind, or its
        arrays are not those that `create` gives for its spec.
    """
    place = storage.resolve_path(path, key)
    if not storage.is_remote(place) and place.is_file():
        return _converted(place, spec, key)
    wanted = [f"{folder}{name}" for folder in ("", "model/") for name in (_MODEL, _WEIGHTS)]
    with storage.reporting_unreachable(place, key), storage.local_copy(place, wanted) as here:
        saved = _load(here, f"{key}={str(path)!r}")
    if spec is not None and spec != saved.spec:
        raise UsageError(
            f"{key}={str(path)!r}: the model in this folder is {saved.spec.to_json()}, "
            f"not {spec.to_json()}"
        )
    return saved


def _load(path: pathlib.Path, said: str) -> Saved:
    seen = object()
    while True:
        identity = None
        try:
            folder = _find(path)
            status = folder.stat()
            identity = (folder, status.st_ino, status.st_ctime_ns)
            return _read(folder)
        except UsageError as error:
            fault = str(error)
        except OSError as error:
            fault = f"{pathlib.Path(error.filename or path).name} cannot be read: {error.strerror}"
        # Two failures in one unchanged folder are damage; a changed one was being replaced.
        if identity == seen:
            raise UsageError(f"{said}: {fault}")
        seen = identity
